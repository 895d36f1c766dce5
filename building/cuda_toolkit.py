"""Where the CUDA toolkit is: asked by setup.py, the Makefile and the tests that compile kernels.

    python building/cuda_toolkit.py         prints its folder; exit status 1 if there is none
    python building/cuda_toolkit.py gpus    prints the architectures of the GPUs here, as 9.0a;12.0

Environment: CUDA_HOME (its folder), BAYESRNN_CUDA=1 (a missing toolkit is an error) or 0 (none).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path


def cuda_home() -> Path | None:
    """The toolkit's folder: that of CUDA_HOME, of /usr/local, of nvcc on PATH, of pip's packages.

    None without one, or with BAYESRNN_CUDA=0. SystemExit where BAYESRNN_CUDA=1 asks for one.
    """
    wanted = os.environ.get("BAYESRNN_CUDA")
    if wanted == "0":
        return None
    given = os.environ.get("CUDA_HOME")
    places = [Path(given)] if given else [*installed(), *from_pip()]
    found = first_toolkit(places)
    if not found and wanted == "1":
        sys.exit(
            "bayesrnn_cuda: BAYESRNN_CUDA=1, but no CUDA toolkit was found; set CUDA_HOME, or "
            f"pip install 'bayesrnn_cuda[cuda]'. Looked in: {', '.join(map(str, places))}"
        )
    return found


def first_toolkit(places: Iterable[Path]) -> Path | None:
    """The first of these folders with compiler and headers (nvcc on PATH may be a wrapper)."""
    for place in places:
        if (place / "include/cuda_runtime.h").exists() and (place / "bin/nvcc").exists():
            return place
    return None


def installed() -> list[Path]:
    """Where NVIDIA's installers and distributions put it: the newest first."""
    places = sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    nvcc = shutil.which("nvcc")
    return [*places, Path(nvcc).resolve().parent.parent] if nvcc else places


def from_pip() -> list[Path]:
    """Where pip puts the packages of the extra named cuda."""
    return [place / "nvidia/cu13" for place in site_packages()]


def site_packages() -> list[Path]:
    """Where Python finds packages; within pip's build isolation those of the environment too."""
    places = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *sys.path]
    return [Path(place) for place in dict.fromkeys(places) if place]


def library_folder(home: Path) -> Path:
    """The folder of libcudart_static.a: lib64 in an installed toolkit, lib in pip's."""
    folders = [home / "lib64", home / "lib"]
    for folder in folders:
        if (folder / "libcudart_static.a").exists():
            return folder
    sys.exit(
        "bayesrnn_cuda: libcudart_static.a: expected in "
        f"{' or '.join(map(str, folders))}, got neither; install the toolkit's runtime"
    )


def gpu_architectures() -> list[str]:
    """["9.0a", "12.0"] of the GPUs that nvidia-smi lists; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True)
    lines = result.stdout.split() if result.returncode == 0 else []
    numbers = sorted(set(lines), key=lambda text: tuple(map(int, text.split("."))))
    return ["9.0a" if number == "9.0" else number for number in numbers]  # as setup.py names it


if __name__ == "__main__":
    if sys.argv[1:] == ["gpus"]:
        print(";".join(gpu_architectures()))
    elif home := cuda_home():
        print(home)
    else:
        sys.exit(1)

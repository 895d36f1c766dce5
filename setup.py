"""Builds bayesrnn_cuda._C with ninja: C++ once per instruction set, CUDA where nvcc is found.

torch is located, never imported: only its headers and libraries are needed, so a build in isolation
serves as well as one without. The extension uses torch's stable ABI and runs under any later torch.

Environment: TORCH_DIR (folder of the torch package), CUDA_HOME, TORCH_CUDA_ARCH_LIST,
BAYESRNN_CUDA=1 (missing CUDA toolkit is an error) or 0 (skip CUDA), CXX.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from ninja import BIN_DIR
from ninja.ninja_syntax import Writer
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CXX_FLAGS = [
    "-std=c++20", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast",
    "-Wall", "-Wno-psabi", "-Wno-maybe-uninitialized",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # 2.10: the oldest torch the library runs under
]  # fmt: skip
# The same engine for each instruction set; which one runs is decided on the user's machine.
ISA_FLAGS = json.loads((CSRC / "cpu/isa/flags.json").read_text())
NVCC_FLAGS = ["-std=c++20", "-O3", "--threads", "2", "-Xcompiler", "-fPIC", "-Xptxas", "-v"]
CUDA_ARCHITECTURES = "8.0;9.0a;10.0;12.0+PTX"


def torch_dir() -> Path:
    """The installed torch package, found by one of its headers."""
    given = os.environ.get("TORCH_DIR")
    places = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *sys.path]
    candidates = [Path(given)] if given else [Path(p) / "torch" for p in places if p]
    for candidate in candidates:
        if (candidate / "include/torch/csrc/stable/library.h").exists():
            return candidate
    sys.exit(
        "bayesrnn_cuda: torch>=2.10 is needed to build; install it first (pip install torch), "
        f"or set TORCH_DIR. Looked in: {', '.join(map(str, dict.fromkeys(candidates)))}"
    )


def cuda_home() -> Path | None:
    """The CUDA toolkit: the folder with include/cuda_runtime.h (nvcc on PATH may be a wrapper)."""
    wanted = os.environ.get("BAYESRNN_CUDA")
    if wanted == "0":
        return None
    given = os.environ.get("CUDA_HOME")
    candidates = [Path(given)] if given else sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    if not given and (nvcc := shutil.which("nvcc")):
        candidates.append(Path(nvcc).resolve().parent.parent)
    for candidate in candidates:
        if (candidate / "include/cuda_runtime.h").exists() and (candidate / "bin/nvcc").exists():
            return candidate
    if wanted == "1":
        sys.exit(
            "bayesrnn_cuda: BAYESRNN_CUDA=1, but no CUDA toolkit was found; set CUDA_HOME. "
            f"Looked in: {', '.join(map(str, candidates)) or 'nowhere'}"
        )
    return None


def architectures() -> list[str]:
    """["8.0", "9.0a", "12.0+PTX"] of TORCH_CUDA_ARCH_LIST."""
    return os.environ.get("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES).replace(" ", ";").split(";")


def gencode_flags() -> list[str]:
    """nvcc flags for the architectures."""
    flags = []
    for arch in architectures():
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it: parallel, and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not build_temp, which pip throws away: a second build compiles only what changed.
        build = ROOT / "build" / "extension"
        build.mkdir(parents=True, exist_ok=True)
        with open(build / "build.ninja", "w") as file:
            self.write_rules(Writer(file, width=100), target)
        ninja = Path(BIN_DIR) / "ninja"
        command = [str(ninja) if ninja.exists() else "ninja", "-C", str(build)]
        subprocess.run(command + (["-v"] if self.verbose > 1 else []), check=True)

    def write_rules(self, out: Writer, target: Path) -> None:
        torch, cuda = torch_dir(), cuda_home()
        out.variable("cxx", os.environ.get("CXX", "g++"))
        built_for = ";".join(architectures()) if cuda else ""
        flags = [*CXX_FLAGS, f'-DBRNN_CUDA_ARCHITECTURES="{built_for}"']
        flags += ["-isystem", str(torch / "include")]
        if cuda:
            flags += ["-DBRNN_CUDA", "-isystem", str(cuda / "include")]
        out.variable("flags", shlex.join(flags))
        out.rule(
            "cxx", "$cxx $flags $isa -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc"
        )
        out.rule("link", "$cxx -shared $in -o $out $libraries")

        objects = []
        for source in cxx_sources(cuda is not None):
            isa = ISA_FLAGS[source.stem] if source.parent.name == "isa" else []
            name = "_".join(source.relative_to(CSRC).with_suffix(".o").parts)
            objects += out.build(name, "cxx", str(source), variables={"isa": shlex.join(isa)})
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-static-libgcc"]
        if cuda:
            nvcc = [str(cuda / "bin/nvcc"), *NVCC_FLAGS, *gencode_flags()]
            # What ptxas says of each kernel is kept for tests/kernels.py, the rest is shown.
            kept = "^ptxas info|^    [0-9]+ bytes stack frame|^$$"
            out.rule(
                "nvcc",
                f"{shlex.join(nvcc)} -MMD -MF $out.d -c $in -o $out 2> $out.ptxas; code=$$?; "
                f"grep -Ev '{kept}' $out.ptxas >&2; exit $$code",
                depfile="$out.d",
                deps="gcc",
            )
            for source in sorted((CSRC / "cuda").rglob("*.cu")):
                name = "_".join(source.relative_to(CSRC).with_suffix(".cu.o").parts)
                log = f"{name}.ptxas"
                objects += out.build(name, "nvcc", str(source), implicit_outputs=[log])
            # cudart is linked in, so that the library also loads where there is no CUDA.
            libraries += [f"-L{cuda / 'lib64'}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        out.build(str(target), "link", objects, variables={"libraries": shlex.join(libraries)})
        out.default(str(target))


def cxx_sources(cuda: bool) -> list[Path]:
    """Every .cpp under csrc that is meant for this machine's processor, and for CUDA or not."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    skipped = set() if cuda else {CSRC / "cuda/torch_host.cpp"}  # the others make no CUDA call
    return [
        source
        for source in sorted(CSRC.rglob("*.cpp"))
        if source not in skipped
        and (source.parent.name != "isa" or x86 or source.stem == "portable")
    ]


setup(
    ext_modules=[Extension("bayesrnn_cuda._C", ["csrc/ops.cpp"], py_limited_api=True)],
    cmdclass={"build_ext": NinjaBuild},
)

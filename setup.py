"""Builds bayesrnn_cuda._C with ninja: C++ once per instruction set, CUDA where nvcc is found.

torch is located, never imported: only its headers and libraries are needed, so a build in isolation
serves as well as one without. The extension uses torch's stable ABI and runs under any later torch.

Environment: TORCH_DIR (folder of the torch package), CUDA_HOME, TORCH_CUDA_ARCH_LIST,
BAYESRNN_CUDA=1 (missing CUDA toolkit is an error) or 0 (skip CUDA), CXX. The toolkit may be pip's:
building/cuda_toolkit.py finds it.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from ninja import BIN_DIR
from ninja.ninja_syntax import Writer
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build in isolation does not look there
from building.cuda_toolkit import cuda_home, library_folder, site_packages  # noqa: E402
from building.old_glibc import link_stubs  # noqa: E402

CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "extension"
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
    candidates = [Path(given)] if given else [place / "torch" for place in site_packages()]
    for candidate in candidates:
        if (candidate / "include/torch/csrc/stable/library.h").exists():
            return candidate
    sys.exit(
        "bayesrnn_cuda: torch>=2.10 is needed to build; install it first (pip install torch), "
        f"or set TORCH_DIR. Looked in: {', '.join(map(str, candidates))}"
    )


def architectures() -> list[str]:
    """["8.0", "9.0a", "12.0+PTX"] of TORCH_CUDA_ARCH_LIST."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    return given.replace(" ", ";").split(";")


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
        BUILD.mkdir(parents=True, exist_ok=True)
        with open(BUILD / "build.ninja", "w") as file:
            write_rules(Writer(file, width=100), target)
        ninja = Path(BIN_DIR) / "ninja"
        command = [str(ninja) if ninja.exists() else "ninja", "-C", str(BUILD)]
        subprocess.run(command + (["-v"] if self.verbose > 1 else []), check=True)


def write_rules(out: Writer, target: Path) -> None:
    """What ninja does: sources to objects, objects to the library `target`."""
    torch, cuda = torch_dir(), cuda_home()
    out.variable("cxx", os.environ.get("CXX", "g++"))
    out.variable("flags", shlex.join([*CXX_FLAGS, "-isystem", str(torch / "include")]))
    out.rule(
        "cxx", "$cxx $flags $more -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc"
    )
    out.rule("link", "$cxx -shared $in -o $out $libraries")
    objects = []
    for source in cxx_sources(cuda is not None):
        more = shlex.join(source_flags(source, cuda))
        objects += out.build(object_name(source), "cxx", relative(source), variables={"more": more})
    libraries = link_stubs(BUILD / "old_glibc", shlex.split(os.environ.get("CXX", "g++")))
    libraries += [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    if cuda:
        objects += write_cuda_rules(out, cuda)
        # cudart is linked in, so that the library also loads where there is no CUDA.
        libraries += [f"-L{library_folder(cuda)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    out.build(str(target), "link", objects, variables={"libraries": shlex.join(libraries)})
    out.default(str(target))


def write_cuda_rules(out: Writer, cuda: Path) -> list[str]:
    """The rules for nvcc; returns the objects."""
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
    objects = []
    for source in sorted((CSRC / "cuda").rglob("*.cu")):
        name = object_name(source)
        objects += out.build(name, "nvcc", relative(source), implicit_outputs=[f"{name}.ptxas"])
    return objects


def object_name(source: Path) -> str:
    """cuda_plan_plan.o of csrc/cuda/plan/plan.cpp, cuda_x.cu.o of csrc/cuda/x.cu."""
    suffix = ".cu.o" if source.suffix == ".cu" else ".o"
    return "_".join(source.relative_to(CSRC).with_suffix(suffix).parts)


def relative(source: Path) -> str:
    """As seen from BUILD: the commands stay the same where the tree and its objects are copied."""
    return os.path.relpath(source, BUILD)


def source_flags(source: Path, cuda: Path | None) -> list[str]:
    """Beyond CXX_FLAGS. The CPU engine has nothing of CUDA, so its objects serve both builds."""
    if source.is_relative_to(CSRC / "cpu"):
        return ISA_FLAGS[source.stem] if source.parent.name == "isa" else []
    flags = [f'-DBRNN_CUDA_ARCHITECTURES="{";".join(architectures()) if cuda else ""}"']
    return [*flags, "-DBRNN_CUDA", "-isystem", str(cuda / "include")] if cuda else flags


def cxx_sources(cuda: bool) -> list[Path]:
    """Every .cpp under csrc that is meant for this machine's processor, and for CUDA or not."""
    isas = instruction_sets(platform.machine())
    without = set() if cuda else {"torch_host"}  # the others of csrc/cuda make no CUDA call
    return [
        source
        for source in sorted(CSRC.rglob("*.cpp"))
        if source.stem not in without and (source.parent.name != "isa" or source.stem in isas)
    ]


def instruction_sets(machine: str) -> set[str]:
    """Which files of csrc/cpu/isa a processor can use, by the name of platform.machine()."""
    if machine in ("x86_64", "AMD64"):
        return ISA_FLAGS.keys() - {"neon"}
    return {"portable", "neon"} if machine in ("aarch64", "arm64") else {"portable"}


setup(
    ext_modules=[Extension("bayesrnn_cuda._C", ["csrc/ops.cpp"], py_limited_api=True)],
    cmdclass={"build_ext": NinjaBuild},
)

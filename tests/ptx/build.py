"""Compiles what the tests execute: the engines by nvcc, once for each architecture, and the machine
(machine/) that runs their PTX, by g++. Ninja does what has changed, in build/ptx/<architecture>.

An object of the engines holds their host code, which is linked to the machine, and their PTX, which
is cut out of it. What ptxas says of registers stands beside it.
"""

import fcntl
import functools
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

from ninja import BIN_DIR

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT))
from building import cuda_toolkit  # noqa: E402

HERE = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "ptx"
PARALLEL = "2"
ARCHITECTURES = ("80", "90a", "100", "120")
UNITS = sorted((CSRC / "cuda/instantiations").glob("*.cu"))
HOST_SOURCES = [
    *sorted((HERE / "machine").glob("*.cpp")),
    *sorted(p for p in (CSRC / "cuda").rglob("*.cpp") if p.stem != "torch_host"),
]
# Contraction would change results; the instructions are those of x86-64 processors since 2013.
CXX_FLAGS = (
    "-std=c++20 -O2 -ftree-vectorize -g1 -fPIC -ffp-contract=off -fno-strict-aliasing -Wall -Wextra"
    " -Wno-unknown-pragmas -Wno-psabi -mavx2 -mfma -mf16c"
)


@functools.cache
def setup() -> dict:
    """The names of setup.py, which knows how kernels are compiled."""
    with mock.patch("setuptools.setup"), mock.patch.object(sys, "argv", ["setup.py"]):
        return runpy.run_path(str(ROOT / "setup.py"))


@functools.cache
def cuda_home() -> Path | None:
    """The toolkit that a build would use, also where it is told to leave CUDA out."""
    environment = {k: v for k, v in os.environ.items() if k != "BAYESRNN_CUDA"}
    with mock.patch.dict(os.environ, environment, clear=True):
        return cuda_toolkit.cuda_home()


def nvcc_flags(arch: str) -> list[str]:
    """Those of the product, for one architecture: its code, for ptxas to speak of, and its PTX."""
    code = f"-gencode=arch=compute_{arch},code=[compute_{arch},sm_{arch}]"
    # -lineinfo writes .loc into the PTX and changes no code.
    return [*setup()["NVCC_FLAGS"], code, "-lineinfo", "--no-compress"]


def rules(arch: str) -> str:
    cuda = cuda_home()
    nvcc = shlex.join([str(cuda / "bin/nvcc"), *nvcc_flags(arch)])
    include = f"-I{CSRC} -isystem {cuda / 'include'}"
    lines = [
        "rule nvcc",
        f"  command = {nvcc} -I{CSRC} -MMD -MF $out.d -c $in -o $out 2> $out.ptxas "
        "|| (cat $out.ptxas >&2; exit 1)",
        *("  depfile = $out.d", "  deps = gcc"),
        "rule cxx",
        f"  command = {os.environ.get('CXX', 'g++')} {CXX_FLAGS} {include} -MMD -MF $out.d -c $in "
        "-o $out",
        *("  depfile = $out.d", "  deps = gcc"),
        "rule link",  # -Bsymbolic: a process may have a real CUDA runtime too, in torch
        "  command = g++ -shared -Wl,-Bsymbolic,-z,defs $in -o $out",
    ]
    objects = [f"{unit.stem}.o" for unit in UNITS]
    for unit, target in zip(UNITS, objects, strict=True):
        lines.append(f"build {target} | {target}.ptxas: nvcc {unit}")
    for unit in (HERE / "test_kernels.cu", ROOT / "bench/gpu/probes.cu"):
        target = f"{unit.stem}.o"
        lines.append(f"build {target} | {target}.ptxas: nvcc {unit}")
    for source in HOST_SOURCES:
        objects.append(f"host_{source.stem}.o")
        lines.append(f"build {objects[-1]}: cxx {source}")
    lines.append(f"build layer.so: link {' '.join(objects)}")
    return "\n".join([*lines, ""])


@functools.cache
def build(arch: str, *targets: str) -> Path:
    """The folder of an architecture, where `targets` are up to date: layer.so, test_kernels.o."""
    folder = CACHE / arch
    folder.mkdir(parents=True, exist_ok=True)
    text = rules(arch)
    with open(folder / "lock", "w") as lock:  # other processes may build in the same folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = folder / "build.ninja"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        ninja = Path(BIN_DIR) / "ninja"
        command = [str(ninja) if ninja.exists() else "ninja", "-C", str(folder), "-j", PARALLEL]
        result = subprocess.run([*command, *targets], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"sm_{arch}:\n{result.stdout}{result.stderr}")
    return folder


def ptx_of(target: Path) -> str:
    """The PTX inside an object: text that a zero ends, as --no-compress leaves it."""
    found = re.findall(rb"\.version [0-9.]+\n\.target [^\0]*", target.read_bytes())
    if len(found) != 1:
        raise RuntimeError(f"{target.name}: expected PTX once, found it {len(found)} times")
    return found[0].decode()


def registers_of(target: Path) -> dict[str, int]:
    """What ptxas gave each kernel of an object."""
    log = Path(f"{target}.ptxas").read_text()
    pairs = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", log, re.S)
    return {name: int(count) for name, count in pairs}

"""Builds kernels for the emulator: ninja compiles the core, a binding and its kernels.

    kernels = build.module("bind_gate_gemm")  # tests/emulator/bind_gate_gemm.cpp, imported
    kernels.configure(schedule="random", seed=3, yields=0.1)
    build.module("bind_plan", "csrc/cuda/plan/plan.cpp")  # with further sources

Three variants: "plain" (-O2), "race" (the kernels call the race detector at every access) and
"address" (address and undefined-behaviour sanitizers), which needs a process of its own:

    EMULATOR_VARIANT=race pytest tests/emulator/test_gate_gemm.py
    python tests/emulator/build.py address -m pytest tests/emulator/test_gate_gemm.py
"""

import fcntl
import functools
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
from ninja import BIN_DIR

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "emulator"

WARNINGS = "-Wall -Wextra -Wno-unknown-pragmas -Wno-psabi"
COMMON = f"-std=c++20 -fPIC -fvisibility=hidden -fno-gnu-unique {WARNINGS}"
# What a variant adds to the core, to the kernels and to every link. The core is never instrumented:
# its fibers and the detector itself must not be seen by what watches the kernels.
VARIANTS = {
    "plain": ("", "-O2 -g1", ""),
    "race": (
        "-DEMULATOR_RACE",
        "-O1 -g -fsanitize=thread --param tsan-instrument-func-entry-exit=0",
        "",
    ),
    "address": (
        "-DEMULATOR_ADDRESS",
        # What is left out doubles the time of compilation and belongs to host code.
        "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined "
        "-fno-sanitize=vptr,null,return,object-size,pointer-overflow",
        "-fsanitize=address,undefined",
    ),
}


class EmulatorError(RuntimeError):
    """A launch ended with a report: deadlock, livelock, divergence, data race, misuse."""


def schedules(seeds: int = 2, yields: float = 0.1) -> list[dict]:
    """Arguments of configure(): round robin once, the other schedules with each seed."""
    some = [{"schedule": "round_robin"}]
    for seed in range(1, seeds + 1):
        for name in ("random", "block_priority"):
            some.append({"schedule": name, "seed": seed, "yields": yields})
    return some


def current_variant() -> str:
    return os.environ.get("EMULATOR_VARIANT", "plain")


def module(name: str, *sources: str, variant: str | None = None) -> ModuleType:
    """The binding tests/emulator/<name>.cpp, built if anything it includes has changed.

    `sources`: what else is linked to it, from the repository's root.
    """
    variant = variant or current_variant()
    if variant == "address" and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        raise RuntimeError("variant address: run through `python tests/emulator/build.py address`")
    return load(name, build(name, sources, variant))


@functools.cache
def load(name: str, library: Path) -> ModuleType:
    # pybind11 keeps one module per full name, and variants may share a process.
    full_name = f"{library.parent.name}.{name}"
    spec = importlib.util.spec_from_file_location(full_name, library)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    if hasattr(loaded, "_raise"):
        loaded._raise(EmulatorError)
    return loaded


@functools.cache
def build(name: str, sources: tuple[str, ...], variant: str) -> Path:
    folder = CACHE / variant
    folder.mkdir(parents=True, exist_ok=True)
    library, rules = folder / f"{name}.so", folder / f"{name}.ninja"
    text = ninja_file(name, sources, variant)
    with open(folder / "lock", "w") as lock:  # other processes may build in the same folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not rules.exists() or rules.read_text() != text:
            rules.write_text(text)
        ninja = Path(BIN_DIR) / "ninja"
        program = str(ninja) if ninja.exists() else "ninja"
        command = [program, "-C", str(folder), "-f", rules.name, library.name]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{name}, variant {variant}:\n{result.stdout}{result.stderr}")
    return library


def ninja_file(name: str, sources: tuple[str, ...], variant: str) -> str:
    core, kernels, link = VARIANTS[variant]
    python = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}"
    lines = [
        "rule compile",
        f"  command = g++ {COMMON} $flags -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = g++ -shared {link} $in -o $out $libraries",
    ]

    def objects(paths: list[Path], flags: str) -> str:
        """Compiles the sources; the names of their objects."""
        names = []
        for path in paths:
            names.append(str(path.relative_to(ROOT)).replace("/", "_") + ".o")
            lines.extend([f"build {names[-1]}: compile {path}", f"  flags = {flags}"])
        return " ".join(names)

    emulator = f"libemulator_{variant}.so"  # names differ: two variants may share a process
    core_objects = objects(sorted((HERE / "core").glob("*.cpp")), f"-O3 -g1 {core}")
    lines += [
        f"build {emulator}: link {core_objects}",
        f"  libraries = -Wl,-Bsymbolic -Wl,-soname,{emulator} -ldl",
    ]
    flags = f"{kernels} -I{HERE} -I{ROOT / 'csrc'} {python}"
    own_objects = objects([HERE / f"{name}.cpp", *(ROOT / source for source in sources)], flags)
    lines += [
        f"build {name}.so: link {own_objects} | {emulator}",
        f"  libraries = -L. -lemulator_{variant} -Wl,-rpath,'$$ORIGIN'",
    ]
    return "\n".join(lines) + "\n"


def address_environment() -> dict[str, str]:
    """For a process whose Python is not instrumented: the sanitizer comes first."""
    names = ("libasan.so", "libstdc++.so.6")  # the first looks for functions of the second
    files = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in names
    ]
    options = "detect_leaks=0:alloc_dealloc_mismatch=0:detect_stack_use_after_return=0"
    return os.environ | {
        "LD_PRELOAD": " ".join(files),
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "EMULATOR_VARIANT": "address",
    }


def run_address(*arguments: str) -> subprocess.CompletedProcess:
    """Python with these arguments under the address sanitizer, from this folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE,
        env=address_environment(),
        capture_output=True,
        text=True,
    )


if __name__ == "__main__":
    if sys.argv[1:2] != ["address"]:
        sys.exit(__doc__)
    os.execve(sys.executable, [sys.executable, *sys.argv[2:]], address_environment())

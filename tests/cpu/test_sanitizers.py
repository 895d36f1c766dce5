"""The CPU engine under the address, undefined-behaviour and thread sanitizers, without torch.

Each instruction set takes the better part of a minute to compile. In the reduced form one of them
stands for what is the same code for all; the full one has every one, compared with each other.
"""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_cpu_engine import AVAILABLE

ROOT = Path(__file__).resolve().parents[2]
ISA_FLAGS = json.loads((ROOT / "csrc/cpu/isa/flags.json").read_text())
# The constants of csrc/cpu/engine.h, the one that every machine has first.
CONSTANTS = {
    "portable": "kPortable", "neon": "kNeon", "avx2": "kAvx2", "avx512": "kAvx512",
    "avx512_bf16": "kAvx512Bf16", "amx": "kAmx",
}  # fmt: skip
# Linked, run where supported.
ALL = [name for name in CONSTANTS if name in AVAILABLE or ("avx2" in AVAILABLE and name != "neon")]
ONE = ALL[:2][-1:]  # with vectors where there are any


def build(folder: Path, sanitizer: str, names: list[str]) -> Path:
    """The driver with the CPU engine for these instruction sets, compiled under `sanitizer`."""
    compiler = shutil.which("g++")
    assert compiler, "g++: expected on PATH, it also builds the package"
    flags = ["-std=c++20", "-O1", "-g1", "-ffp-contract=fast", "-Wno-psabi", f"-I{ROOT / 'csrc'}"]
    flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    linked = ", ".join(f"&cpu::{CONSTANTS[name]}" for name in names)
    sources = {ROOT / f"csrc/cpu/isa/{name}.cpp": ISA_FLAGS[name] for name in names}
    sources[ROOT / "csrc/cpu/phases.cpp"] = []
    sources[ROOT / "tests/sanitize/driver.cpp"] = [f"-DISAS={linked}"]

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        command = [compiler, *flags, *sources[source], "-c", str(source), "-o", target]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "driver"
    subprocess.run([compiler, *flags, *objects, "-pthread", "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    ("sanitizer", "names"),
    [
        ("address,undefined", ONE),
        ("thread", ["portable"]),  # what threads share is the same code for all
        pytest.param("address,undefined", ALL, marks=pytest.mark.slow),
    ],
    ids=["address of one", "thread", "address of all"],
)
def test_engine_runs_clean(sanitizer, names, tmp_path):
    program = build(tmp_path, sanitizer, names)
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("runs, 0 failures\n")

"""The CPU engine under the address, undefined-behaviour and thread sanitizers, without torch."""

import json
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ISA_FLAGS = json.loads((ROOT / "csrc/cpu/isa/flags.json").read_text())
X86 = platform.machine() in ("x86_64", "AMD64")


def build(folder: Path, sanitizer: str) -> Path:
    """The driver with the CPU engine, compiled under `sanitizer`.

    Of the instruction sets, threads need one: what they share is the same code for all.
    """
    compiler = shutil.which("g++")
    assert compiler, "g++: expected on PATH, it also builds the package"
    flags = ["-std=c++20", "-O1", "-g1", "-ffp-contract=fast", "-Wno-psabi", f"-I{ROOT / 'csrc'}"]
    flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    names = list(ISA_FLAGS) if X86 and sanitizer != "thread" else ["portable"]
    flags += ["-DPORTABLE_ONLY"] if names == ["portable"] else []
    sources = {ROOT / f"csrc/cpu/isa/{name}.cpp": ISA_FLAGS[name] for name in names}
    sources[ROOT / "tests/sanitize/driver.cpp"] = []

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


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_engine_runs_clean(sanitizer, tmp_path):
    program = build(tmp_path, sanitizer)
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("runs, 0 failures\n")

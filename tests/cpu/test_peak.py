"""The peak that benchmarks measure layers by."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_cpu_engine import AVAILABLE, in_process

ROOT = Path(__file__).resolve().parents[2]
ISA_FLAGS = json.loads((ROOT / "csrc/cpu/isa/flags.json").read_text())
ROUNDS = 1 << 20
# Independent sums of a thread, and floats in each.
CHAINS = {
    "portable": (12, 4), "avx2": (12, 8), "avx512": (24, 16), "avx512_bf16": (24, 16),
    "amx": (24, 16), "neon": (24, 4),
}  # fmt: skip


@pytest.mark.skipif("avx2" not in AVAILABLE, reason="compiles for x86-64")
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_chain_is_computed(isa, tmp_path):
    """In the loop stands a product for each: a compiler makes equal sums once, and counts all."""
    source = tmp_path / "peak.cpp"
    source.write_text(
        '#define BRNN_ISA here\n#include "cpu/peak.h"\n'
        "double peak() { return brnn::here::count_products(); }\n"
    )
    compiler = shutil.which("g++")
    assert compiler, "g++: expected on PATH, it also builds the package"
    flags = ["-std=c++20", "-O3", "-ffp-contract=fast", "-Wno-psabi", f"-I{ROOT / 'csrc'}"]
    command = [compiler, *flags, *ISA_FLAGS[isa], "-S", str(source), "-o", "-"]
    code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    product = "mulps" if isa == "portable" else r"vfmadd\d+ps"
    loops = re.findall(r"^(\.L\d+):\n((?:\t.*\n)*?)\tjne\t\1$", code, re.M)
    assert max(len(re.findall(product, body)) for _, body in loops) == CHAINS[isa][0]


@pytest.mark.parametrize("isa", AVAILABLE)
def test_products_are_counted(isa):
    code = "import torch, bayesrnn_cuda; torch.set_num_threads(2)\n"
    process = in_process(isa, code + "print(torch.ops.bayesrnn.cpu_products())")
    assert process.returncode == 0, process.stderr
    chains, lanes = CHAINS[isa]
    assert float(process.stdout) == 2 * ROUNDS * chains * lanes

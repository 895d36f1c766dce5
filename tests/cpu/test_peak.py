"""The peak that benchmarks measure layers by, and the clocks of the engine's phases."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from test_cpu_engine import AVAILABLE, in_process

import bayesrnn_cuda as brnn

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
        "double peak() { return brnn::here::count_fmas(); }\n"
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
    process = in_process(isa, code + "print(torch.ops.bayesrnn.cpu_fmas())")
    assert process.returncode == 0, process.stderr
    chains, lanes = CHAINS[isa]
    assert float(process.stdout) == 2 * ROUNDS * chains * lanes


def phases_of(layer: torch.nn.Module, x: torch.Tensor, *, on: bool) -> tuple[dict, dict]:
    """Seconds of forward and of backward."""
    torch.ops.bayesrnn.cpu_phases(on)
    y = layer(x)[0]
    forward = json.loads(torch.ops.bayesrnn.cpu_phases(on))
    y.sum().backward()
    return forward, json.loads(torch.ops.bayesrnn.cpu_phases(False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("flags", [("lstm", {}), ("gru", {"reset_after": False})], ids=str)
def test_phases_are_timed_when_asked_for(two_threads, flags, dtype):
    cell, options = flags
    kind = {"lstm": brnn.BayesianLSTM, "gru": brnn.BayesianGRU}[cell]
    layer = kind(40, 60, input_dropout=0.25, recurrent_dropout=0.25, dtype=dtype, **options)
    x = torch.randn(9, 13, 40, dtype=dtype, requires_grad=True)
    forward, backward = phases_of(layer, x, on=True)
    in_both = {"pack weights", "input product", "recurrent product", "gates"}
    in_forward = in_both | {"pack input", "pack hidden"}
    in_backward = in_both | {"pack operands", "turn dz", "weight products"}
    if dtype == torch.bfloat16:
        in_backward |= {"convert"}
    assert {name for name, seconds in forward.items() if seconds > 0} == in_forward
    assert {name for name, seconds in backward.items() if seconds > 0} == in_backward
    assert phases_of(layer, x, on=False) == (dict.fromkeys(forward, 0), dict.fromkeys(forward, 0))

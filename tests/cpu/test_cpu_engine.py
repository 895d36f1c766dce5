"""The C++ CPU engine: each instruction set, threads, its sigmoid and tanh, NaN and Inf."""

import ctypes
import itertools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from math import inf, nan
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from alone import run_each_alone
from cases import (
    CELLS,
    Case,
    differences,
    large,
    outputs,
    parity,
    product,
    run,
    sample,
)

import bayesrnn_cuda as brnn

pytestmark = pytest.mark.usefixtures("two_threads")

# Tails of vectors of 2 to 16 units, one row and more than a block of 12, masks, lengths, resets.
EACH_VARIANT = [
    *product(cell=CELLS, T=(3,), B=(13,), I=(5,), H=(1, 7, 19, 33), masks=("untied",)),
    *product(cell=CELLS, T=(3,), B=(1,), masks=("none", "tied"), lengths=(True,), reverse=(True,)),
    *product(cell=CELLS, T=(3,), strided=(True,), bias=(False,)),
    *product(cell=CELLS, T=(5,), B=(13,), H=(19,), resets=("random",), reverse=(False, True)),
]
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


# ---- sigmoid and tanh, as the gates i and g of an LSTM whose only input is the argument


def activations(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sigmoid, tanh) of x [N] as the engine computes them; a zero keeps its sign."""
    parts = []
    for some in x.split(8192):  # all at once would need much scratch memory
        zero = x.new_zeros(len(some), 1)
        *_, gates, _ = torch.ops.bayesrnn.lstm(
            some.view(1, -1, 1), zero, zero, x.new_ones(4, 1), x.new_full((4, 1), -0.0),
            x.new_full((4,), -0.0), x.new_full((4,), -0.0), None, None, None, None,
        )  # fmt: skip
        parts.append(gates[0])
    gates = torch.cat(parts)
    return gates[:, 0], gates[:, 2]


def ulps(actual: torch.Tensor, exact: np.ndarray) -> float:
    """Largest error in units of the last place that the exact value has in the dtype of actual."""
    values = actual.numpy()
    last_place = np.spacing(np.abs(exact).astype(values.dtype)).astype(np.longdouble)
    return float((np.abs(values - exact) / last_place).max())


def exact_activations(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(sigmoid, tanh) in more digits than float64 has: torch's own are no better than ours."""
    wide = x.numpy().astype(np.longdouble)
    return 1 / (1 + np.exp(-wide)), np.tanh(wide)


def sweep() -> torch.Tensor:
    """Floats of both signs from the smallest to 128, evenly in their bits, and 100,000 in 0..10."""
    bits = np.arange(1, np.float32(128).view(np.int32), 9973, dtype=np.int32)
    positive = torch.from_numpy(bits.view(np.float32))
    positive = torch.cat([positive, torch.linspace(0, 10, 100_001)[1:]])
    return torch.cat([positive, -positive])


def check_activations() -> None:
    x = sweep()
    (sigmoid, tanh), (exact_sigmoid, exact_tanh) = activations(x), exact_activations(x)
    assert ulps(tanh, exact_tanh) <= 3
    assert torch.equal(tanh.signbit(), x.signbit())
    assert tanh.abs().max() <= 1
    # Below -87 e^x leaves the normal floats: there sigmoid stays at e^-87.
    usual = x >= -87
    assert ulps(sigmoid[usual], exact_sigmoid[usual.numpy()]) <= 3
    assert sigmoid.min() >= 0 and sigmoid.max() <= 1
    assert sigmoid[~usual].max() <= 2.0**-125

    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 100, -100, inf, -inf, nan])
    sigmoid, tanh = activations(x)
    assert tanh[:8].tolist() == [0, 0, x[2], x[3], 1, -1, 1, -1]
    assert tanh[:8].signbit().tolist() == x[:8].signbit().tolist()
    assert sigmoid[:5].tolist() == [0.5, 0.5, 0.5, 0.5, 1]
    assert sigmoid[6] == 1 and 0 <= sigmoid[7] <= sigmoid[5] <= 2.0**-125
    assert sigmoid[8].isnan() and tanh[8].isnan()

    # bfloat16 is made to 2^-12 and then rounded, which alone costs up to 2^-8.
    x = torch.linspace(-20, 20, 20_001).bfloat16()
    for value, exact in zip(activations(x), exact_activations(x.double()), strict=True):
        zero = exact == 0
        error = np.abs(value.double().numpy() - exact)[~zero] / np.abs(exact[~zero])
        assert error.max() <= 2.0**-8 + 2.0**-12

    x = torch.cat([torch.linspace(-40, 40, 20_001, dtype=torch.float64), torch.tensor([inf, -inf])])
    for value, exact in zip(activations(x), exact_activations(x), strict=True):
        assert ulps(value, exact) <= 3


def check_bfloat16_rounding() -> None:
    """To the nearest, ties to even: the gradient of the bias of g is the sum of dc_n / 2 here."""
    place = 2.0**-7  # the last one of bfloat16 between 1 and 2
    cases = {
        (1.0, place / 2): 1.0,  # a tie, down
        (1.0 + place, place / 2): 1.0 + 2 * place,  # a tie, up
        (1.0, place / 2, 2.0**-12): 1.0 + place,
        (1.0 + place, place / 2, -(2.0**-12)): 1.0 + place,
        (-1.0 - place, -place / 2): -1.0 - 2 * place,
    }
    for parts, expected in cases.items():
        dc_n = 2 * torch.tensor(parts, dtype=torch.bfloat16).unsqueeze(1)
        zero = torch.zeros_like(dc_n)
        weights = [zero.new_zeros(4, 1, requires_grad=True) for _ in range(2)]
        biases = [zero.new_zeros(4, requires_grad=True) for _ in range(2)]
        *_, c_n, _, _ = torch.ops.bayesrnn.lstm(
            zero.add(1).unsqueeze(0), zero, zero, *weights, *biases, None, None, None, None
        )
        wanted = weights[0], *biases  # x is 1
        for gradient in torch.autograd.grad(c_n, wanted, dc_n):
            assert gradient.flatten()[2].item() == expected


def check_parity() -> None:
    for case in EACH_VARIANT:
        for dtype in DTYPES:
            assert not parity(case, dtype), (case, dtype)
    for case in large():
        if case.masks == "untied" and case.lengths == case.reverse:
            assert not parity(case, torch.float32), case


# ---- Instruction sets. One is chosen per process.


# For a process that imports this file, which imports cases.py of the folder above.
FIND_TESTS = f"import sys; sys.path[:0] = {[str(Path(__file__).parents[i]) for i in (0, 1)]}\n"


def in_process(isa: str, code: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"BAYESRNN_CPU_ISA": isa, "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        [sys.executable, "-c", FIND_TESTS + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


CHECK_VARIANT = """
import bayesrnn_cuda, torch, test_cpu_engine
torch.set_num_threads(2)
test_cpu_engine.check_activations()
test_cpu_engine.check_bfloat16_rounding()
test_cpu_engine.check_parity()
for dtype in test_cpu_engine.DTYPES:
    test_cpu_engine.check_threads(dtype, ["lstm", "gru_reset_before"])
print(bayesrnn_cuda.info()["cpu_instruction_set"])
"""


def available() -> list[str]:
    """What this machine has, best first: as its kernel says, not as the engine does."""
    if platform.machine() == "aarch64":
        return ["neon", "portable"]
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    has = set(flags[1].split()) if flags else set()
    needs = {
        "amx": {"amx_bf16", "amx_tile", "avx512_bf16"},
        "avx512_bf16": {"avx512_bf16", "avx512f"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx2": {"avx2", "fma"},
        "portable": set(),
    }
    return [name for name, flags in needs.items() if flags <= has]


AVAILABLE = available()


@pytest.mark.parametrize("isa", AVAILABLE)
def test_instruction_set(isa):
    """Parity, accuracy and rounding under every instruction set that this machine has."""
    process = in_process(isa, CHECK_VARIANT)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{isa}\n"


def test_unknown_instruction_set():
    """The error stands where the engine is first used, and a second use gives it again."""
    process = in_process(
        "sse9",
        """
import torch, bayesrnn_cuda
for _ in range(2):
    try:
        bayesrnn_cuda.BayesianLSTM(2, 3)(torch.zeros(1, 1, 2))
    except RuntimeError as error:
        print(error)
""",
    )
    assert process.returncode == 0, process.stderr
    names = ", ".join(AVAILABLE)
    message = f"BAYESRNN_CPU_ISA: expected one of {names} on this machine, got 'sse9'"
    assert process.stdout.splitlines() == [message, message]


# ---- Threads and the make-up of a batch


# One step, few rows, parts of one row and of unequal sizes, more threads than sequences, panels of
# 1 to 4 vectors, K in several pieces; each is worth more threads than one.
SHARED = [
    (1, 2, 600), (40, 1, 144), (40, 2, 144), (40, 3, 80), (9, 15, 80), (15, 30, 52), (3, 29, 260),
    (3, 20, 500),
]  # fmt: skip
WAYS = [
    {"masks": "untied"},
    {"masks": "tied", "reverse": True, "resets": "random"},
    {"masks": "none"},
]


def check_threads(dtype: torch.dtype, cells: Iterable[str] = CELLS) -> None:
    for cell, (T, B, H), way in itertools.product(cells, SHARED, WAYS):
        case = Case(cell, T, B, 19 + H, H, lengths=B > 1, **way)
        inputs = sample(case, dtype)
        torch.set_num_threads(1)
        alone = run(case, inputs)
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            shared = run(case, inputs)
            assert not [k for k in alone if not torch.equal(shared[k], alone[k])], (case, threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_number_of_threads(cell, dtype):
    """Outputs and gradients are the same bits."""
    check_threads(dtype, [cell])


def test_threads_flush_subnormals_alike():
    """As the calling one does, which torch.set_flush_denormal is for."""
    case = Case("rnn", T=40, B=20, I=100, H=100, masks="none", bias=False)
    inputs = sample(case, torch.float32)
    small = inputs._replace(x=inputs.x * 1e-38, h0=inputs.h0 * 1e-38)
    outputs(case, small, "cpu")  # begins the second thread, which would start as the first is
    try:
        for flush in (True, False):
            if torch.set_flush_denormal(flush):
                torch.set_num_threads(2)
                shared = outputs(case, small, "cpu")["y"]
                torch.set_num_threads(1)
                assert torch.equal(outputs(case, small, "cpu")["y"], shared)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("B", [1, 5, 30])
@pytest.mark.parametrize("cell", CELLS)
def test_threads_that_share_a_layer(cell, B):
    """More threads than sequences, shares of unequal size: right by the reference."""
    case = Case(cell, T=40, B=B, I=19, H=37, lengths=B > 1)
    inputs = sample(case)
    exact = run(case, inputs, "reference")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert not differences(run(case, inputs), exact)
        assert not differences(run(case, inputs.to(torch.float32)), exact)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_does_not_depend_on_its_batch(cell, reverse):
    """13 sequences, more than a block of rows, equal themselves alone, to rounding."""
    case = Case(cell, T=5, B=13, I=37, H=33, lengths=True, reverse=reverse)
    inputs = sample(case)
    together, alone = run(case, inputs), run_each_alone(case, inputs, "cpu")
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_repeated_calls_give_the_same_bits(cell):
    """No result depends on how threads meet."""
    case = Case(cell, T=20, B=30, H=37)
    inputs = sample(case, torch.float32)
    torch.set_num_threads(3)
    first = run(case, inputs)
    for _ in range(20):
        again = run(case, inputs)
        assert all(torch.equal(again[k], first[k]) for k in first)


# ---- NaN and Inf. What is dropped or lies past a length: test_reference.py, for both engines.


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_spoilt_sequence_spoils_no_other(cell, dtype, value):
    case = Case(cell, B=13, H=19, lengths=True)
    inputs = sample(case, dtype)
    inputs.lengths[3] = case.T
    spoilt = inputs._replace(x=inputs.x.clone())
    spoilt.x[2, 3] = value
    clean, results = run(case, inputs), run(case, spoilt)
    others = torch.arange(case.B) != 3
    for name in ("y", "d_x"):
        assert torch.equal(results[name][:, others], clean[name][:, others])
    for name in results.keys() & {"h_n", "c_n", "d_h0", "d_c0"}:
        assert torch.equal(results[name][others], clean[name][others])
    assert torch.equal(results["y"][:2, 3], clean["y"][:2, 3])  # before it happened
    if value != value:
        assert results["y"][2:, 3].isnan().any(-1).all()
        assert results["d_weight_ih"].isnan().any()


@pytest.mark.parametrize("value", [inf, -inf, 3e38, -3e38])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_infinite_input_saturates_as_the_reference(cell, dtype, value):
    case = Case(cell, masks="none")
    inputs = sample(case, dtype)
    inputs.x[2, 1, 3] = value
    expected = outputs(case, inputs.to(torch.float64), "reference")
    for name, exact in expected.items():
        assert exact.isfinite().all()
        result = outputs(case, inputs, "cpu")[name]
        allowed = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(result.double(), exact, rtol=allowed, atol=allowed)


def test_backward_takes_subnormals_for_zero_and_leaves_the_caller_as_it_was():
    """Gradients that vanish over time made backward 10 to 50 times slower."""
    torch.set_num_threads(2)
    layer = brnn.BayesianLSTM(64, 64)
    x = torch.randn(4, 64, 64, requires_grad=True)
    tiny = torch.tensor(1e-40)
    layer(x)[0].backward(tiny.expand(4, 64, 64))
    assert not any(parameter.grad.any() for parameter in layer.parameters())
    assert not x.grad.any()
    assert (tiny * torch.ones(100_000)).all()  # in torch's threads too
    y, _ = layer(x)
    y[-1].sum().backward()
    assert x.grad[0].any()


def grown_megabytes(calls: int) -> float:
    """Growth of the resident memory over `calls` masked forward and backward passes."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    layer = brnn.BayesianLSTM(50, 50, input_dropout=0.25, recurrent_dropout=0.25)
    x = torch.randn(5, 20, 50, requires_grad=True)
    before = 0
    for call in range(-200, calls):  # the first ones fill caches
        if call == 0:
            before = resident()
        layer(x)[0].sum().backward()
        layer.zero_grad()
        x.grad = None
    return (resident() - before) / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_calls():
    """48 bytes that leak at each call can keep glibc from joining the large blocks around them, and
    a loop then grew by 80 KB a call, or by 1.7 MB.

    Python's own collector is off: it must not be what keeps the memory down.
    """
    program = FIND_TESTS + (
        "import gc, torch, test_cpu_engine as t; gc.disable(); torch.set_num_threads(1); "
        "print(t.grown_megabytes(10_000))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 100


class MallocStatistics(ctypes.Structure):
    """mallinfo2 of glibc from 2.33 on."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


def train_step(layer: torch.nn.Module) -> None:
    layer(torch.ones(5, 20, 50, requires_grad=True))[0].sum().backward()


LSTM, GRU = (
    layer(50, 50, input_dropout=0.25, recurrent_dropout=0.25)
    for layer in (brnn.BayesianLSTM, brnn.BayesianGRU)
)
REFERENCE = brnn.BayesianLSTM(3, 4, recurrent_dropout=0.25, engine="reference")
CALLS = {
    "lstm": lambda: train_step(LSTM),
    "gru": lambda: train_step(GRU),
    "masks": lambda: LSTM.sample_masks(20),
    "reference": lambda: REFERENCE(torch.ones(1, 2, 3)),
}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc's malloc")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_nothing_behind(name):
    """Torch 2.10 to 2.13 leak a `str` argument of an op that takes it as std::string: 48 bytes."""
    malloc_statistics = ctypes.CDLL(None).mallinfo2
    malloc_statistics.restype = MallocStatistics

    def in_use() -> int:
        statistics = malloc_statistics()
        return statistics.uordblks + statistics.hblkhd

    torch.set_num_threads(1)
    rounds = []
    for _ in range(6):  # some fill caches and lists of free objects
        before = in_use()
        for _ in range(100):
            CALLS[name]()
        rounds.append((in_use() - before) / 100)
    assert abs(median(rounds)) < 32, rounds  # the least that malloc gives

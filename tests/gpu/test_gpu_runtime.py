"""What a CUDA op owes its host: streams, graphs, liveness, determinism, devices, messages."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cases
import pytest
import torch
from cases import CELLS, Case, backward_arguments, leaves, op_arguments, outputs, sample
from gpu_layers import BFLOAT16, FLOAT32, FLOAT64, TF32, takers, tf32
from torch import nn
from torch.library import opcheck

import bayesrnn_cuda as brnn
from bayesrnn_cuda import engines

WITH = [
    pytest.param(Case("lstm", T=20, B=16, I=64, H=H), engine, id=f"{engine}-{H}")
    for engine, H in (
        ("block", 64), ("cluster", 128), ("grid", 256), ("grid_flags", 768), ("stepwise", 256),
    )
]  # fmt: skip
WITH += [
    pytest.param(Case("gru", T=20, B=16, I=64, H=256), "grid", id="gru-grid-256"),
    pytest.param(Case("gru_reset_before", T=20, B=16, I=64, H=60), "stepwise", id="gru-before-60"),
]
every_engine = pytest.mark.parametrize(("case", "engine"), WITH)
every_cell = pytest.mark.parametrize("cell", CELLS)


def on_gpu(case, engine="auto", precision=BFLOAT16, device="cuda"):
    """The case's numbers on the GPU; skips where the engine does not take it."""
    if engine != "auto" and engine not in takers(case, precision):
        pytest.skip(f"{engine} does not take {case} here")
    return sample(case, precision.dtype, device=device)


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


# ---- Streams and graphs


@every_engine
def test_side_stream(case, engine):
    """The input is made late on another stream: who reads it elsewhere reads it too early."""
    inputs = on_gpu(case, engine)
    expected = cases.run(case, inputs, engine)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(inputs.x)
        torch.cuda._sleep(20_000_000)
        late.copy_(inputs.x)
        results = cases.run(case, inputs._replace(x=late), engine)
    torch.cuda.current_stream().wait_stream(stream)
    assert equal(results, expected)


def captured(function):
    """(graph, results) of function(), warmed up on a side stream as CUDA graphs ask for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


@pytest.mark.parametrize("backward", [False, True])
@every_engine
def test_graph_capture(case, engine, backward):
    """Captured once, replayed with the numbers of other draws."""
    static = on_gpu(case, engine)

    def function():
        if backward:
            return cases.run(case, static, engine)
        with torch.no_grad():
            return outputs(case, static, engine)

    graph, results = captured(function)
    for seed in (1, 2, 1):
        drawn = sample(case, BFLOAT16.dtype, seed, "cuda")
        for name, value in drawn.tensors().items():
            static.tensors()[name].copy_(value)
        for name, value in drawn.cotangents.items():
            static.cotangents[name].copy_(value)
        graph.replay()
        got = {name: t.clone() for name, t in results.items()}
        assert equal(got, function())


def test_graph_capture_of_several_launches(monkeypatch):
    """Slots are filled again before each, in a replay as well."""
    monkeypatch.setenv("BAYESRNN_GRID_STEPS", "7")
    case = Case("lstm", T=20, B=16, I=64, H=256)
    test_graph_capture(case, "grid", backward=True)


# ---- Layout and devices


@every_cell
def test_tensors_that_begin_anywhere(cell):
    """Slices that start off a 16-byte boundary, as states of a second layer may."""
    case = Case(cell, T=3, B=3, I=5, H=7)
    inputs = on_gpu(case)

    def shifted(t):
        room = t.new_zeros(t.numel() + 1)
        room[1:] = t.flatten()
        return room[1:].view(t.shape)

    moved = inputs.replace_tensors({k: shifted(t) for k, t in inputs.tensors().items()})
    moved = moved._replace(cotangents={k: shifted(t) for k, t in inputs.cotangents.items()})
    assert equal(cases.run(case, moved, "auto"), cases.run(case, inputs, "auto"))


@every_cell
def test_empty_batch(cell):
    case = Case(cell, B=0)
    results = cases.run(case, on_gpu(case), "auto")
    assert results["y"].shape == (case.T, 0, case.H) and results["y"].is_cuda
    assert not any(results[f"d_{name}"].any() for name in ("weight_ih", "weight_hh", "bias_ih"))


@every_cell
def test_second_device(cell):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = Case(cell, B=16, I=40, H=256)
    expected = cases.run(case, on_gpu(case), "auto")
    got = cases.run(case, on_gpu(case, device="cuda:1"), "auto")
    assert all(t.device.index == 1 for t in got.values())
    assert equal({k: t.cpu() for k, t in got.items()}, {k: t.cpu() for k, t in expected.items()})
    assert torch.cuda.current_device() == 0


def test_another_device_than_x():
    case = Case("lstm", lengths=True)
    inputs = on_gpu(case)
    for name, t in inputs.tensors().items():
        if name != "x":
            with pytest.raises(RuntimeError, match=f"{name}: expected device cuda:0 as x, got cpu"):
                outputs(case, inputs.replace_tensors({name: t.cpu()}), "auto")


# ---- What torch expects of an op


@every_cell
def test_opcheck(cell):
    case = Case(cell, T=3, lengths=True, reverse=True)
    inputs = sample(case, torch.float32, device="cuda")
    op, arguments = op_arguments(case, leaves(case, inputs), engine="auto")
    opcheck(op.default, arguments)
    op, arguments = backward_arguments(case, inputs, engine="auto")
    opcheck(op.default, arguments)


@every_cell
def test_fake_kernels_tell_dtype_shape_and_strides(cell):
    case = Case(cell, T=3)
    inputs = on_gpu(case)
    for make in (op_arguments, backward_arguments):
        op, arguments = make(case, inputs, engine="auto")
        fake = op(*(t.to("meta") if isinstance(t, torch.Tensor) else t for t in arguments))
        for a, b in zip(op(*arguments), fake, strict=True):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())


@every_cell
def test_compile(cell):
    case = Case(cell, T=3, lengths=True)
    inputs = leaves(case, on_gpu(case, precision=FLOAT32))
    names = list(inputs.differentiable())

    def f(*values):
        replaced = inputs.replace_tensors(dict(zip(names, values, strict=True)))
        return tuple(outputs(case, replaced, "auto").values())

    values = list(inputs.differentiable().values())
    both = []
    for call in (f, torch.compile(f, backend="aot_eager", fullgraph=True)):
        results = call(*values)
        both.append((*results, *torch.autograd.grad(sum(t.sum() for t in results), values)))
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@every_cell
def test_second_backward_over_a_retained_graph(cell):
    case = Case(cell, B=16, H=256)
    inputs = leaves(case, on_gpu(case))
    y = outputs(case, inputs, "auto")["y"]
    values = list(inputs.differentiable().values())
    first = torch.autograd.grad(y, values, inputs.cotangents["y"], retain_graph=True)
    again = torch.autograd.grad(y, values, inputs.cotangents["y"])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@every_cell
def test_autocast_is_a_conversion_of_every_tensor(cell):
    case = Case(cell, B=5, H=33)
    inputs = on_gpu(case, precision=FLOAT32)
    with torch.autocast("cuda", torch.bfloat16):
        got = outputs(case, inputs, "auto")
    expected = outputs(case, inputs.to(torch.bfloat16), "auto")
    assert equal(got, expected)


# ---- TF32


@every_cell
def test_tf32_follows_cudnn_and_backward_follows_forward(cell):
    """Settings are read once, in forward; the other one gives other numbers."""
    case = Case(cell, B=16, I=64, H=256)
    inputs = on_gpu(case, precision=FLOAT32)

    def run(forward: bool, backward: bool):
        wanted = leaves(case, inputs)
        with tf32(forward):
            y = outputs(case, wanted, "auto")["y"]
        with tf32(backward):
            (d_x,) = torch.autograd.grad(y, wanted.x, inputs.cotangents["y"])
        return y, d_x

    full, coarse = run(False, False), run(True, True)
    if "grid" in takers(case, TF32):
        assert not torch.equal(full[0], coarse[0])
    for forward, expected in ((False, full), (True, coarse)):
        got = run(forward, not forward)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


# ---- Modules and messages


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_modules_equal_those_of_torch(kind, bidirectional, dtype):
    """Without dropout: cuDNN's layers, weights loaded from them, packed input too."""
    options = {"num_layers": 2, "bidirectional": bidirectional, "device": "cuda", "dtype": dtype}
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(40, 96, **options)
    ours = getattr(brnn, f"Bayesian{kind}")(40, 96, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(9, 5, 40, device="cuda", dtype=dtype)
    packed = nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor([9, 2, 5, 1, 7]), enforce_sorted=False
    )
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for given in (x, packed):
        (a, states_a), (b, states_b) = theirs(given), ours(given)
        a, b = (y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y for y in (a, b))
        states_a, states_b = (
            (s,) if isinstance(s, torch.Tensor) else s for s in (states_a, states_b)
        )
        for expected, got in zip((a, *states_a), (b, *states_b), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
        grads = [
            torch.autograd.grad(y.square().sum(), list(module.parameters()))
            for y, module in ((a, theirs), (b, ours))
        ]
        for expected, got in zip(*grads, strict=True):
            largest = expected.abs().max().item()
            torch.testing.assert_close(got, expected, rtol=0, atol=4 * tolerance * max(largest, 1))


@pytest.mark.parametrize("kind", [brnn.BayesianLSTM, brnn.BayesianGRU])
def test_masks_are_drawn_and_reproduced(kind):
    layer = kind(40, 96, input_dropout=0.3, recurrent_dropout=0.3, device="cuda")
    x = torch.randn(9, 5, 40, device="cuda")
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(layer(x)[0])
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_engines_that_cannot_run():
    case = Case("lstm", H=300)
    inputs = on_gpu(case)
    with pytest.raises(
        ValueError, match="engine: expected x on the CPU for 'cpu', got x on cuda:0"
    ):
        outputs(case, inputs, "cpu")
    with pytest.raises(RuntimeError, match=r"engine: expected .* for 'block', got 'block' with H"):
        outputs(case, inputs, "block")
    with pytest.raises(RuntimeError, match=r"engine: expected .* for 'grid'"):
        outputs(case, on_gpu(case, precision=FLOAT64), "grid")
    op, arguments = op_arguments(case, inputs, engine="cpu")
    message = "engine: expected one of auto, block, .*, stepwise, got 'cpu'"
    with pytest.raises(RuntimeError, match=message):
        op(*arguments)
    x = torch.zeros(1, 1, 1, dtype=torch.complex64, device="cuda")
    arguments = [x.new_zeros(1, 1, 1), *(x.new_zeros(1, 1),) * 2, *(x.new_zeros(4, 1),) * 2]
    with pytest.raises(RuntimeError, match=r"x: expected dtype float32, float64, .* on CUDA"):
        op(*arguments, None, None, None, None, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_plan_of_this_gpu(cell, dtype):
    plan = brnn.plan(cell, 35, 20, 650, 650, dtype, "cuda")
    assert plan.engine in engines.ON_CUDA
    assert plan.details["gpu"] == torch.cuda.get_device_name()


# ---- Liveness and determinism

ENDURE = """
import sys, torch, cases
from gpu_layers import BFLOAT16, takers
for cell, H in (("lstm", 64), ("lstm", 128), ("lstm", 768), ("gru", 768), ("gru_reset_before", 60)):
    case = cases.Case(cell, T=12, B=16, I=40, H=H)
    inputs = cases.sample(case, BFLOAT16.dtype, device="cuda")
    for engine in takers(case, BFLOAT16):
        for bad in (float("nan"), float("inf"), -float("inf")):
            for name in ("x", "h0", "weight_hh"):
                broken = torch.full_like(inputs.tensors()[name], bad)
                results = cases.run(case, inputs.replace_tensors({name: broken}), engine)
                torch.cuda.synchronize()
        cotangents = {k: torch.full_like(t, float("nan")) for k, t in inputs.cotangents.items()}
        cases.run(case, inputs._replace(cotangents=cotangents), engine)
        torch.cuda.synchronize()
        print(cell, H, engine, flush=True)
"""


def test_nan_and_infinity_never_hang():
    """In a process of its own, because a kernel that waits for ever cannot be stopped here."""
    tests = Path(__file__).parent
    paths = [str(tests), str(tests.parent), str(tests.parent.parent)]
    program = f"import sys; sys.path[:0] = {paths}\n{ENDURE}"
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@every_engine
def test_what_is_dropped_or_past_a_length_may_be_nan(case, engine):
    case = replace(case, lengths=True, masks="tied")
    inputs = on_gpu(case, engine)
    dropped = ~inputs.masks.keep_x[0]  # [B, I]
    steps = torch.arange(case.T, device="cuda").view(-1, 1, 1)
    past = steps >= inputs.lengths.view(1, -1, 1)
    x = inputs.x.masked_fill(dropped | past, float("nan"))
    zero = inputs.x.masked_fill(dropped | past, 0.0)
    got = cases.run(case, inputs._replace(x=x), engine)
    assert equal(got, cases.run(case, inputs._replace(x=zero), engine))
    assert all(t.isfinite().all() for t in got.values())


@every_engine
def test_a_thousand_runs_are_equal(case, engine):
    """Bit for bit, half of them beside other work that disturbs who runs when."""
    inputs = on_gpu(case, engine)
    ops = [
        op_arguments(case, inputs, engine=engine),
        backward_arguments(case, inputs, engine=engine),
    ]
    first = [t for op, arguments in ops for t in op(*arguments)]
    differs = torch.zeros((), dtype=torch.bool, device="cuda")
    other, noise = torch.cuda.Stream(), torch.randn(1024, 1024, device="cuda")
    for repeat in range(1000):
        if repeat % 2:
            with torch.cuda.stream(other):
                noise @ noise
        again = [t for op, arguments in ops for t in op(*arguments)]
        for a, b in zip(first, again, strict=True):
            differs |= (a != b).any()
    torch.cuda.synchronize()
    assert not differs


@every_cell
def test_two_streams_at_once(cell):
    """Persistent kernels of two streams compete for the same multiprocessors."""
    case = Case(cell, T=50, B=16, I=64, H=512)
    inputs = on_gpu(case)
    expected = cases.run(case, inputs, "auto")
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(cases.run(case, inputs, "auto"))
    torch.cuda.synchronize()
    assert all(equal(r, expected) for r in results)

"""The reference against torch.nn, against numbers worked out by hand, and its derivatives."""

from math import log, nan, tanh

import pytest
import torch
from alone import run_each_alone
from cases import CELLS, Case, differences, outputs, product, run, sample
from torch import nn

from bayesrnn_cuda import functional, reference
from bayesrnn_cuda.masks import LayerMasks
from bayesrnn_cuda.reference import LayerWeights

ENGINES = ("reference", "cpu")  # worked examples hold for both
LN2, LN3 = log(2), log(3)  # sigmoid(ln 3) = 3/4, tanh(ln 2) = 3/5, tanh(ln 3) = 4/5
ANY = 7.0  # a weight that only dropped values meet


def rows(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def keep(*gates) -> torch.Tensor:
    """[G, 1, K] for one sequence."""
    return torch.tensor(gates, dtype=torch.bool).unsqueeze(1)


def check(case: Case, inputs, engine: str, **expected: torch.Tensor) -> None:
    results = outputs(case, inputs, engine)
    for name, value in expected.items():
        torch.testing.assert_close(results[name], value, rtol=0, atol=1e-15)


@pytest.mark.parametrize("engine", ENGINES)
def test_lstm_worked_example(engine):
    """Two steps, p = 1/2, a mask per gate. Gates: 3/4 1/4 3/5 3/4, then 1/2 1/10 3/5 1/4."""
    case = Case("lstm", T=2, B=1, I=2, H=1)
    inputs = sample(case)._replace(
        x=rows([[1, 2]], [[2, 4]]),
        h0=rows([0]),
        c0=rows([4 * LN2 - 9 / 5]),
        weights=LayerWeights(
            weight_ih=rows([LN3 / 2, ANY], [ANY, -LN3 / 4], [LN2, -LN2 / 4], [ANY, ANY]),
            weight_hh=rows([-20 / 9 * LN3], [ANY], [-10 / 9 * LN2], [-20 / 9 * LN3]),
            bias_ih=rows(0, 1, 0, LN3 / 4),
            bias_hh=rows(0, -1, 0, 3 * LN3 / 4),
        ),
        masks=LayerMasks(keep([1, 0], [0, 1], [1, 1], [0, 0]), keep([1], [0], [1], [1]), 2.0, 2.0),
    )
    h1, c2 = 9 / 20, (LN2 + 3) / 10
    h2 = 0.08834803948892166
    assert h2 == pytest.approx(tanh(c2) / 4, abs=1e-16)
    check(case, inputs, engine, y=rows([[h1]], [[h2]]), h_n=rows([h2]), c_n=rows([c2]))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cell", ["gru", "gru_reset_before"])
def test_gru_worked_example(cell, engine):
    """Two steps, p = 1/2, a mask per gate. Gates: 3/4 1/4 3/5, then 1/2 3/4 4/5."""
    case = Case(cell, T=2, B=1, I=3, H=1)
    if cell == "gru":  # r (U h + b): 3/4 (1 + 1/3) = 1, then 1/2 (23/20 + 1/3) = 89/120
        bias, by_state = LN2 / 3, 89 / 120 * LN2
    else:  # U (r h) + b: 3/4 + 1/4 = 1, then 23/40 + 1/4 = 33/40
        bias, by_state = LN2 / 4, 33 / 40 * LN2
    inputs = sample(case)._replace(
        x=rows([[1, 2, 0]], [[23 / 40, -2, (LN3 - by_state) / 2]]),
        h0=rows([1 / 2]),
        weights=LayerWeights(
            weight_ih=rows([LN3, ANY, ANY], [ANY, -LN3 / 4, ANY], [ANY, ANY, 1]),
            weight_hh=rows([-LN3], [ANY], [LN2]),
            bias_ih=rows(1, 2, 0),
            bias_hh=rows(-1, -2, bias),
        ),
        masks=LayerMasks(keep([1, 0, 0], [0, 1, 0], [0, 0, 1]), keep([1], [0], [1]), 2.0, 2.0),
    )
    h1, h2 = 23 / 40, 101 / 160
    check(case, inputs, engine, y=rows([[h1]], [[h2]]), h_n=rows([h2]))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cell", ["gru", "gru_reset_before"])
def test_where_the_reset_gate_acts(cell, engine):
    """Two units that only see each other. r = (3/4, 1/4), z = 1/2, U_n swaps the units of h."""
    case = Case(cell, T=1, B=1, I=1, H=2)
    none = [0, 0]
    inputs = sample(case)._replace(
        x=rows([[1]]),
        h0=rows([1, 2]),
        weights=LayerWeights(
            weight_ih=rows([LN3], [-LN3], [0], [0], [0], [0]),
            weight_hh=rows(none, none, none, none, [0, 2 * LN2], [4 / 3 * LN3, 0]),
            bias_ih=None,
            bias_hh=None,
        ),
        masks=None,
    )
    # before: 1/4 * 2 * 2 ln 2 = ln 2 and 3/4 * 1 * 4/3 ln 3 = ln 3; after: 3 ln 2 and 1/3 ln 3
    n = (3 / 5, 4 / 5) if cell == "gru_reset_before" else (63 / 65, tanh(LN3 / 3))
    check(case, inputs, engine, h_n=rows([n[0] / 2 + 1 / 2, n[1] / 2 + 1]))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cell", CELLS)
def test_everything_dropped(cell, engine):
    """p = 1, no bias: the gates see nothing, every sigmoid is 1/2, every tanh 0; no NaN."""
    case = Case(cell, T=3, masks="all_dropped", bias=False)
    inputs = sample(case)
    if cell == "lstm":
        check(case, inputs, engine, c_n=inputs.c0 / 8, h_n=torch.tanh(inputs.c0 / 8) / 2)
    elif cell == "rnn":
        check(case, inputs, engine, h_n=torch.zeros_like(inputs.h0))
    else:
        check(case, inputs, engine, h_n=inputs.h0 / 8)
    gradients = run(case, inputs, engine)
    assert not gradients["d_x"].any() and not gradients["d_weight_ih"].any()
    assert not gradients["d_weight_hh"].any()


def torch_layer(case: Case, weights: LayerWeights) -> nn.RNNBase:
    """torch.nn's layer with both directions, each with these weights."""
    kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[case.cell]
    layer = kind(case.I, case.H, bias=case.bias, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for suffix in ("l0", "l0_reverse"):
            for name, value in weights._asdict().items():
                if value is not None:
                    getattr(layer, f"{name}_{suffix}").copy_(value)
    return layer


@pytest.mark.parametrize(
    "case",
    product(
        cell=("lstm", "gru", "rnn"),
        T=(1, 7),
        masks=("none",),
        reverse=(False, True),
        bias=(True, False),
    ),
    ids=str,
)
def test_equals_torch(case):
    inputs = sample(case)
    layer = torch_layer(case, inputs.weights)
    x, h0 = inputs.x.clone().requires_grad_(), inputs.h0.clone().requires_grad_()
    states = (h0,)
    if case.cell == "lstm":
        states += (inputs.c0.clone().requires_grad_(),)
    hx = tuple(torch.stack([s, s]) for s in states)
    y, finals = layer(x, hx if case.cell == "lstm" else hx[0])
    finals = finals if case.cell == "lstm" else (finals,)
    side = int(case.reverse)
    results = dict(
        zip(("y", "h_n", "c_n"), (y.chunk(2, -1)[side], *(f[side] for f in finals)), strict=False)
    )
    suffix = "l0_reverse" if case.reverse else "l0"
    names = [k for k, w in inputs.weights._asdict().items() if w is not None]
    wanted = dict(zip(("x", "h0", "c0"), (x, *states), strict=False))
    wanted |= {k: getattr(layer, f"{k}_{suffix}") for k in names}
    loss = sum((results[k] * c).sum() for k, c in inputs.cotangents.items())
    grads = torch.autograd.grad(loss, list(wanted.values()))
    expected = results | {f"d_{k}": g for k, g in zip(wanted, grads, strict=True)}
    assert not differences(run(case, inputs, "reference"), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_equal_each_sequence_alone(cell, reverse, engine):
    case = Case(cell, T=6, B=5, lengths=True, reverse=reverse)
    inputs = sample(case)
    inputs.lengths.copy_(torch.tensor([1, 6, 0, 3, 5]))
    assert not differences(run(case, inputs, engine), run_each_alone(case, inputs, "reference"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_of_no_steps(cell, engine):
    """Its state passes through, and so does the gradient; y is zero."""
    case = Case(cell, lengths=True)
    inputs = sample(case)
    inputs.lengths.zero_()
    results = run(case, inputs, engine)
    assert not results["y"].any() and not results["d_x"].any()
    assert torch.equal(results["h_n"], inputs.h0)
    assert torch.equal(results["d_h0"], inputs.cotangents["h_n"])
    if cell == "lstm":
        assert torch.equal(results["c_n"], inputs.c0)
        assert torch.equal(results["d_c0"], inputs.cotangents["c_n"])
    assert not any(results[f"d_{name}"].any() for name in LayerWeights._fields)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masks", ["tied", "untied"])
def test_derivatives_of_first_and_second_order(cell, masks):
    case = Case(cell, T=3, B=2, I=2, H=2, masks=masks, lengths=True, reverse=masks == "tied")
    inputs = sample(case)
    inputs.lengths.copy_(torch.tensor([3, 2]))
    names = list(inputs.differentiable())

    def f(*values):
        replaced = inputs.replace_tensors(dict(zip(names, values, strict=True)))
        return tuple(outputs(case, replaced, "reference").values())

    values = [t.clone().requires_grad_() for t in inputs.differentiable().values()]
    assert torch.autograd.gradcheck(f, values)
    assert torch.autograd.gradgradcheck(f, values, fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype(cell, dtype):
    case = Case(cell, lengths=True)
    inputs = sample(case, dtype)
    results = run(case, inputs, "reference")
    exact = run(case, inputs.to(torch.float64), "reference")
    for name, value in results.items():
        assert value.dtype == dtype
        # 64 last places: coarse, the fused engines are held to what this makes of them
        allowed = 64 * torch.finfo(dtype).eps * exact[name].abs().max()
        assert (value.double() - exact[name]).abs().max() <= allowed


@pytest.mark.parametrize("cell", CELLS)
def test_engine_reference_is_the_reference(cell):
    """brnn.functional with engine="reference" is the same computation, bit for bit."""
    case = Case(cell, lengths=True, reverse=True)
    inputs = sample(case)
    options = {"lengths": inputs.lengths, "reverse": True} | case.flags
    arguments = (inputs.x, *inputs.states(), inputs.weights, inputs.masks)
    got = getattr(functional, case.kind.name)(*arguments, **options, engine="reference")
    expected = getattr(reference, case.kind.name)(*arguments, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_dropped_is_never_seen(cell, engine):
    """NaN in a dropped input position (of all gates) changes no output and no gradient."""
    case = Case(cell, masks="tied", lengths=True)
    inputs = sample(case)
    dropped = (~inputs.masks.keep_x[0]).expand_as(inputs.x)
    assert dropped.any()
    expected = run(case, inputs, engine)
    actual = run(case, inputs._replace(x=inputs.x.masked_fill(dropped, nan)), engine)
    assert all(torch.equal(actual[k], expected[k]) for k in expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_dropped_state_is_never_seen(engine):
    """The same for h0 of the LSTM, which enters through its mask only."""
    case = Case("lstm", masks="tied")
    inputs = sample(case)
    dropped = ~inputs.masks.keep_h[0]
    assert dropped.any()
    expected = run(case, inputs, engine)
    actual = run(case, inputs._replace(h0=inputs.h0.masked_fill(dropped, nan)), engine)
    assert all(torch.equal(actual[k], expected[k]) for k in expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_what_lies_past_a_length_is_never_seen(cell, reverse, engine):
    """NaN in x and in the gradient of y past a sequence's end changes no output, no gradient."""
    case = Case(cell, B=5, lengths=True, reverse=reverse)
    inputs = sample(case)
    past = (torch.arange(case.T).unsqueeze(1) >= inputs.lengths).unsqueeze(2)
    assert past.any()
    expected = run(case, inputs, engine)
    cotangents = inputs.cotangents | {"y": inputs.cotangents["y"].masked_fill(past, nan)}
    spoilt = inputs._replace(x=inputs.x.masked_fill(past, nan), cotangents=cotangents)
    actual = run(case, spoilt, engine)
    assert all(torch.equal(actual[k], expected[k]) for k in expected)

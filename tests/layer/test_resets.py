"""Segments: a new episode or document begins inside a sequence, with the state zero and the masks
that are there. Each must be what it is when it runs alone.
"""

from math import nan

import pytest
import torch
from alone import run_each_alone
from cases import CELLS, RESETS, Case, differences, leaves, outputs, product, run, sample
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bayesrnn_cuda as brnn

ENGINES = ("reference", "cpu")
KINDS = [brnn.BayesianLSTM, brnn.BayesianGRU, brnn.BayesianRNN]
T, B, I, H = 6, 4, 3, 5  # noqa: E741

every_engine = pytest.mark.parametrize("engine", ENGINES)
every_kind = pytest.mark.parametrize("kind", KINDS)


# ---- One layer in one direction


@every_engine
@pytest.mark.parametrize(
    "case",
    product(
        cell=CELLS, T=(T,), B=(5,), resets=RESETS, reverse=(False, True), lengths=(False, True)
    ),
    ids=str,
)
def test_each_segment_is_as_alone(case, engine):
    """Outputs and gradients, those of h0 and c0 included."""
    inputs = sample(case)
    assert not differences(run(case, inputs, engine), run_each_alone(case, inputs, "reference"))


@every_engine
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_resets_that_are_nowhere_are_none(cell, reverse, engine):
    case = Case(cell, resets="nowhere", lengths=True, reverse=reverse)
    inputs = sample(case)
    got, expected = run(case, inputs, engine), run(case, inputs._replace(resets=None), engine)
    assert all(torch.equal(got[k], expected[k]) for k in expected)


@every_engine
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_resets_past_a_length_are_nowhere(cell, reverse, engine):
    case = Case(cell, B=5, lengths=True, resets="random", reverse=reverse)
    inputs = sample(case)
    past = torch.arange(case.T).unsqueeze(1) >= inputs.lengths
    assert past.any()
    expected = run(case, inputs._replace(resets=inputs.resets & ~past), engine)
    actual = run(case, inputs._replace(resets=inputs.resets | past), engine)
    assert all(torch.equal(actual[k], expected[k]) for k in expected)


@every_engine
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_another_segment_is_never_seen(cell, reverse, engine):
    """NaN in one segment, and in the state that enters it, stays in it."""
    case = Case(cell, T=T, reverse=reverse)
    inputs = sample(case)
    resets = torch.zeros(T, case.B, dtype=torch.bool)
    resets[2] = True
    first, other = (slice(2, T), slice(0, 2)) if reverse else (slice(0, 2), slice(2, T))
    inputs = inputs._replace(resets=resets)
    spoilt = inputs._replace(x=inputs.x.clone(), h0=inputs.h0 * nan)
    spoilt.x[first] = nan
    expected, actual = run(case, inputs, engine), run(case, spoilt, engine)
    assert actual["y"][first].isnan().all()
    for name in ("y", "d_x"):
        assert torch.equal(actual[name][other], expected[name][other])
    for name in case.outputs[1:]:
        assert torch.equal(actual[name], expected[name])


@every_engine
@pytest.mark.parametrize("cell", CELLS)
def test_a_state_that_does_not_enter_has_no_gradient(cell, engine):
    case = Case(cell, resets="first")
    results = run(case, sample(case), engine)
    assert not results["d_h0"].any()
    assert cell != "lstm" or not results["d_c0"].any()


@every_engine
@pytest.mark.parametrize("cell", CELLS)
def test_in_reverse_the_state_enters_the_last_segment(cell, engine):
    """Even if every step is one."""
    case = Case(cell, reverse=True, resets="random")
    inputs = sample(case)
    inputs = inputs._replace(resets=torch.ones_like(inputs.resets))
    results = run(case, inputs, engine)
    other = run(case, inputs._replace(h0=inputs.h0 + 1), engine)
    assert results["d_h0"].any(dim=1).all()
    assert torch.equal(results["y"][:-1], other["y"][:-1])
    assert not torch.equal(results["y"][-1], other["y"][-1])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_numerical_derivatives(cell, reverse):
    case = Case(cell, T=4, B=2, I=2, H=2, lengths=True, resets="nowhere", reverse=reverse)
    inputs = sample(case)
    inputs.lengths.copy_(torch.tensor([4, 3]))
    inputs.resets[2, 0] = inputs.resets[1, 1] = inputs.resets[0, 1] = True
    names = list(inputs.differentiable())

    def f(*values):
        replaced = inputs.replace_tensors(dict(zip(names, values, strict=True)))
        return tuple(outputs(case, replaced, "cpu").values())

    assert torch.autograd.gradcheck(f, list(leaves(case, inputs).differentiable().values()))


# ---- A module: both directions, all layers, every layout


def module_of(kind, **options):
    torch.manual_seed(3)
    return kind(
        I, H, 2, bidirectional=True, input_dropout=0.3, recurrent_dropout=0.3, dtype=torch.float64,
        **options,
    )  # fmt: skip


def some_resets() -> Tensor:
    """Of every sequence, another number."""
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2, 1] = resets[0, 2] = resets[1, 2] = resets[5, 2] = True
    resets[:, 3] = True
    return resets


def segments_alone(module, x: Tensor, masks, resets: Tensor, lengths) -> tuple[Tensor, ...]:
    """(y, *states) of x [T, B, I], each segment a call of its own with its sequence's masks."""
    y = x.new_zeros(T, B, 2 * H)
    states: list[Tensor] = []
    for b, steps in enumerate(lengths):
        own = [m.index_select(torch.tensor([b])) for m in masks]
        begins = [0, *(t for t in range(1, steps) if resets[t, b])]
        for begin, end in zip(begins, [*begins[1:], steps], strict=True):
            piece = x[begin:end, b : b + 1].transpose(0, int(module.batch_first))
            out, finals = module(piece, masks=own)
            y[begin:end, b] = out.reshape(end - begin, 2 * H)
            finals = finals if isinstance(finals, tuple) else (finals,)
            states = states or [f.new_zeros(4, B, H) for f in finals]
            for state, final in zip(states, finals, strict=True):
                if end == steps:
                    state[::2, b] = final[::2, 0]
                if begin == 0:
                    state[1::2, b] = final[1::2, 0]
    return y, *states


def results_of(module, loss_of, x: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of x and of every parameter."""
    x = x.clone().requires_grad_()
    values = loss_of(x)
    loss = sum((v * torch.linspace(-1, 1, v.numel()).view_as(v)).sum() for v in values)
    return [*values, *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.parametrize("layout", ["dense", "packed"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
@every_kind
def test_segments_of_a_module(kind, engine, batch_first, layout):
    module = module_of(kind, batch_first=batch_first, engine=engine)
    resets = some_resets()
    lengths = (4, 5, T, 3) if layout == "packed" else (T,) * B
    masks = module.sample_masks(B)

    def together(x):
        x, given = (x.transpose(0, 1), resets.t()) if batch_first else (x, resets)
        if layout == "packed":
            x = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        y, states = module(x, masks=masks, resets=given)
        if layout == "packed":
            y, _ = pad_packed_sequence(y, batch_first)
        states = states if isinstance(states, tuple) else (states,)
        return (y.transpose(0, 1) if batch_first else y), *states

    x = torch.randn(T, B, I, dtype=torch.float64)
    got = results_of(module, together, x)
    expected = results_of(module, lambda x: segments_alone(module, x, masks, resets, lengths), x)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_without_a_batch(kind, batch_first):
    module = module_of(kind, batch_first=batch_first).eval()
    x, resets = torch.randn(T, I, dtype=torch.float64), some_resets()[:, 2]
    y, states = module(x, resets=resets)
    batched, batched_states = module(
        x.unsqueeze(dim := 1 - batch_first), resets=resets.unsqueeze(dim)
    )
    assert torch.equal(y, batched.squeeze(dim))
    states = states if isinstance(states, tuple) else (states,)
    batched_states = batched_states if isinstance(batched_states, tuple) else (batched_states,)
    for a, b in zip(states, batched_states, strict=True):
        assert torch.equal(a, b.squeeze(1))
    assert not torch.equal(y, module(x)[0])


@every_kind
def test_hx_enters_where_there_is_no_reset(kind):
    module = kind(I, H, dtype=torch.float64).eval()
    x, h0 = torch.randn(T, B, I, dtype=torch.float64), torch.randn(1, B, H, dtype=torch.float64)
    hx = (h0, h0) if kind is brnn.BayesianLSTM else h0
    resets = some_resets()
    y, from_zero = module(x, hx, resets=resets)[0], module(x, resets=resets)[0]
    entered = ~resets[0]
    assert torch.equal(y[0][~entered], from_zero[0][~entered])
    assert (y[0][entered] != from_zero[0][entered]).any(1).all()


@every_kind
def test_autocast(kind):
    module = kind(I, H, recurrent_dropout=0.3)
    x, resets, masks = torch.randn(T, B, I), some_resets(), module.sample_masks(B)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = module(x, masks=masks, resets=resets)
    expected, _ = module(x, masks=masks, resets=resets)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.02)


@every_kind
def test_samples_as_batch(kind):
    """mc_predict repeats resets with the input."""
    module = kind(I, H, recurrent_dropout=0.5)
    x, resets = torch.randn(T, B, I), some_resets()

    def predicted(**options):
        torch.manual_seed(1)
        arguments = {"samples": 300, "batch_dim": 1, "output_batch_dim": 1, **options}
        return brnn.mc_predict(
            FirstResult(module), x, module_kwargs={"resets": resets}, **arguments
        ).mean

    torch.testing.assert_close(predicted(), predicted(chunk=1), rtol=0, atol=0.1)


class FirstResult(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, **options):
        return self.module(x, **options)[0]


# ---- What is refused

WRONG = {
    "dense": (False, "resets: expected shape [6, 4] (T, B), got [4, 6]"),
    "batch_first": (True, "resets: expected shape [4, 6] (B, T), got [6, 4]"),
}


@pytest.mark.parametrize("layout", WRONG)
@every_kind
def test_wrong_shape(kind, layout):
    batch_first, message = WRONG[layout]
    module = kind(I, H, batch_first=batch_first)
    x, resets = torch.randn(T, B, I), some_resets()
    given = (x.transpose(0, 1), resets) if batch_first else (x, resets.t())
    with pytest.raises(ValueError) as error:
        module(given[0], resets=given[1])
    assert str(error.value) == message


@every_engine
@every_kind
def test_other_wrong_resets(kind, engine):
    module = kind(I, H, engine=engine, bidirectional=True)
    x, resets = torch.randn(T, B, I), some_resets()
    with pytest.raises(ValueError, match=r"resets: expected shape \[6\] \(T\), got \[6, 4\]"):
        module(x[:, 0], resets=resets)
    with pytest.raises(ValueError, match="resets: expected dtype bool, got int64"):
        module(x, resets=resets.long())
    with pytest.raises(ValueError, match="resets: expected device cpu as x, got meta"):
        module(x, resets=resets.to("meta"))
    with pytest.raises(TypeError, match="resets: expected a tensor or None, got list"):
        module(x, resets=resets.tolist())

"""The fused ops against the reference, and what torch expects of an op."""

from dataclasses import replace

import cases
import pytest
import torch
from cases import (
    CELLS,
    Case,
    backward_arguments,
    leaves,
    op_arguments,
    outputs,
    parity,
    product,
    run,
    sample,
)
from torch.library import opcheck

from bayesrnn_cuda.reference import LayerWeights

pytestmark = pytest.mark.usefixtures("two_threads")

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
# A few cases that together take every branch: for what is slow or says nothing about numbers.
FEW = [
    *product(cell=CELLS, T=(3,), masks=("untied",), lengths=(True,), reverse=(True,)),
    *product(cell=CELLS, T=(3,), masks=("untied",), resets=("random",)),
    *product(cell=CELLS, T=(1,), masks=("tied",), strided=(True,)),
    *product(cell=CELLS, T=(2,), masks=("none",), bias=(False,)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", [*cases.sizes_and_masks(), *cases.variations(), *cases.large()], ids=str
)
def test_parity(case, dtype):
    """Every output and every gradient equals the reference's; tolerances stand in cases.py."""
    assert not parity(case, dtype)


@pytest.mark.parametrize("cell", CELLS)
def test_expanded_tensors_equal_their_copies(cell):
    """Strides of 0: every sequence has the same input, state and mask."""
    case = Case(cell, B=5)
    inputs = sample(case)
    m = inputs.masks
    expanded = inputs._replace(
        x=inputs.x[:, :1].expand_as(inputs.x),
        h0=inputs.h0[:1].expand_as(inputs.h0),
        masks=m._replace(
            keep_x=m.keep_x[:, :1].expand_as(m.keep_x), keep_h=m.keep_h[:, :1].expand_as(m.keep_h)
        ),
        cotangents={"y": inputs.cotangents["y"][:1].expand(case.T, -1, -1)},
    )
    copies = {k: t.contiguous() for k, t in expanded.tensors().items()}
    copied = expanded.replace_tensors(copies)._replace(
        cotangents={"y": expanded.cotangents["y"].contiguous()}
    )
    got, expected = run(case, expanded), run(case, copied)
    assert all(torch.equal(got[k], expected[k]) for k in expected)


# ---- The comparison itself must be able to fail: bugs planted on the reference's side.


def another_mask(inputs):
    return inputs.masks._replace(keep_x=inputs.masks.keep_x.roll(1, 0))


def missing_mask(inputs):
    return inputs.masks._replace(keep_h=None)


def wrong_scale(inputs):
    return inputs.masks._replace(scale_h=1.0)


def one_mask_for_all(inputs):
    return inputs.masks._replace(keep_h=inputs.masks.keep_h[:1])


def gates_swapped(inputs):
    gates = [t.chunk(inputs.masks.keep_x.shape[0]) for t in inputs.weights]
    return LayerWeights(*(torch.cat([t[1], t[0], *t[2:]]) for t in gates))


def transposed(inputs):
    H = inputs.h0.shape[1]
    blocks = inputs.weights.weight_hh.reshape(-1, H, H).transpose(1, 2)
    return inputs.weights._replace(weight_hh=blocks.reshape(-1, H))


def biases_swapped(inputs):
    w = inputs.weights
    return w._replace(bias_ih=w.bias_hh, bias_hh=w.bias_ih)


PLANTED = {
    "masks of the input belong to other gates": lambda i: i._replace(masks=another_mask(i)),
    "mask of the state is missing": lambda i: i._replace(masks=missing_mask(i)),
    "scale of the state is missing": lambda i: i._replace(masks=wrong_scale(i)),
    "one mask for all gates": lambda i: i._replace(masks=one_mask_for_all(i)),
    "lengths are one too long": lambda i: i._replace(lengths=(i.lengths + 1).clamp(max=len(i.x))),
    "lengths are one too short": lambda i: i._replace(lengths=(i.lengths - 1).clamp(min=0)),
    "lengths are ignored": lambda i: i._replace(lengths=None),
    "resets are one step late": lambda i: i._replace(resets=i.resets.roll(1, 0)),
    "resets are those of another sequence": lambda i: i._replace(resets=i.resets.roll(1, 1)),
    "resets are ignored": lambda i: i._replace(resets=None),
    "gates are swapped": lambda i: i._replace(weights=gates_swapped(i)),
    "recurrent weights are transposed": lambda i: i._replace(weights=transposed(i)),
    "biases are swapped": lambda i: i._replace(weights=biases_swapped(i)),
    "h0 is ignored": lambda i: i._replace(h0=torch.zeros_like(i.h0)),
    "gradient of y is shifted": lambda i: i._replace(
        cotangents=i.cotangents | {"y": i.cotangents["y"].roll(1, 0)}
    ),
    "gradient of h_n is missing": lambda i: i._replace(
        cotangents={k: t for k, t in i.cotangents.items() if k != "h_n"}
    ),
}


# Only where n resets after U do the two biases differ in what they do. One gate has no other.
_SWAPPED = "biases are swapped"
_OF_GATES = (
    "masks of the input belong to other gates", "one mask for all gates", "gates are swapped",
)  # fmt: skip
NO_BUG_IN = {"lstm": (_SWAPPED,), "gru_reset_before": (_SWAPPED,), "rnn": (_SWAPPED, *_OF_GATES)}
PLANTED_IN = {cell: Case(cell, lengths=True, resets="random") for cell in CELLS}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_without_a_planted_bug_there_is_none(cell, dtype):
    assert not parity(PLANTED_IN[cell], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("cell", "bug"),
    [(c, b) for c in CELLS for b in PLANTED if b not in NO_BUG_IN.get(c, ())],
)
def test_planted_bug_is_found(cell, bug, dtype, monkeypatch):
    """The parity check reports a reference that is wrong in one small way."""
    case = PLANTED_IN[cell]
    plant, honest = PLANTED[bug], cases.run

    def run_wrongly(case, inputs, engine):
        return honest(case, plant(inputs) if engine == "reference" else inputs, engine)

    monkeypatch.setattr(cases, "run", run_wrongly)
    assert parity(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_another_cell_is_found(cell, dtype):
    """Direction, and where the GRU resets, are told apart too."""
    case = Case(cell)
    inputs = sample(case, dtype)
    others = [replace(case, reverse=True)]
    if case.flags:
        others.append(replace(case, cell="gru" if cell != "gru" else "gru_reset_before"))
    for other in others:
        expected = run(other, inputs.to(torch.float64), "reference")
        assert cases.differences(run(case, inputs.to(torch.float64), "cpu"), expected)


# ---- What torch expects of an op


@pytest.mark.parametrize("case", FEW, ids=str)
def test_gradcheck(case):
    small = replace(case, T=min(case.T, 2), B=2, I=2, H=3)
    inputs = sample(small)
    names = list(inputs.differentiable())

    def f(*values):
        replaced = inputs.replace_tensors(dict(zip(names, values, strict=True)))
        return tuple(outputs(small, replaced, "cpu").values())

    values = [t.detach().requires_grad_() for t in inputs.differentiable().values()]
    assert torch.autograd.gradcheck(f, values)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_opcheck_forward(case):
    op, arguments = op_arguments(case, leaves(case, sample(case, torch.float32)))
    opcheck(op.default, arguments)


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_forward_without_saving(cell):
    op, arguments = op_arguments(Case(cell), sample(Case(cell), torch.float32), save=False)
    opcheck(op.default, arguments)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_opcheck_backward(case):
    inputs = sample(case, torch.float32)
    op, arguments = backward_arguments(case, inputs, need_dx=case.masks != "tied")
    opcheck(op.default, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_fake_kernels_tell_dtype_shape_and_strides(case, dtype):
    """What the meta device answers is what the engine makes, for forward and backward."""
    inputs = sample(case, dtype)

    def on_meta(arguments):
        return [t.to("meta") if isinstance(t, torch.Tensor) else t for t in arguments]

    for save in (True, False):
        op, arguments = op_arguments(case, inputs, save=save)
        for real, fake in zip(op(*arguments), op(*on_meta(arguments)), strict=True):
            assert (fake.dtype, fake.shape, fake.stride()) == (
                real.dtype, real.shape, real.stride(),
            )  # fmt: skip
    for need_dx in (True, False):
        op, arguments = backward_arguments(case, inputs, need_dx=need_dx)
        for real, fake in zip(op(*arguments), op(*on_meta(arguments)), strict=True):
            assert (fake.dtype, fake.shape, fake.stride()) == (
                real.dtype, real.shape, real.stride(),
            )  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivative_is_refused(cell):
    case = Case(cell)
    inputs = leaves(case, sample(case))
    y = outputs(case, inputs, "cpu")["y"]
    (d_x,) = torch.autograd.grad(y.square().sum(), inputs.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; use engine='reference'"):
        torch.autograd.grad(d_x.sum(), inputs.x)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_second_backward_over_a_retained_graph(case):
    inputs = leaves(case, sample(case, torch.float32))
    y = outputs(case, inputs, "cpu")["y"]
    wanted = list(inputs.differentiable().values())
    first = torch.autograd.grad(y, wanted, inputs.cotangents["y"], retain_graph=True)
    second = torch.autograd.grad(y, wanted, inputs.cotangents["y"])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_nothing_is_mutated(case, dtype):
    """Arguments of forward and of backward, saved tensors included, stay as they were, bitwise."""
    inputs = sample(case, dtype)
    for make in (op_arguments, backward_arguments):
        op, arguments = make(case, inputs)
        tensors = [t for t in arguments if isinstance(t, torch.Tensor)]
        before = [(t.clone(), t._version) for t in tensors]
        results = op(*arguments)
        for tensor, (value, version) in zip(tensors, before, strict=True):
            assert torch.equal(tensor, value) and tensor._version == version
        memory = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
        assert not any(t.untyped_storage().data_ptr() in memory for t in results if t.numel())


@pytest.mark.parametrize("cell", CELLS)
def test_masks_decide_the_output(cell):
    """The same masks give the same output, bit for bit; others give another."""
    case = Case(cell)
    inputs = sample(case)
    other = inputs._replace(masks=sample(case, seed=1).masks)
    first = outputs(case, inputs, "cpu")["y"]
    assert torch.equal(first, outputs(case, inputs, "cpu")["y"])
    assert not torch.equal(first, outputs(case, other, "cpu")["y"])


@pytest.mark.parametrize("masks", ["tied", "untied"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_mask_is_held_for_all_steps(cell, masks):
    """x changes in one dropped feature only, at one step or another: y stays."""
    case = Case(cell, B=1, masks=masks)
    inputs = sample(case)
    keep_x = inputs.masks.keep_x.clone()
    keep_x[:, :, 2] = False
    inputs = inputs._replace(masks=inputs.masks._replace(keep_x=keep_x))
    expected = outputs(case, inputs, "cpu")["y"]
    for t in range(case.T):
        x = inputs.x.clone()
        x[t, :, 2] += 1
        assert torch.equal(outputs(case, inputs._replace(x=x), "cpu")["y"], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_save_is_needed_where_a_gradient_is(cell):
    case = Case(cell)
    op, arguments = op_arguments(case, leaves(case, sample(case)), save=False)
    with pytest.raises(RuntimeError, match=r"save: expected True .*, got False"):
        op(*arguments)
    with torch.no_grad():
        results = op(*arguments)
    assert all(t.shape[0] == 0 for t in results[len(case.outputs) :])


@pytest.mark.parametrize("cell", CELLS)
def test_saving_does_not_change_the_output(cell):
    case = Case(cell, lengths=True)
    op, arguments = op_arguments(case, sample(case, torch.float32))
    without = op_arguments(case, sample(case, torch.float32), save=False)[1]
    states = len(case.outputs)
    for a, b in zip(op(*arguments)[:states], op(*without)[:states], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_empty_batch(cell):
    """B = 0: results of the right shape, and no sequence means a zero gradient of the weights."""
    case = Case(cell, B=0)
    for engine in ("cpu", "reference"):
        results = run(case, sample(case, torch.float32), engine)
        assert results["y"].shape == (case.T, 0, case.H)
        assert results["h_n"].shape == results["d_h0"].shape == (0, case.H)
        assert results["d_x"].shape == (case.T, 0, case.I)
        for name in LayerWeights._fields:
            value = results[f"d_{name}"]
            assert value.shape == getattr(sample(case).weights, name).shape
            assert not value.any()


@pytest.mark.parametrize("cell", CELLS)
def test_inference_mode(cell):
    case = Case(cell)
    inputs = sample(case)
    with torch.inference_mode():
        results = outputs(case, inputs, "cpu")
    expected = outputs(case, inputs, "cpu")
    assert all(torch.equal(results[k], expected[k]) for k in expected)


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_is_a_conversion_of_every_tensor(cell):
    """As for nn.LSTM: bfloat16 inside and out, gradients in the dtype of what was given."""
    case = Case(cell, lengths=True)
    inputs = sample(case, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(case, inputs._replace(cotangents=inputs.to(torch.bfloat16).cotangents))
    expected = run(case, inputs.to(torch.bfloat16))
    for name, value in results.items():
        assert value.dtype == (torch.float32 if name.startswith("d_") else torch.bfloat16)
        assert torch.equal(value.bfloat16(), expected[name])

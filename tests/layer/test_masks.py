"""The masks of a layer: when they are drawn, what they do, and those that do not fit."""

import math

import pytest
import torch
from mask_cases import (
    CELLS,
    GATES,
    B,
    H,
    I,
    T,
    assert_close,
    assert_rate,
    every_cell,
    keeps,
    make,
    sequences,
)
from torch import nn

import bayesrnn_cuda as brnn


def by_hand(module, x, masks):
    """Layers and directions of `module` composed from the reference, from a zero state."""
    masks = iter(masks)
    finals = []
    zero = x.new_zeros(x.shape[1], module.hidden_size)
    for layer in range(module.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: module.num_directions]:
            weights = module.layer_weights(f"l{layer}{suffix}")
            options = {"masks": next(masks), "reverse": bool(suffix)}
            options |= {flag: getattr(module, flag) for flag in module.cell.flags}
            run = getattr(brnn.reference, module.cell.name)
            y, *final = run(x, *(zero,) * module.cell.states, weights, **options)
            outputs.append(y)
            finals.append(final)
        x = torch.cat(outputs, dim=-1)
    return x, [torch.stack(states) for states in zip(*finals, strict=True)]


# When masks are drawn


@every_cell
@pytest.mark.parametrize("tie_gates", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_training_equals_the_composition_by_hand(
    cell, tie_gates, bidirectional, num_layers, engine
):
    module = make(
        cell, num_layers=num_layers, bidirectional=bidirectional, tie_gates=tie_gates, engine=engine
    )
    x = sequences()
    torch.manual_seed(1)
    y, states = module(x)
    torch.manual_seed(1)
    expected_y, expected_states = by_hand(module, x, module.sample_masks(B))
    assert_close(y, expected_y)
    assert_close(list(states) if cell == "lstm" else [states], expected_states)


def test_training_of_gru_with_reset_before():
    module = make("gru", num_layers=2, reset_after=False)
    x, masks = sequences(), module.sample_masks(B)
    assert_close(module(x, masks=masks)[0], by_hand(module, x, masks)[0])


@every_cell
def test_batch_first_and_unbatched_inputs_take_the_same_masks(cell):
    module = make(cell)
    x, masks = sequences(), module.sample_masks(B)
    y = module(x, masks=masks)[0]
    module.batch_first = True
    assert torch.equal(module(x.transpose(0, 1), masks=masks)[0], y.transpose(0, 1))
    one = [m.index_select(torch.tensor([1])) for m in masks]
    assert_close(module(x[:, 1], masks=one)[0], y[:, 1])


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_masks_of_a_packed_input_belong_to_the_sequences_as_given(cell, bidirectional):
    module = make(cell, num_layers=2, bidirectional=bidirectional)
    xs, masks = [sequences(n, I) for n in (2, 5, 4)], module.sample_masks(3)
    packed, _ = module(nn.utils.rnn.pack_sequence(xs, enforce_sorted=False), masks=masks)
    for b, y in enumerate(nn.utils.rnn.unpack_sequence(packed)):
        one = [m.index_select(torch.tensor([b])) for m in masks]
        assert_close(y, module(xs[b], masks=one)[0])


@every_cell
def test_retained_masks_over_windows_equal_one_long_run(cell):
    module = make(cell, num_layers=2)
    x, masks = sequences(8, B, I), module.sample_masks(B)
    whole, _ = module(x, masks=masks)
    first, state = module(x[:3], masks=masks)
    second, _ = module(x[3:], state, masks=masks)
    assert_close(torch.cat([first, second]), whole)
    redrawn, _ = module(x[3:], state)
    assert not torch.allclose(redrawn, second)


@every_cell
def test_each_training_call_draws_anew(cell):
    module, x = make(cell), sequences()
    assert not torch.allclose(module(x)[0], module(x)[0])


@every_cell
def test_eval_uses_no_masks(cell):
    module, x = make(cell, num_layers=2), sequences()
    plain = make(cell, num_layers=2, p_x=0.0, p_h=0.0)
    plain.load_state_dict(module.state_dict())
    before = torch.get_rng_state()
    assert torch.equal(module.eval()(x)[0], plain(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


@every_cell
def test_given_masks_hold_in_every_mode(cell):
    module, x = make(cell), sequences()
    masks = module.sample_masks(B)
    trained = module(x, masks=masks)[0]
    assert torch.equal(module.eval()(x, masks=masks)[0], trained)
    with brnn.mc_dropout(module):
        assert torch.equal(module(x, masks=masks)[0], trained)


@every_cell
def test_manual_seed_reproduces(cell):
    module, x = make(cell, num_layers=2), sequences()
    outputs = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        outputs.append(module(x)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@every_cell
def test_generator_overrides_and_spares_the_global_one(cell):
    module = make(cell, num_layers=2, bidirectional=True)
    before = torch.get_rng_state()
    first, second, other = (
        keeps(module.sample_masks(B, generator=torch.Generator().manual_seed(seed)))
        for seed in (4, 4, 5)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@every_cell
@pytest.mark.parametrize("mode", ["train", "eval", "mc_dropout"])
def test_backward_works_in_every_mode(cell, mode):
    module, x = make(cell, num_layers=2), sequences().requires_grad_()
    module.train(mode == "train")
    if mode == "mc_dropout":
        with brnn.mc_dropout(module):
            y, _ = module(x)
    else:
        y, _ = module(x)
    y.sum().backward()
    for leaf in (x, *module.parameters()):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


# What sample_masks returns


@every_cell
@pytest.mark.parametrize("tie_gates", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_shapes_of_masks(cell, tie_gates, bidirectional):
    module = make(cell, num_layers=2, bidirectional=bidirectional, tie_gates=tie_gates)
    directions = 2 if bidirectional else 1
    sets = 1 if tie_gates else GATES[cell]
    masks = module.sample_masks(B)
    assert [type(m) for m in masks] == [brnn.LayerMasks] * (2 * directions)
    for index, m in enumerate(masks):
        size = I if index < directions else H * directions
        assert m.keep_x.shape == (sets, B, size)
        assert m.keep_h.shape == (sets, B, H)
        assert m.keep_x.dtype == m.keep_h.dtype == torch.bool
        assert m.scale_x == m.scale_h == 2.0


@every_cell
def test_without_dropout_there_are_no_masks(cell):
    module = make(cell, num_layers=2, p_x=0.0, p_h=0.0)
    before = torch.get_rng_state()
    assert module.sample_masks(B) == [brnn.LayerMasks(None, None, 1.0, 1.0)] * 2
    assert torch.equal(torch.get_rng_state(), before)


@every_cell
def test_input_dropout_per_layer(cell):
    module = make(cell, num_layers=3, bidirectional=True, p_x=(0.0, 0.25, 1.0), p_h=0.0)
    masks = module.sample_masks(500)
    assert all(m.keep_h is None for m in masks)
    assert [m.keep_x is None for m in masks] == [True] * 2 + [False] * 4
    assert [m.scale_x for m in masks] == [1.0] * 2 + [1 / 0.75] * 2 + [0.0] * 2
    for m in masks[2:4]:
        assert_rate(m.keep_x, 0.75)
    assert not any(m.keep_x.any() for m in masks[4:])


@every_cell
def test_dropping_every_input_leaves_the_bias(cell):
    module, x = make(cell, p_x=1.0, p_h=0.0), sequences().requires_grad_()
    y, _ = module(x)
    assert_close(y, module.eval()(torch.zeros_like(x))[0])
    y.sum().backward()
    assert (x.grad == 0).all()
    assert (module.weight_ih_l0.grad == 0).all()
    assert module.bias_ih_l0.grad.abs().sum() > 0


@every_cell
def test_dropping_the_whole_state_leaves_the_bias(cell):
    module, x = make(cell, p_x=0.0, p_h=1.0), sequences()
    y, _ = module(x)
    y.sum().backward()
    assert (module.weight_hh_l0.grad == 0).all()
    assert module.bias_hh_l0.grad.abs().sum() > 0
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    assert_close(y, module.eval()(x)[0])


@every_cell
def test_a_dropped_nan_stays_dropped(cell):
    module, x = make(cell, tie_gates=True), sequences()
    masks = module.sample_masks(B)
    poisoned = torch.where(masks[0].keep_x, x, math.nan)
    assert torch.equal(module(poisoned, masks=masks)[0], module(x, masks=masks)[0])


# Masks that do not fit


def masks_for(batch_size=B, input_size=I, layers=1, cell="lstm"):
    return CELLS[cell](input_size, H, layers, input_dropout=0.5).sample_masks(batch_size)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (masks_for(layers=2), r"masks: expected 1 LayerMasks.*, got 2"),
        ([], r"masks: expected 1 LayerMasks.*, got 0"),
        (masks_for(B + 1), rf"keep_x: expected shape \[4, {B}, {I}\] .*, got \[4, {B + 1}, {I}\]"),
        (
            masks_for(input_size=I + 1),
            rf"keep_x: expected shape \[4, {B}, {I}\] .*, got \[4, {B}, {I + 1}\]",
        ),
        (masks_for(cell="gru"), rf"keep_x: expected shape \[4, {B}, {I}\] .*, got \[3, {B}, {I}\]"),
        (
            [brnn.LayerMasks(keep_h=torch.ones(1, B, H + 1, dtype=torch.bool))],
            rf"keep_h: expected shape \[4, {B}, {H}\] .*, got \[1, {B}, {H + 1}\]",
        ),
        ([brnn.LayerMasks(torch.ones(4, B, I))], r"keep_x: expected dtype bool, got float32"),
        ([torch.ones(4, B, I, dtype=torch.bool)], r"masks: expected .*LayerMasks.*, got .*Tensor"),
        (["keep"], r"masks: expected .*LayerMasks.*, got .*str"),
        (torch.ones(1, B, I, dtype=torch.bool), r"masks: expected .*LayerMasks.*, got .*Tensor"),
    ],
    ids=[
        "too_many", "none", "batch_size", "input_size", "gates", "hidden_size", "dtype",
        "tensors", "strings", "tensor",
    ],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_masks_that_do_not_fit(engine, masks, message):
    module = brnn.BayesianLSTM(I, H, engine=engine)
    of_type = message.endswith(("Tensor", "str"))
    with pytest.raises(TypeError if of_type else ValueError, match=message):
        module(torch.zeros(T, B, I), masks=masks)


def test_one_layermasks_in_place_of_a_list_of_four():
    """A LayerMasks has four fields: it must not pass for the list of a module with four layers."""
    module = brnn.BayesianLSTM(I, I, num_layers=4)
    (masks,) = brnn.BayesianLSTM(I, I, input_dropout=0.5).sample_masks(B)
    with pytest.raises(TypeError, match=r"masks: expected 4 LayerMasks"):
        module(torch.zeros(T, B, I), masks=masks)


def test_masks_on_another_device():
    module = brnn.BayesianLSTM(I, H)
    masks = [brnn.LayerMasks(torch.ones(4, B, I, dtype=torch.bool, device="meta"))]
    with pytest.raises((ValueError, RuntimeError), match=r"keep_x: expected .*cpu.*, got .*meta"):
        module(torch.zeros(T, B, I), masks=masks)

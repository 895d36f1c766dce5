"""Statistics of the masks of a layer: rates, independence, scale, and one mask for all steps."""

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
    assert_independent,
    assert_rate,
    every_cell,
    keeps,
    make,
    sequences,
)

import bayesrnn_cuda as brnn


@every_cell
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("tie_gates", [False, True])
def test_keep_rate(cell, p, tie_gates):
    module = make(cell, p_x=p, p_h=1 - p, tie_gates=tie_gates)
    (masks,) = module.sample_masks(2000)
    for gate in masks.keep_x:
        assert_rate(gate, 1 - p)
    for gate in masks.keep_h:
        assert_rate(gate, p)


@every_cell
@pytest.mark.parametrize("q", [0.25, 0.5, 0.75])
def test_masks_are_independent(cell, q):
    """Of gates, of layers, of directions, of input and state, of sequences, of features."""
    torch.manual_seed(0)
    module = CELLS[cell](
        H, H, num_layers=2, bidirectional=True, input_dropout=1 - q, recurrent_dropout=1 - q
    )
    # every mask's first H features, gate by gate: [masks * G, B, H]
    planes = torch.cat([k[..., :H] for k in keeps(module.sample_masks(2000))])
    assert len(planes) == 4 * 2 * GATES[cell]
    for i in range(len(planes)):
        for j in range(i):
            assert_independent(planes[i], planes[j], q)
        assert_independent(planes[i, 1::2], planes[i, ::2], q)
        assert_independent(planes[i, :, 1::2], planes[i, :, ::2], q)


@every_cell
def test_tied_is_the_same_mask_for_every_gate(cell):
    tied = make(cell, num_layers=2, tie_gates=True)
    x, masks = sequences(), tied.sample_masks(B)
    repeated = [
        m._replace(
            keep_x=m.keep_x.repeat(GATES[cell], 1, 1), keep_h=m.keep_h.repeat(GATES[cell], 1, 1)
        )
        for m in masks
    ]
    assert_close(tied(x, masks=masks)[0], tied(x, masks=repeated)[0])


@every_cell
@pytest.mark.parametrize("tie_gates", [False, True])
def test_dropped_input_features_are_dropped_at_every_step(cell, tie_gates):
    """The output's gradient by a feature is exactly zero at all times, or at none."""
    module = make(cell, p_h=0.0, tie_gates=tie_gates)
    (masks,) = module.sample_masks(50)
    x = sequences(T, 50, I).requires_grad_()
    # not from a zero state: the forget gate of LSTM would see nothing of the first step
    hx = sequences(1, 50, H)
    hx = (hx, hx) if cell == "lstm" else hx
    module(x, hx, masks=[masks])[0].sum().backward()
    dropped = ~masks.keep_x.any(dim=0)  # [B, I]: in every gate
    assert dropped.any()
    assert (~dropped).any()
    assert (x.grad[:, dropped] == 0).all()
    assert (x.grad[:, ~dropped] != 0).all()


@every_cell
@pytest.mark.parametrize("tie_gates", [False, True])
def test_one_call_over_time_equals_one_call_per_step_with_the_same_masks(cell, tie_gates):
    module = make(cell, tie_gates=tie_gates)
    x, masks = sequences(), module.sample_masks(B)
    steps, state = [], None
    for x_t in x.split(1):
        y_t, state = module(x_t, state, masks=masks)
        steps.append(y_t)
    assert_close(torch.cat(steps), module(x, masks=masks)[0])


def test_a_dropped_state_feature_never_enters_a_weight():
    """h_t reaches later outputs through U only (LSTM): where all gates drop it, not at all."""
    module = make("lstm", p_x=0.0, tie_gates=True)
    masks, states = module.sample_masks(B), []
    h, c = sequences(1, B, H).requires_grad_(), sequences(1, B, H)
    for x_t in sequences().split(1):
        h.retain_grad()
        states.append(h)
        y_t, (h, c) = module(x_t, (h, c), masks=masks)
    y_t.sum().backward()  # the last step's output, which is none of `states`
    keep = masks[0].keep_h[0]
    assert keep.any()
    assert (~keep).any()
    for h in states:
        assert (h.grad[0][~keep] == 0).all()
        assert (h.grad[0][keep] != 0).all()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_kept_values_are_scaled_so_that_the_mean_is_the_input(p):
    """E[m / (1 - p)] = 1 with variance p / (1 - p)."""
    torch.manual_seed(0)
    draws = 4000
    masks = CELLS["lstm"](I, H, input_dropout=p, recurrent_dropout=p).sample_masks(draws)[0]
    bound = 5 * math.sqrt(p / (1 - p) / draws)
    for keep, scale in ((masks.keep_x, masks.scale_x), (masks.keep_h, masks.scale_h)):
        assert ((keep.double() * scale).mean(dim=1) - 1).abs().max() < bound


def test_scaled_masks_reach_the_gates():
    """With one gate's weights alone, the layer shows its masked input: tanh(m s w x), s w = 1."""
    lstm = brnn.BayesianLSTM(1, 1, bias=False, input_dropout=0.75, dtype=torch.float64)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.tensor([[0.0], [0.0], [0.25], [0.0]]))
        lstm.weight_hh_l0.zero_()
    x, masks = sequences(1, 40, 1), lstm.sample_masks(40)
    keep = masks[0].keep_x[2]  # gate g
    g = torch.tanh(torch.where(keep, x[0], 0.0))
    _, (_, c) = lstm(x, masks=masks)
    assert_close(c[0], 0.5 * g)  # the input gate stands at sigmoid(0)

"""Small layers with dropout for the tests of masks, and statistics of what they draw."""

import math

import pytest
import torch

import bayesrnn_cuda as brnn

CELLS = {"lstm": brnn.BayesianLSTM, "gru": brnn.BayesianGRU, "rnn": brnn.BayesianRNN}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
T, B, I, H = 5, 3, 4, 6  # noqa: E741

every_cell = pytest.mark.parametrize("cell", CELLS)


def make(cell, *, p_x=0.5, p_h=0.5, **options):
    torch.manual_seed(0)
    return CELLS[cell](
        I, H, **options, input_dropout=p_x, recurrent_dropout=p_h, dtype=torch.float64
    )


def sequences(*shape):
    return torch.randn(shape or (T, B, I), dtype=torch.float64)


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def keeps(masks):
    """Every mask tensor in a list of LayerMasks."""
    return [k for m in masks for k in (m.keep_x, m.keep_h) if k is not None]


def assert_rate(keep, probability):
    """The frequency of True lies within 5 standard deviations of a binomial one."""
    sigma = math.sqrt(probability * (1 - probability) / keep.numel())
    assert abs(keep.double().mean().item() - probability) <= 5 * sigma


def assert_independent(a, b, q):
    """Kept with probability q each, both are kept with probability q * q. Pairs are disjoint."""
    assert_rate(a & b, q * q)

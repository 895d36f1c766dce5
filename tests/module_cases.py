"""The layers beside those of torch that they replace, their layouts and sizes."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import bayesrnn_cuda as brnn

PAIRS = {
    "lstm": (brnn.BayesianLSTM, nn.LSTM),
    "gru": (brnn.BayesianGRU, nn.GRU),
    "rnn": (brnn.BayesianRNN, nn.RNN),
}
CELLS = list(PAIRS)
T, B, I, H = 5, 3, 4, 6  # noqa: E741

LAYOUTS = [
    {"num_layers": layers, "bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    for layers, bias, batch_first, bidirectional in itertools.product(
        (1, 2, 3), (True, False), (False, True), (False, True)
    )
]


def layout_id(layout):
    flags = [name for name in ("batch_first", "bidirectional") if layout[name]]
    return "-".join([str(layout["num_layers"]), *flags, *([] if layout["bias"] else ["no_bias"])])


every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
every_cell = pytest.mark.parametrize("cell", CELLS)


def in_order(cell, *arguments):
    """Positional arguments of nn.LSTM as the cell has them: nn.RNN's fourth is its nonlinearity."""
    return arguments[:3] + ("tanh",) * (cell == "rnn" and len(arguments) > 3) + arguments[3:]


def flat(value):
    """The tensors in nested tuples, None and the index tensors of packed ones left out."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, tuple | list):
        return [tensor for v in value for tensor in flat(v)]
    return [] if value is None else [value]


def make_pair(cell, **layout):
    """Ours and torch's in float64 with the same weights."""
    torch.manual_seed(0)
    ours, theirs = (cls(I, H, **layout, dtype=torch.float64) for cls in PAIRS[cell])
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def states(cell, *shape):
    """A random hx of that shape in float64, as `cell` takes it."""
    tensors = tuple(torch.randn(shape, dtype=torch.float64) for _ in range(2))
    return tensors if cell == "lstm" else tensors[0]


def with_grad(value):
    """A copy of nested tuples whose tensors are leaves that require a gradient."""
    if isinstance(value, PackedSequence):
        return value._replace(data=with_grad(value.data))
    if isinstance(value, tuple | list):
        return tuple(with_grad(v) for v in value)
    return None if value is None else value.detach().clone().requires_grad_()


def run(module, x, hx):
    """(outputs, gradients of a weighted sum of all of them by x, hx and every parameter)."""
    x, hx = with_grad(x), with_grad(hx)
    outputs = flat(module(x, hx))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (out * torch.rand(out.shape, generator=generator, dtype=out.dtype)).sum() for out in outputs
    )
    return outputs, torch.autograd.grad(loss, [*flat((x, hx)), *module.parameters()])


def assert_same(ours, theirs, x, hx=None):
    """Outputs and all gradients of the two modules agree to float64 rounding."""
    for got, expected in zip(run(ours, x, hx), run(theirs, x, hx), strict=True):
        torch.testing.assert_close(list(got), list(expected), rtol=1e-10, atol=1e-12)

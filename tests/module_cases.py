"""The layers beside those of torch that they replace, their layouts and sizes."""

import itertools

import pytest
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

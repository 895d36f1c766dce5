"""What the benchmarks have of each cell: this package's layer, torch's and the reference."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import bayesrnn_cuda as brnn
from bayesrnn_cuda import cells


@dataclass(frozen=True)
class Layers:
    """The layers of one cell."""

    cell: cells.Cell  # gates and carried states
    ours: type[nn.Module]
    theirs: type[nn.Module]

    @property
    def reference(self) -> Callable:
        return getattr(brnn.reference, self.cell.name)


LAYERS = {
    "lstm": Layers(cells.LSTM, brnn.BayesianLSTM, nn.LSTM),
    "gru": Layers(cells.GRU, brnn.BayesianGRU, nn.GRU),
    "rnn": Layers(cells.RNN, brnn.BayesianRNN, nn.RNN),
}

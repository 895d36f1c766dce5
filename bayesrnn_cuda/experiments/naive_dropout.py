"""Naive dropout, which the paper compares with: new masks every step; and states of layers."""

from typing import Any

import torch
from torch import Tensor, nn

State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c): [layers, B, H] each


class StepwiseDropoutRNN(nn.Module):
    """Naive dropout: new masks every step, on the inputs of the layers and nowhere else.

    Args:
        cell: BayesianLSTM or BayesianGRU.
        input_size, hidden_size, num_layers: as of the cell.
        dropout: probability of dropping.
        engine: as of the cell.
    """

    def __init__(
        self,
        cell: type,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        dropout: float,
        engine: str,
    ) -> None:
        super().__init__()
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(cell(size, hidden_size, engine=engine) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, input: Tensor, hx: State | None = None, *, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Arguments and results of the cell with `num_layers` layers."""
        finals = []
        for index, layer in enumerate(self.layers):
            initial = (
                None if hx is None else map_state(lambda part, at=index: part[at : at + 1], hx)
            )
            input, final = layer(self.dropout(input), initial, resets=resets)
            finals.append(final)
        if isinstance(finals[0], tuple):
            return input, tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
        return input, torch.cat(finals)


def detached(state: State) -> State:
    """The state without its history: where back-propagation is truncated."""
    return map_state(Tensor.detach, state)


def map_state(function: Any, state: State) -> State:
    if isinstance(state, tuple):
        return tuple(function(part) for part in state)
    return function(state)

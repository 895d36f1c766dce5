"""What tells one cell from another in Python: the table from which ops, autograd and layers go.

csrc/cells.h has the same of the compiled engines, and their gate algebra; `reference` has the
algebra to read. Nothing else asks what a cell is.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell by the name of its op, of its function in `functional` and `reference`, and in `plan`.

    Its op takes (x, *states, weights and biases, masks, lengths, resets, scales, reverse, *flags,
    ...) and returns (y, *states, gates, *saved).
    """

    name: str
    gates: int  # G
    states: int  # tensors that are carried from step to step: h, or h and c
    saved: int  # results for backward beside the gates
    flags: tuple[str, ...] = ()  # booleans by name, of op, function and module alike

    @property
    def for_backward(self) -> int:
        """Results of the op that only backward reads."""
        return 1 + self.saved


LSTM = Cell("lstm", gates=4, states=2, saved=1)
GRU = Cell("gru", gates=3, states=1, saved=1, flags=("reset_after",))
RNN = Cell("rnn", gates=1, states=1, saved=0)

CELLS = {cell.name: cell for cell in (LSTM, GRU, RNN)}

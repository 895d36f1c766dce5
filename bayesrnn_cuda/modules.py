"""Drop-in recurrent layers with variational dropout."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .cells import GRU, LSTM, RNN
from .checks import check_flag
from .dropout import BayesianEmbedding, LockedDropout
from .masks import LayerMasks
from .recurrent import OneStateLayer, RecurrentLayer

# Those of dropout.py too: whole modules that were saved before it had them are found here.
__all__ = ["BayesianEmbedding", "BayesianGRU", "BayesianLSTM", "BayesianRNN", "LockedDropout"]


class BayesianLSTM(RecurrentLayer):
    """torch.nn.LSTM with variational dropout on inputs and recurrent connections.

    One mask per sequence, gate and layer is held for all time steps (Gal and Ghahramani, 2016,
    section 3). In training new masks are drawn at each call; in `eval()` there are none, which is
    the paper's dropout approximation; under `mc_dropout` they are drawn in `eval()` too.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, bidirectional: as torch.nn.LSTM;
            parameter names and state_dict are the same too.
        dropout: torch's, the probability of dropping what enters every layer but the first; here
            with one mask for all time steps.
        proj_size: only 0, since there are no projections.
        input_dropout: probability of dropping an input feature, a float or one per layer. It takes
            the place of `dropout`.
        recurrent_dropout: probability of dropping a feature of h_{t-1}.
        tie_gates: one mask for all gates instead of one per gate.
        engine: "auto", or a name from `bayesrnn_cuda.info()`.

    All of them are attributes too. Those that do not shape the parameters can be set at any time,
    and are checked as here: `layer.recurrent_dropout = 0.1`.

    Raises:
        ValueError: a size below 1, a probability outside [0, 1], an unknown engine, a proj_size, or
            both dropout and input_dropout.
        TypeError: an argument of another type.
    """

    cell = LSTM
    mode = "LSTM"
    _torch = nn.LSTM

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        masks: Sequence[LayerMasks] | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """(output, (h_n, c_n)), with shapes as torch.nn.LSTM.

        Args:
            input: [T, B, I], [B, T, I] if batch_first, [T, I] unbatched, or a PackedSequence.
            hx: (h_0, c_0), each [layers*D, B, H] or unbatched [layers*D, H]; zeros if None.
            masks: from `sample_masks`; if given, they are used in every mode.
            resets: bool [T, B], [B, T] if batch_first, [T] unbatched: True where a new segment of
                a sequence begins, an episode or a document say: zero enters it as its state, at
                step 0 in place of hx. The reverse direction enters a segment at its last step:
                there zero enters every segment but the last, and hx always enters that one, even
                if all resets are True. Masks stay. Of a PackedSequence as pad_packed_sequence lays
                it out, with this batch_first.

        Raises:
            ValueError: wrong rank, size, dtype or device of an argument, by name. It is a
                RuntimeError too, as torch.nn.LSTM's.
            TypeError: an argument of another type.
        """
        if (leaf := self._as_leaf(input, hx, masks=masks, resets=resets)) is not None:
            return leaf  # type: ignore[return-value]
        output, (h_n, c_n) = self._forward(input, hx, masks, resets)
        return output, (h_n, c_n)


class BayesianGRU(OneStateLayer):
    """torch.nn.GRU with variational dropout on inputs and recurrent connections.

    Arguments as `BayesianLSTM`, and `reset_after`: where the reset gate acts. True is
    torch.nn.GRU, r * (U h + b); False is Cho et al. (2014), U (r * h) + b.
    """

    cell = GRU
    mode = "GRU"
    _torch = nn.GRU
    settings: ClassVar = RecurrentLayer.settings | {"reset_after": check_flag}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        input_dropout: float | Sequence[float] | None = None,
        recurrent_dropout: float = 0.0,
        tie_gates: bool = False,
        reset_after: bool = True,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
            tie_gates=tie_gates, engine=engine, device=device, dtype=dtype,
        )  # fmt: skip
        self.reset_after = reset_after

    def to_torch(self) -> nn.RNNBase:
        """As `BayesianLSTM.to_torch`: the torch.nn.GRU that computes what this does in `eval()`."""
        if not self.reset_after:
            raise ValueError("reset_after: expected True, which is torch.nn.GRU's, got False")
        return super().to_torch()

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


def _check_tanh(name: str, value: str) -> str:
    """The one nonlinearity of a BayesianRNN; ValueError for another, "relu" say."""
    if value != "tanh":
        raise ValueError(f"{name}: expected 'tanh', got {value!r}")
    return value


class BayesianRNN(OneStateLayer):
    """torch.nn.RNN with variational dropout on inputs and recurrent connections (Elman's cell).

    Arguments in the order of torch.nn.RNN, whose fourth is `nonlinearity`: "tanh" and no other. The
    rest, by keyword, as `BayesianLSTM` has them.
    """

    cell = RNN
    mode = "RNN_TANH"
    _torch = nn.RNN
    settings: ClassVar = RecurrentLayer.settings | {"nonlinearity": _check_tanh}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        input_dropout: float | Sequence[float] | None = None,
        recurrent_dropout: float = 0.0,
        tie_gates: bool = False,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first,
            dropout=dropout, bidirectional=bidirectional, proj_size=proj_size,
            input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, tie_gates=tie_gates,
            engine=engine, device=device, dtype=dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity

    @classmethod
    def from_torch(cls, module: nn.RNNBase, **options: Any) -> "BayesianRNN":
        """As `BayesianLSTM.from_torch`, of a torch.nn.RNN whose nonlinearity is tanh."""
        if isinstance(module, nn.RNN):
            _check_tanh("nonlinearity", module.nonlinearity)
        return super().from_torch(module, **options)

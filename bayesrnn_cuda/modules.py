"""Drop-in recurrent layers with variational dropout, and the dropout of words and outputs."""

import math
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import engines, functional
from .masks import (
    DropoutModule,
    LayerMasks,
    apply_mask,
    check_keep,
    check_probability,
    sample_keep,
    sample_layer_masks,
)
from .reference import LayerWeights


def _check_size(name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    return operator.index(value)


def _check_flag(name: str, value: bool) -> bool:
    # nn.LSTM has `dropout` where this package has `bidirectional`: do not take 0.5 for True.
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return value


class _BayesianRNN(DropoutModule):
    """What BayesianLSTM and BayesianGRU share: parameters, masks, layers, directions, layouts."""

    gates: int  # G
    states: int  # tensors in hx: 2 for LSTM, 1 for GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *,
        input_dropout: float | Sequence[float] = 0.0,
        recurrent_dropout: float = 0.0,
        tie_gates: bool = False,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = _check_size("input_size", input_size)
        self.hidden_size = _check_size("hidden_size", hidden_size)
        self.num_layers = _check_size("num_layers", num_layers)
        self.bias = _check_flag("bias", bias)
        self.batch_first = _check_flag("batch_first", batch_first)
        self.bidirectional = _check_flag("bidirectional", bidirectional)
        if isinstance(input_dropout, Sequence) and not isinstance(input_dropout, str):
            if len(input_dropout) != num_layers:
                raise ValueError(
                    f"input_dropout: expected a float or one per layer ({num_layers}), "
                    f"got {len(input_dropout)} values"
                )
        else:
            input_dropout = [input_dropout] * num_layers
        self.input_dropout = tuple(check_probability("input_dropout", p) for p in input_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        self.tie_gates = _check_flag("tie_gates", tie_gates)
        self.engine = engines.check_name(engine)

        rows = self.gates * hidden_size
        for layer, suffix in self._directions():
            columns = self._layer_input_size(layer)
            shapes = {"weight_ih": (rows, columns), "weight_hh": (rows, hidden_size)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for name, shape in shapes.items():
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(f"{name}_{suffix}", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(-1/sqrt(H), 1/sqrt(H)) for every parameter, as torch.nn.LSTM."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def _directions(self) -> Iterator[tuple[int, str]]:
        """(layer, suffix of its parameter names), in the order of hx and of the masks."""
        for layer in range(self.num_layers):
            yield layer, f"l{layer}"
            if self.bidirectional:
                yield layer, f"l{layer}_reverse"

    def _layer_input_size(self, layer: int) -> int:
        return self.input_size if layer == 0 else self.hidden_size * self.num_directions

    def layer_weights(self, suffix: str) -> LayerWeights:
        """The parameters of one layer and direction, by their names' suffix ("l0_reverse")."""
        return LayerWeights(
            getattr(self, f"weight_ih_{suffix}"),
            getattr(self, f"weight_hh_{suffix}"),
            getattr(self, f"bias_ih_{suffix}") if self.bias else None,
            getattr(self, f"bias_hh_{suffix}") if self.bias else None,
        )

    def dropout_of_parameters(self) -> Iterator[tuple[nn.Parameter, float]]:
        """(parameter, probability of dropping what it multiplies): the prior of each weight."""
        for layer, suffix in self._directions():
            w = self.layer_weights(suffix)
            by_input, by_state = self.input_dropout[layer], self.recurrent_dropout
            dropouts = (by_input, by_state, by_input, by_state)
            yield from ((v, p) for v, p in zip(w, dropouts, strict=True) if v is not None)

    def sample_masks(
        self, batch_size: int, *, generator: torch.Generator | None = None
    ) -> list[LayerMasks]:
        """New masks for `batch_size` sequences, one LayerMasks per layer and direction.

        Pass them as `masks=` to hold them over several calls (windows of one sequence, say).
        Drawn on the device of the parameters from torch's generator or from `generator`.
        """
        return [
            sample_layer_masks(
                self.gates,
                batch_size,
                self._layer_input_size(layer),
                self.hidden_size,
                input_dropout=self.input_dropout[layer],
                recurrent_dropout=self.recurrent_dropout,
                tie_gates=self.tie_gates,
                device=self.weight_ih_l0.device,
                generator=generator,
            )
            for layer, _ in self._directions()
        ]

    def _forward(
        self, input: Tensor | PackedSequence, hx: tuple | None, masks: Sequence[LayerMasks] | None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
        """`forward` with hx as a tuple of `states` tensors, in and out."""
        packed = input if isinstance(input, PackedSequence) else None
        lengths = None
        if packed is not None:
            x, lengths = pad_packed_sequence(packed)
            lengths = lengths.to(x.device)
        else:
            x = input
        dtype = self.weight_ih_l0.dtype
        if x.dtype != dtype and not functional.autocast_enabled(x):
            raise ValueError(f"input: expected {dtype}, the dtype of the parameters, got {x.dtype}")
        unbatched = x.dim() == 2
        if x.dim() not in (2, 3):
            raise ValueError(f"input: expected 2 (unbatched) or 3 dimensions, got {x.dim()}")
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"input: expected last dimension {self.input_size} (input_size), got {x.shape[-1]}"
            )
        if unbatched:
            x = x.unsqueeze(1)
        elif self.batch_first and packed is None:
            x = x.transpose(0, 1)
        if x.shape[0] == 0:
            raise ValueError("input: expected a sequence of at least 1 step, got 0")
        hx = self._initial_state(x, hx, unbatched)
        masks = self._masks_for(x.shape[1], masks)

        y, finals = self._run(x, hx, masks, lengths)

        if packed is not None:
            return _pack(y, lengths, packed), finals
        if unbatched:
            return y.squeeze(1), tuple(state.squeeze(1) for state in finals)
        return (y.transpose(0, 1) if self.batch_first else y), finals

    def _initial_state(self, x: Tensor, hx: tuple | None, unbatched: bool) -> tuple[Tensor, ...]:
        """hx as a tuple of [layers*D, B, H]; zeros if None."""
        shape = (self.num_layers * self.num_directions, x.shape[1], self.hidden_size)
        if hx is None:
            return (x.new_zeros(shape),) * self.states
        if not isinstance(hx, tuple | list) or len(hx) != self.states:
            got = f"{len(hx)} values" if isinstance(hx, tuple | list) else type(hx).__name__
            raise ValueError(f"hx: expected a tuple (h_0, c_0), got {got}")
        expected = (shape[0], shape[2]) if unbatched else shape
        for name, state in zip(("h_0", "c_0"), hx, strict=False):
            if not isinstance(state, Tensor):
                raise ValueError(f"hx: expected a tensor {name}, got {type(state).__name__}")
            if tuple(state.shape) != expected:
                raise ValueError(
                    f"hx: expected {name} of shape {list(expected)}, got {list(state.shape)}"
                )
        return tuple(state.unsqueeze(1) for state in hx) if unbatched else tuple(hx)

    def _masks_for(
        self, batch_size: int, masks: Sequence[LayerMasks] | None
    ) -> Sequence[LayerMasks]:
        """The masks given, else new ones while dropout is on, else none."""
        count = self.num_layers * self.num_directions
        if masks is not None:
            expected = f"masks: expected {count} LayerMasks, one per layer and direction"
            # a LayerMasks is itself a tuple, of four
            if isinstance(masks, LayerMasks) or not isinstance(masks, list | tuple):
                raise ValueError(f"{expected}, got {type(masks).__name__}")
            if len(masks) != count:
                raise ValueError(f"{expected}, got {len(masks)}")
            for entry in masks:
                if not isinstance(entry, LayerMasks):
                    raise ValueError(f"{expected}, got {type(entry).__name__} among them")
            return masks
        return self.sample_masks(batch_size) if self.draws_masks else [LayerMasks()] * count

    def _run(
        self,
        x: Tensor,
        hx: tuple[Tensor, ...],
        masks: Sequence[LayerMasks],
        lengths: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers and directions over x [T, B, I]."""
        finals, outputs = [], []
        for index, (_, suffix) in enumerate(self._directions()):
            reverse = suffix.endswith("_reverse")
            initial = tuple(state[index] for state in hx)
            y, *final = self._run_layer(
                x, initial, self.layer_weights(suffix), masks[index], lengths, reverse
            )
            finals.append(final)
            outputs.append(y)
            if len(outputs) == self.num_directions:
                x = torch.cat(outputs, dim=-1) if self.bidirectional else y
                outputs = []
        return x, tuple(torch.stack(states) for states in zip(*finals, strict=True))

    def _run_layer(self, x, initial, weights, masks, lengths, reverse) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def flatten_parameters(self) -> None:
        """Does nothing: the weights need no common buffer. Here so that nn.LSTM's users find it."""

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "num_layers": 1, "bias": True, "batch_first": False, "bidirectional": False,
            "input_dropout": (0.0,) * self.num_layers, "recurrent_dropout": 0.0,
            "tie_gates": False, "engine": "auto",
        }  # fmt: skip
        parts += [
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        return ", ".join(parts)


def _pack(y: Tensor, lengths: Tensor, like: PackedSequence) -> PackedSequence:
    """y [T, B, F] in the layout of `like`, which holds the same sequences."""
    if like.sorted_indices is not None:
        y = y.index_select(1, like.sorted_indices)
        lengths = lengths.index_select(0, like.sorted_indices)
    data = pack_padded_sequence(y, lengths.cpu()).data
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


class BayesianLSTM(_BayesianRNN):
    """torch.nn.LSTM with variational dropout on inputs and recurrent connections.

    One mask per sequence, gate and layer is held for all time steps (Gal and Ghahramani, 2016,
    section 3). In training new masks are drawn at each call; in `eval()` there are none, which is
    the paper's dropout approximation; under `mc_dropout` they are drawn in `eval()` too.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, bidirectional: as torch.nn.LSTM;
            parameter names and state_dict are the same too.
        input_dropout: probability of dropping an input feature, a float or one per layer.
        recurrent_dropout: probability of dropping a feature of h_{t-1}.
        tie_gates: one mask for all gates instead of one per gate.
        engine: "auto", or a name from `bayesrnn_cuda.info()`.

    Raises:
        ValueError: a size below 1, a probability outside [0, 1], an unknown engine.
    """

    gates = 4
    states = 2

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        masks: Sequence[LayerMasks] | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """(output, (h_n, c_n)), with shapes as torch.nn.LSTM.

        Args:
            input: [T, B, I], [B, T, I] if batch_first, [T, I] unbatched, or a PackedSequence.
            hx: (h_0, c_0), each [layers*D, B, H] or unbatched [layers*D, H]; zeros if None.
            masks: from `sample_masks`; if given, they are used in every mode.

        Raises:
            ValueError, RuntimeError: wrong rank, size, dtype or device of an argument, by name.
        """
        return self._forward(input, hx, masks)

    def _run_layer(self, x, initial, weights, masks, lengths, reverse):
        return functional.lstm(
            x, *initial, weights, masks, lengths=lengths, reverse=reverse, engine=self.engine
        )


class BayesianGRU(_BayesianRNN):
    """torch.nn.GRU with variational dropout on inputs and recurrent connections.

    Arguments as `BayesianLSTM`, and `reset_after`: where the reset gate acts. True is
    torch.nn.GRU, r * (U h + b); False is Cho et al. (2014), U (r * h) + b.
    """

    gates = 3
    states = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        **options,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, bidirectional, **options
        )
        self.reset_after = _check_flag("reset_after", reset_after)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        masks: Sequence[LayerMasks] | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """(output, h_n), with shapes as torch.nn.GRU. Arguments as `BayesianLSTM.forward`."""
        if hx is not None and not isinstance(hx, Tensor):
            raise ValueError(f"hx: expected a tensor h_0, got {type(hx).__name__}")
        output, (h_n,) = self._forward(input, None if hx is None else (hx,), masks)
        return output, h_n

    def _run_layer(self, x, initial, weights, masks, lengths, reverse):
        return functional.gru(
            x, *initial, weights, masks, lengths=lengths, reverse=reverse,
            reset_after=self.reset_after, engine=self.engine,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class BayesianEmbedding(DropoutModule):
    """torch.nn.Embedding that drops word types: a repeated word is dropped everywhere it stands
    in its sequence (paper, section 3.2). Kept vectors are scaled by 1 / (1 - dropout).

    Masks are drawn for the words that occur, not for the vocabulary.

    Args:
        num_embeddings, embedding_dim, padding_idx: as torch.nn.Embedding.
        dropout: probability of dropping a word type.
        batch_first: tokens are [B, T] instead of [T, B].
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dropout: float = 0.0,
        padding_idx: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = _check_size("num_embeddings", num_embeddings)
        self.embedding_dim = _check_size("embedding_dim", embedding_dim)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"padding_idx: expected a value within num_embeddings ({num_embeddings}), "
                f"got {padding_idx}"
            )
        self.padding_idx = (
            padding_idx if padding_idx is None or padding_idx >= 0 else padding_idx + num_embeddings
        )
        self.dropout = check_probability("dropout", dropout)
        self.batch_first = _check_flag("batch_first", batch_first)
        self.weight = nn.Parameter(
            torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 1), the padding vector zero, as torch.nn.Embedding."""
        nn.init.normal_(self.weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].fill_(0)

    def dropout_of_parameters(self) -> Iterator[tuple[nn.Parameter, float]]:
        """(parameter, probability of dropping it): the prior of the weights."""
        yield self.weight, self.dropout

    def sample_mask(self, batch_size: int, *, generator: torch.Generator | None = None) -> Tensor:
        """A mask over the vocabulary, to hold over several calls: bool [B, num_embeddings]."""
        shape = (batch_size, self.num_embeddings)
        return sample_keep(shape, self.dropout, device=self.weight.device, generator=generator)

    def forward(self, tokens: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """Vectors [T, B, embedding_dim] ([B, T, embedding_dim] if batch_first).

        Args:
            tokens: integer [T, B], [B, T] if batch_first, or [T]: one sequence.
            keep: bool [B, num_embeddings] from `sample_mask`, used in every mode.

        Raises:
            ValueError: tokens of another rank, or a mask of another shape.
        """
        if tokens.dim() not in (1, 2):
            raise ValueError(f"tokens: expected 1 or 2 dimensions, got {tokens.dim()}")
        vectors = nn.functional.embedding(tokens, self.weight, self.padding_idx)
        if keep is None and (self.dropout == 0.0 or not self.draws_masks):
            return vectors
        # one column per sequence: [T, B]
        columns = tokens.unsqueeze(1) if tokens.dim() == 1 else tokens
        columns = columns.transpose(0, 1) if self.batch_first and tokens.dim() == 2 else columns
        if keep is None:
            kept = _keep_word_types(columns, self.dropout)
        else:
            check_keep(keep, (columns.shape[1], self.num_embeddings))
            kept = keep.gather(1, columns.transpose(0, 1).long()).transpose(0, 1)
        kept = kept.transpose(0, 1) if self.batch_first else kept
        return apply_mask(vectors, kept.reshape(tokens.shape).unsqueeze(-1), self.dropout)

    def extra_repr(self) -> str:
        parts = [f"{self.num_embeddings}, {self.embedding_dim}, dropout={self.dropout}"]
        parts += [] if self.padding_idx is None else [f"padding_idx={self.padding_idx}"]
        return ", ".join(parts + (["batch_first=True"] if self.batch_first else []))


def _keep_word_types(tokens: Tensor, p: float) -> Tensor:
    """bool [T, B], equal wherever tokens [T, B] are equal within a column.

    Sorting brings equal words together and the first of each run draws for all of it: shapes do
    not depend on the data, and the cost is T log T, not the size of the vocabulary.
    """
    ordered, order = tokens.sort(dim=0)
    position = torch.arange(tokens.shape[0], device=tokens.device).unsqueeze(1)
    starts_run = torch.ones_like(ordered, dtype=torch.bool)
    starts_run[1:] = ordered[1:] != ordered[:-1]
    run_start = torch.where(starts_run, position, 0).cummax(dim=0).values
    drawn = sample_keep(tokens.shape, p, device=tokens.device).gather(0, run_start)
    return torch.empty_like(drawn).scatter(0, order, drawn)


class LockedDropout(DropoutModule):
    """Dropout with one mask per sequence, the same at every time step (paper, section 3).

    Args:
        p: probability of dropping a feature; kept ones are scaled by 1 / (1 - p).
        batch_first: the input is [B, T, F] instead of [T, B, F].
    """

    def __init__(self, p: float = 0.5, *, batch_first: bool = False) -> None:
        super().__init__()
        self.p = check_probability("p", p)
        self.batch_first = _check_flag("batch_first", batch_first)

    def sample_mask(
        self,
        batch_size: int,
        features: int,
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A mask to hold over several calls: bool [B, F]."""
        return sample_keep((batch_size, features), self.p, device=device, generator=generator)

    def forward(self, x: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """x with features dropped, in its own shape.

        Args:
            x: [T, B, F], or [B, T, F] if batch_first.
            keep: bool [B, F] from `sample_mask`, used in every mode.

        Raises:
            ValueError: x of another rank, or a mask of another shape.
        """
        if x.dim() != 3:
            # [B, F] and [T, F] look alike; taking one for the other would share a mask silently.
            raise ValueError(
                "x: expected 3 dimensions, time and batch among them (one step [B, F]: use "
                f"nn.Dropout; one sequence [T, F]: unsqueeze its batch), got {x.dim()}"
            )
        time = 1 if self.batch_first else 0
        shape = (x.shape[1 - time], x.shape[-1])
        if keep is None:
            if self.p == 0.0 or not self.draws_masks:
                return x
            keep = sample_keep(shape, self.p, device=x.device)
        else:
            check_keep(keep, shape)
        return apply_mask(x, keep.unsqueeze(time), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}" + (", batch_first=True" if self.batch_first else "")

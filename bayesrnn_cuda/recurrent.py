"""What BayesianLSTM and its like share: parameters, masks, layers, directions."""

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import functional
from .cells import Cell
from .checks import ArgumentError, check_flag, check_probability, check_size, check_tensor
from .layouts import Layout, TimeMajor
from .masks import LayerMasks, dropout_scale, sample_layer_masks
from .reference import LayerWeights
from .settings import LayerSettings
from .switch import DropoutModule

_NO_MASKS = LayerMasks()
_Layer = TypeVar("_Layer", bound="RecurrentLayer")
_Module = TypeVar("_Module", bound=nn.Module)


class RecurrentLayer(LayerSettings, DropoutModule):
    """Base of BayesianLSTM and its like: all that does not depend on the cell."""

    _mask_batch_dim = 1
    cell: Cell
    _torch: type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]  # what it stands for
    weight_ih_l0: nn.Parameter

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
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.input_dropout = 0.0 if input_dropout is None else input_dropout
        self._set_dropout(dropout, replaced=input_dropout is not None)
        self.recurrent_dropout = recurrent_dropout
        self.tie_gates = tie_gates
        self.engine = engine

        rows = self.cell.gates * hidden_size
        for layer, suffix in self._directions():
            columns = self._layer_input_size(layer)
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (rows, columns),
                "weight_hh": (rows, hidden_size),
            }
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

    @classmethod
    def from_torch(
        cls: type[_Layer],
        module: nn.RNNBase,
        *,
        input_dropout: float | Sequence[float] | None = None,
        recurrent_dropout: float = 0.0,
        tie_gates: bool = False,
        engine: str = "auto",
    ) -> _Layer:
        """A layer like `module`, with copies of its weights; where nothing is dropped, its equal.

        Layout, dtype, device, mode and frozen parameters are taken over, and of parametrized
        weights the values.

        Args:
            module: torch.nn.LSTM for BayesianLSTM, and so on.
            input_dropout: as the constructor has it. None: `module.dropout` is the layer's
                (whose masks torch draws anew at each time step).
            recurrent_dropout, tie_gates, engine: as the constructor has them.

        Raises:
            TypeError: a module of another class.
            ValueError: a module with projections, or a bad argument.
        """
        if not isinstance(module, cls._torch):
            raise TypeError(
                f"module: expected torch.nn.{cls._torch.__name__}, got {type(module).__name__}"
            )
        dropout = module.dropout if input_dropout is None else 0.0
        like = module.all_weights[0][0]
        layer = cls(
            module.input_size, module.hidden_size, module.num_layers, bias=module.bias,
            batch_first=module.batch_first, dropout=dropout, bidirectional=module.bidirectional,
            proj_size=module.proj_size, input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout, tie_gates=tie_gates, engine=engine,
            device="meta", dtype=like.dtype,
        )  # fmt: skip
        return _fill(layer, module, like.device)

    def to_torch(self) -> nn.RNNBase:
        """The layer of torch.nn that computes what this layer does in `eval()`.

        Weights are copied; layout, `dropout`, dtype, device, mode and frozen parameters are taken
        over. `input_dropout` and `recurrent_dropout` are not: torch has no such masks.

        Raises:
            ValueError: a GRU with reset_after=False, which torch does not have.
        """
        module = self._torch(
            self.input_size, self.hidden_size, self.num_layers, bias=self.bias,
            batch_first=self.batch_first, dropout=self.dropout, bidirectional=self.bidirectional,
            device="meta", dtype=self.weight_ih_l0.dtype,
        )  # fmt: skip
        return _fill(module, self, self.weight_ih_l0.device)

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
        names = [f"{name}_{suffix}" for name in LayerWeights._fields]
        found = [getattr(self, name) for name in (names if self.bias else names[:2])]
        return LayerWeights(*found)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, as torch.nn.LSTM has them."""
        weights = (self.layer_weights(suffix) for _, suffix in self._directions())
        return [[w for w in layer if w is not None] for layer in weights]

    def dropout_of_parameters(self) -> Iterator[tuple[Tensor, float]]:
        """(weight, probability of dropping what it multiplies): the prior of each weight."""
        for layer, suffix in self._directions():
            w = self.layer_weights(suffix)
            by_input, by_state = self.input_dropout[layer], self.recurrent_dropout
            dropouts = (by_input, by_state, by_input, by_state)
            yield from ((v, p) for v, p in zip(w, dropouts, strict=True) if v is not None)

    def sample_masks(
        self, batch_size: int, *, shared: bool = False, generator: torch.Generator | None = None
    ) -> list[LayerMasks]:
        """New masks for `batch_size` sequences, one LayerMasks per layer and direction.

        Pass them as `masks=` to hold them over several calls (windows of one sequence, say).
        Drawn on the device of the parameters from torch's generator or from `generator`. `shared`:
        one set for all sequences, which is one sampled function of all inputs.
        """
        if not torch.compiler.is_compiling():  # where a size may be a symbol
            check_size("batch_size", batch_size, least=0)
        device = self.weight_ih_l0.device
        if check_flag("shared", shared):
            return self._as_layer_masks(self._shared(batch_size, 0, device, generator))
        return self._draw_masks(batch_size, device, generator)

    def _as_layer_masks(self, keeps: Sequence[Tensor | None]) -> list[LayerMasks]:
        """What `_fresh` returns, with the scales."""
        recurrent = dropout_scale(self.recurrent_dropout)
        inputs = [dropout_scale(self.input_dropout[layer]) for layer, _ in self._directions()]
        pairs = zip(keeps[::2], keeps[1::2], inputs, strict=True)
        return [LayerMasks(keep_x, keep_h, scale, recurrent) for keep_x, keep_h, scale in pairs]

    def _fresh(
        self,
        sequences: int,
        features: int,
        device: torch.device | str | None,
        generator: torch.Generator | None = None,
    ) -> list[Tensor | None]:
        masks = self._draw_masks(sequences, device, generator)
        return [keep for m in masks for keep in (m.keep_x, m.keep_h)]

    def _mask_shapes(self, sequences: int, features: int) -> list[tuple[int, ...] | None]:
        sets = 1 if self.tie_gates else self.cell.gates
        shapes: list[tuple[int, ...] | None] = []
        for layer, _ in self._directions():
            by_input = (sets, sequences, self._layer_input_size(layer))
            shapes.append(by_input if self.input_dropout[layer] else None)
            by_state = (sets, sequences, self.hidden_size)
            shapes.append(by_state if self.recurrent_dropout else None)
        return shapes

    def _largest_dropout(self) -> float:
        return max(*self.input_dropout, self.recurrent_dropout)

    def _replace_dropout(self, p: float) -> None:
        p = check_probability("p", p)
        if self.dropout == 0.0:
            self.input_dropout = tuple(p if own else own for own in self.input_dropout)
        elif self.num_layers > 1:  # in one layer torch's drops nothing
            self.dropout = p
        if self.recurrent_dropout:
            self.recurrent_dropout = p

    def _draw_masks(
        self,
        batch_size: int,
        device: torch.device | str | None,
        generator: torch.Generator | None = None,
    ) -> list[LayerMasks]:
        return [
            sample_layer_masks(
                self.cell.gates,
                batch_size,
                self._layer_input_size(layer),
                self.hidden_size,
                input_dropout=self.input_dropout[layer],
                recurrent_dropout=self.recurrent_dropout,
                tie_gates=self.tie_gates,
                device=device,
                generator=generator,
            )
            for layer, _ in self._directions()
        ]

    def _forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple | None,
        masks: Sequence[LayerMasks] | None,
        resets: Tensor | None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
        """`forward` with hx as a tuple of the cell's states, in and out."""
        # once a call: a parametrized weight is computed at each access
        weights = [self.layer_weights(suffix) for _, suffix in self._directions()]
        data = input.data if isinstance(input, PackedSequence) else input
        check_tensor("input", data)
        dtype = weights[0].weight_ih.dtype
        if data.dtype != dtype and not functional.autocast_enabled(data):
            raise ArgumentError(
                f"input: expected {dtype}, the dtype of the parameters, got {data.dtype}"
            )
        layout = Layout.of(input, self.batch_first)
        if data.shape[-1] != self.input_size:
            raise ArgumentError(
                f"input: expected last dimension {self.input_size} (input_size), "
                f"got {data.shape[-1]}"
            )
        inputs = layout.time_major(input, resets)
        if inputs.x.shape[0] == 0:
            raise ArgumentError("input: expected a sequence of at least 1 step, got 0")
        states = self._initial_states(inputs.x, hx, layout.unbatched)
        masks = self._masks_for(inputs.x, masks)
        y, finals = self._run(inputs, states, weights, masks)
        return layout.output(y, inputs.packed, finals)

    def _initial_states(
        self, x: Tensor, hx: tuple | None, unbatched: bool
    ) -> list[tuple[Tensor, ...]]:
        """The states [B, H] of each layer and direction, from hx; zeros if None."""
        count, B, H = self.num_layers * self.num_directions, x.shape[1], self.hidden_size
        if hx is None:
            return [(x.new_zeros((B, H)),) * self.cell.states] * count
        if not isinstance(hx, tuple | list) or len(hx) != self.cell.states:
            got = f"{len(hx)} values" if isinstance(hx, tuple | list) else type(hx).__name__
            error = ArgumentError if isinstance(hx, tuple | list) else TypeError
            raise error(f"hx: expected a tuple (h_0, c_0), got {got}")
        expected = (count, H) if unbatched else (count, B, H)
        for name, state in zip(("h_0", "c_0"), hx, strict=False):
            if not isinstance(state, Tensor):
                raise TypeError(f"hx: expected a tensor {name}, got {type(state).__name__}")
            check_tensor(name, state)
            if tuple(state.shape) != expected:
                raise ArgumentError(
                    f"hx: expected {name} of shape {list(expected)}, got {list(state.shape)}"
                )
        batched = [state.unsqueeze(1) for state in hx] if unbatched else hx
        return list(zip(*[state.unbind() for state in batched], strict=True))

    def _masks_for(self, x: Tensor, masks: Sequence[LayerMasks] | None) -> Sequence[LayerMasks]:
        """The masks given, else new ones for x [T, B, I] while dropout is on, else none."""
        count = self.num_layers * self.num_directions
        self._saw(x.shape[1], drew=masks is not None)
        if masks is not None:
            expected = f"masks: expected {count} LayerMasks, one per layer and direction"
            # a LayerMasks is itself a tuple, of four
            if isinstance(masks, LayerMasks) or not isinstance(masks, list | tuple):
                raise TypeError(f"{expected}, got {type(masks).__name__}")
            if len(masks) != count:
                raise ArgumentError(f"{expected}, got {len(masks)}")
            for entry in masks:
                if not isinstance(entry, LayerMasks):
                    raise TypeError(f"{expected}, got {type(entry).__name__} among them")
            return masks
        if not self.mask_dropout.training:
            return [_NO_MASKS] * count
        held = self._sample(x.shape[1], 0, x.device)
        if held is None:
            drops = self._largest_dropout() > 0
            return self._draw_masks(x.shape[1], x.device) if drops else [_NO_MASKS] * count
        return self._as_layer_masks(held)

    def _run(
        self,
        inputs: TimeMajor,
        states: Sequence[tuple[Tensor, ...]],
        weights: Sequence[LayerWeights],
        masks: Sequence[LayerMasks],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers and directions over the inputs."""
        x, lengths, resets, _ = inputs
        flags = [getattr(self, name) for name in self.cell.flags]
        finals: list[list[Tensor]] = []
        outputs: list[Tensor] = []
        for initial, own_weights, own_masks in zip(states, weights, masks, strict=True):
            reverse = self.bidirectional and len(outputs) == 1
            y, *final = functional.layer(
                self.cell, (x, *initial), own_weights, own_masks, lengths, resets, reverse,
                self.engine, *flags,
            )  # fmt: skip
            finals.append(final)
            outputs.append(y)
            if len(outputs) == self.num_directions:
                x = torch.cat(outputs, dim=-1) if self.bidirectional else y
                outputs = []
        if len(finals) == 1:
            return x, tuple([state.unsqueeze(0) for state in finals[0]])
        return x, tuple([torch.stack(states) for states in zip(*finals, strict=True)])

    def flatten_parameters(self) -> None:
        """Does nothing: the weights need no common buffer. Here so that nn.LSTM's users find it."""


class OneStateLayer(RecurrentLayer):
    """Base of the layers that carry h and nothing beside it, whose hx is a tensor, not a tuple."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        masks: Sequence[LayerMasks] | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """(output, h_n), with shapes as torch.nn.GRU. Arguments as `BayesianLSTM.forward`."""
        if (leaf := self._as_leaf(input, hx, masks=masks, resets=resets)) is not None:
            return leaf  # type: ignore[return-value]
        if hx is not None and not isinstance(hx, Tensor):
            raise TypeError(f"hx: expected a tensor h_0, got {type(hx).__name__}")
        output, (h_n,) = self._forward(input, None if hx is None else (hx,), masks, resets)
        return output, h_n


def _fill(target: _Module, source: nn.Module, device: torch.device) -> _Module:
    """`target`, made on the meta device, with the values and mode of `source`."""
    # made there it has drawn no random numbers
    target.to_empty(device=device)
    for name, parameter in target.named_parameters():
        with torch.enable_grad():
            value = getattr(source, name)  # where parametrized, it knows here if it is frozen
        with torch.no_grad():
            parameter.copy_(value)
        parameter.requires_grad_(value.requires_grad)
    return target.train(source.training)

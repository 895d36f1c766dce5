"""The weights of Keras's layers, whose arrays have another layout than torch's. Without Keras."""

from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from .cells import GRU
from .conversion import ADDS_NOTHING
from .modules import BayesianGRU, BayesianLSTM, BayesianRNN
from .recurrent import RecurrentLayer

_OURS: dict[str, type[RecurrentLayer]] = {
    "LSTM": BayesianLSTM,
    "GRU": BayesianGRU,
    "SimpleRNN": BayesianRNN,
}
# Where Keras has what torch's order asks for: r, z, n stand as z, r, n. Its i, f, g, o are torch's.
_GATES = {GRU.name: (1, 0, 2)}
_PACKAGES = frozenset({"keras", "tf_keras", "tensorflow"})  # that Keras comes in
_TAKEN_OVER = ("units", "use_bias", "dropout", "recurrent_dropout", "reset_after")


def from_keras(
    layer: Any,
    *,
    input_dropout: float | None = None,
    recurrent_dropout: float | None = None,
    tie_gates: bool | None = None,
    engine: str = "auto",
) -> RecurrentLayer:
    """A layer of this package that computes what a layer of Keras does, with copies of its weights.

    Its `reset_after` and probabilities are taken over, its layout (`batch_first=True`), and which
    weights are `trainable`. The masks are what Keras draws too, held for the whole sequence: one
    per gate where the layer has a `recurrent_dropout` or `implementation=1`, and otherwise one for
    all gates. The output is that of `return_sequences=True`; h_n is that of the last step. A
    subclass that only adds a name or an `__init__` counts as its base.

    Args:
        layer: keras.layers.LSTM, GRU, SimpleRNN, or a Bidirectional of one; called before, so that
            it has weights.
        input_dropout: None: the layer's `dropout`.
        recurrent_dropout: None: the layer's.
        tie_gates: None: as Keras would have it with that recurrent_dropout.
        engine: as the constructor of the new layer has it.

    Raises:
        ValueError: what the new layer cannot do, by name: an activation other than tanh and
            sigmoid, go_backwards, a merge_mode other than "concat", directions that differ, a
            subclass or a cell with methods or attributes of its own; a layer without weights; a
            bad option.
        TypeError: what is no such layer, or an option of another type.
    """
    parts = [layer]
    if _class_of_keras(layer, {"Bidirectional"}):
        parts = [layer.forward_layer, layer.backward_layer]
        _expect("merge_mode", layer.merge_mode, "concat")
    kind, taken = _kind(parts[0]), _taken_over(parts[0])
    for part, backwards in zip(parts, (False, True), strict=False):
        _expect("class of the backward layer", _kind(part).__name__, kind.__name__)
        _check_config(part.get_config() | _taken_over(part), taken | {"go_backwards": backwards})
    weights = [np.asarray(array) for part in parts for array in part.get_weights()]
    if not weights:
        raise ValueError("layer: expected one with weights, called or built before, got none")
    if recurrent_dropout is None:
        recurrent_dropout = taken["recurrent_dropout"]
    if tie_gates is None:  # a recurrent_dropout makes Keras choose implementation=1
        tie_gates = taken["implementation"] != 1 and recurrent_dropout == 0.0
    options = {"reset_after": taken["reset_after"]} if "reset_after" in taken else {}
    new = kind(
        weights[0].shape[0], taken["units"], bias=taken["use_bias"], batch_first=True,
        bidirectional=len(parts) == 2,
        input_dropout=taken["dropout"] if input_dropout is None else input_dropout,
        recurrent_dropout=recurrent_dropout, tie_gates=tie_gates, engine=engine,
        dtype=torch.float64 if weights[0].dtype == np.float64 else torch.float32, **options,
    )  # fmt: skip
    load_keras_weights(new, weights)
    for part, (_, suffix) in zip(parts, new._directions(), strict=True):
        both = layer.trainable and part.trainable  # a Bidirectional alone may say no
        _freeze(new, suffix, [both and weight.trainable for weight in part.weights])
    return new


def _taken_over(part: Any) -> dict[str, Any]:
    """What a layer of one direction says of itself; its cell alone knows the implementation."""
    config = part.get_config()
    taken = {name: config[name] for name in _TAKEN_OVER if name in config}
    return taken | {"implementation": getattr(part.cell, "implementation", 1)}


def _freeze(layer: RecurrentLayer, suffix: str, trainable: Sequence[bool]) -> None:
    """Takes over what trains in one direction: kernel, recurrent kernel and, if any, the bias."""
    names = (("weight_ih",), ("weight_hh",), ("bias_ih", "bias_hh"))
    for of_one, trains in zip(names, trainable, strict=False):
        for name in of_one:
            getattr(layer, f"{name}_{suffix}").requires_grad_(trains)


def _check_config(config: dict[str, Any], same: dict[str, Any]) -> None:
    """ValueError unless a layer here can do what `config` says, and it has the values `same`."""
    for name, value in {"activation": "tanh", "recurrent_activation": "sigmoid", **same}.items():
        if name in config:
            _expect(name, config[name], value)


def load_keras_weights(layer: RecurrentLayer, weights: Sequence[Any]) -> None:
    """Copies the arrays of layers of Keras into one of this package, whatever their activations.

    For each of its layers and directions, in order: kernel [I, G*H], recurrent_kernel [H, G*H] and,
    if `layer.bias`, bias [G*H], or [2, G*H] for a GRU with reset_after=True; a direction's arrays
    are what `get_weights()` returns, forward before backward. Keras has one bias where torch has
    two: `bias_hh` becomes zero.

    Args:
        layer: BayesianLSTM, BayesianGRU or BayesianRNN with the sizes of the arrays.
        weights: tensors, and anything that numpy takes as arrays.

    Raises:
        ValueError: another number of arrays, an array of another shape, parametrized weights;
            nothing is changed then.
        TypeError: a layer of another class, or arrays that are none.
    """
    if not isinstance(layer, tuple(_OURS.values())):
        names = ", ".join(kind.__name__ for kind in _OURS.values())
        raise TypeError(f"layer: expected one of {names}, got {type(layer).__name__}")
    if parametrize.is_parametrized(layer):  # what is computed cannot be copied into
        raise ValueError("layer: expected weights that are parameters, got parametrized ones")
    wanted = list(_shapes(layer))
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(f"weights: expected a list of arrays, got {type(weights).__name__}")
    if len(weights) != len(wanted):
        raise ValueError(
            f"weights: expected {len(wanted)} arrays, get_weights() of each layer and direction, "
            f"got {len(weights)}"
        )
    arrays = [_array(f"weights[{at}]", weights[at], *wanted[at]) for at in range(len(wanted))]
    order = _GATES.get(layer.cell.name, range(layer.cell.gates))
    per_direction = 3 if layer.bias else 2
    with torch.no_grad():
        for at, (_, suffix) in enumerate(layer._directions()):
            kernel, recurrent, *bias = arrays[at * per_direction : (at + 1) * per_direction]
            ours = layer.layer_weights(suffix)
            ours.weight_ih.copy_(_in_order(kernel, order).mT)
            ours.weight_hh.copy_(_in_order(recurrent, order).mT)
            for rows in bias:  # of x and of h, or both in one
                by_input, *by_state = _in_order(rows.view(-1, rows.shape[-1]), order)
                getattr(layer, f"bias_ih_{suffix}").copy_(by_input)
                getattr(layer, f"bias_hh_{suffix}").copy_(*by_state or [torch.zeros(())])


def _shapes(layer: RecurrentLayer) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of the arrays that Keras would have for `layer`."""
    columns = layer.cell.gates * layer.hidden_size
    for index, suffix in layer._directions():
        yield f"kernel of {suffix}", (layer._layer_input_size(index), columns)
        yield f"recurrent_kernel of {suffix}", (layer.hidden_size, columns)
        if layer.bias:
            two = getattr(layer, "reset_after", False)
            yield f"bias of {suffix}", (2, columns) if two else (columns,)


def _array(where: str, value: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """`value` as a tensor; ValueError unless it has that shape."""
    if isinstance(value, Tensor):  # numpy knows no gradients and no bfloat16
        value = value.detach()
        value = (value.double() if value.is_floating_point() else value).numpy(force=True)
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{where}: expected the {name} of shape {list(shape)}, got rows of different lengths"
        ) from None
    if array.dtype.kind not in "fiuV":  # V: bfloat16 as ml_dtypes has it
        raise TypeError(
            f"{where}: expected an array of numbers ({name}), "
            f"got {type(value).__name__} of dtype {array.dtype}"
        )
    if array.shape != shape:
        raise ValueError(
            f"{where}: expected the {name} of shape {list(shape)}, got {list(array.shape)}"
        )
    return torch.from_numpy(array.astype(np.float64))


def _in_order(array: Tensor, order: Sequence[int]) -> Tensor:
    """[..., G*H] with the gates in torch's order."""
    gates = array.unflatten(-1, (len(order), -1))
    return gates[..., list(order), :].flatten(-2)


def _kind(layer: Any) -> type[RecurrentLayer]:
    """The class here that stands for the class of `layer`."""
    name = _class_of_keras(layer, _OURS)
    if name is None:
        raise TypeError(
            f"layer: expected a Keras LSTM, GRU or SimpleRNN, or a Bidirectional of one, "
            f"got {type(layer).__name__}"
        )
    if _class_of_keras(layer.cell, {f"{name}Cell"}) is None:
        raise ValueError(
            f"layer: expected Keras's {name}Cell as its cell, got {type(layer.cell).__name__}"
        )
    return _OURS[name]


def _class_of_keras(layer: Any, names: Container[str]) -> str | None:
    """Which of the classes `names` of Keras the class of `layer` is or derives from.

    ValueError where the derived class may compute something else.
    """
    kinds = type(layer).__mro__
    for at, kind in enumerate(kinds):
        if kind.__name__ not in names or kind.__module__.split(".")[0] not in _PACKAGES:
            continue
        for derived in kinds[:at]:
            own = sorted(set(vars(derived)) - ADDS_NOTHING)
            if own:
                raise ValueError(
                    f"layer: expected Keras's {kind.__name__}, got {derived.__name__}, which has "
                    f"{', '.join(own)} of its own"
                )
        return kind.__name__
    return None


def _expect(name: str, actual: Any, expected: Any) -> None:
    if actual != expected:
        raise ValueError(f"layer: expected {name} {expected!r}, got {actual!r}")

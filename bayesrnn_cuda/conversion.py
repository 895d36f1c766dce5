"""Whole models, from torch's layers to this package's and back, with the parameters they have."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .checks import check_module
from .modules import BayesianEmbedding, BayesianGRU, BayesianLSTM, BayesianRNN, LockedDropout

_OURS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.LSTM: BayesianLSTM.from_torch,
    nn.GRU: BayesianGRU.from_torch,
    nn.RNN: BayesianRNN.from_torch,
}
_LAYERS = (BayesianLSTM, BayesianGRU, BayesianRNN)
_NONE_HERE = (nn.RNNBase, nn.modules.rnn.RNNCellBase)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What a class has that adds a name, and in whose place an instance of the base class does.
ADDS_NOTHING = {
    "__module__", "__qualname__", "__doc__", "__annotations__", "__dict__", "__weakref__",
    "__init__", "__firstlineno__", "__static_attributes__", "__constants__", "__slots__",
    "__abstractmethods__", "_abc_impl",
}  # fmt: skip


def convert(
    model: nn.Module,
    *,
    recurrent_dropout: float,
    input_dropout: float | Sequence[float] | None = None,
    tie_gates: bool = False,
    engine: str = "auto",
    leave: Iterable[str] = (),
) -> nn.Module:
    """`model` with every nn.LSTM, nn.GRU and nn.RNN inside replaced by its layer of this package.

    The parameters are the same objects as before, so that ties between weights, optimizers and
    state_dicts stay right; mode, layout and `dropout` are taken over. A subclass that only adds a
    name or an `__init__` counts as its base. Either all is replaced or nothing.

    Args:
        model: is changed in place, unless it is itself such a layer.
        recurrent_dropout, input_dropout, tie_gates, engine: of every new layer, as its constructor
            has them. input_dropout None: the `dropout` that the old layer had between its layers.
        leave: names of submodules, as in `model.named_modules()`, that stay what they are.

    Returns:
        The model, or the new layer in its place.

    Raises:
        ValueError: names what cannot be converted, and why: the cells, which have no counterpart
            here, an nn.RNN with relu, projections, hooks, parametrized weights, a subclass with
            methods or attributes of its own; an unknown name in `leave`; a model without any such
            layer.
        TypeError: an argument of another type.
    """
    options = {
        "recurrent_dropout": recurrent_dropout, "input_dropout": input_dropout,
        "tie_gates": tie_gates, "engine": engine,
    }  # fmt: skip

    def replacement(module: nn.Module) -> nn.Module | str | None:
        base = next((kind for kind in _OURS if isinstance(module, kind)), None)
        if base is None:
            none = isinstance(module, _NONE_HERE)
            return f"{type(module).__name__} has no counterpart here" if none else None
        reason = _own_behaviour(module, base)
        if reason:
            return reason
        if getattr(module, "proj_size", 0):
            return "it has projections (proj_size)"
        if getattr(module, "nonlinearity", "tanh") != "tanh":
            return f"its nonlinearity is {module.nonlinearity!r}, not 'tanh'"
        return _OURS[base](module, **options)

    return _replace(model, replacement, leave, "a torch.nn.LSTM, torch.nn.GRU or torch.nn.RNN")


def to_torch(model: nn.Module, *, leave: Iterable[str] = ()) -> nn.Module:
    """`model` with this package's modules replaced by torch's, which do the same in `eval()`.

    For tools that know torch's layers alone: export, quantization, other runtimes. LSTM, GRU and
    RNN become nn.LSTM, nn.GRU and nn.RNN with `dropout` kept, BayesianEmbedding nn.Embedding,
    LockedDropout nn.Dropout. Recurrent, input and word dropout are not taken over: torch has no
    such masks. Parameters are the same objects as before.

    Args:
        model: is changed in place, unless it is itself such a module.
        leave: names of submodules that stay what they are.

    Returns:
        The model, or the new module in its place.

    Raises:
        ValueError: names what cannot be converted, and why: a GRU with reset_after=False, hooks,
            parametrized weights, a subclass with methods or attributes of its own; an unknown name
            in `leave`; a model without any module of this package.
        TypeError: an argument of another type.
    """

    def replacement(module: Any) -> nn.Module | str | None:
        kinds = (*_LAYERS, BayesianEmbedding, LockedDropout)
        base = next((kind for kind in kinds if isinstance(module, kind)), None)
        if base is None:
            return None
        reason = _own_behaviour(module, base)
        if reason:
            return reason
        if isinstance(module, LockedDropout):
            return nn.Dropout(module.p).train(module.training)
        if isinstance(module, BayesianEmbedding):
            size = (module.num_embeddings, module.embedding_dim)
            new = nn.Embedding(*size, padding_idx=module.padding_idx, device="meta")
            return new.train(module.training)
        if isinstance(module, BayesianGRU) and not module.reset_after:
            return "torch.nn.GRU has no reset_after=False"
        return module.to_torch()

    return _replace(model, replacement, leave, "a module of bayesrnn_cuda")


def _replace(
    model: nn.Module,
    replacement: Callable[[nn.Module], nn.Module | str | None],
    leave: Iterable[str],
    expected: str,
) -> nn.Module:
    """Puts what `replacement` makes in the place of what it is made from.

    It returns a module, the reason why there is none, or None where nothing is to be done.
    """
    check_module(model, "model")
    left = _names(leave)
    made: dict[nn.Module, nn.Module] = {}
    refused: list[str] = []
    for name, module in model.named_modules():
        if name in left:
            left.remove(name)
            continue
        result = replacement(module)
        if isinstance(result, str):
            refused.append(f"{name or type(module).__name__} ({result})")
        elif result is not None:
            made[module] = _with_parameters_of(module, result)
    if left:
        raise ValueError(f"leave: expected names of submodules, got {', '.join(sorted(left))}")
    if refused:
        raise ValueError(
            "model: expected layers that can be converted, or their names in leave=, got "
            + "; ".join(refused)
        )
    if not made:
        raise ValueError(f"model: expected {expected} inside, got {type(model).__name__}")
    for parent, name, module in list(_places(model)):
        if module in made:
            parent._modules[name] = made[module]
    return made.get(model, model)


def _names(leave: Any) -> set[str]:
    several = isinstance(leave, Iterable) and not isinstance(leave, str)
    names = tuple(leave) if several else (leave,)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"leave: expected names of submodules, got {name!r}")
    return set(names)


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, module) of every place, also of one that has several."""
    for parent in model.modules():
        for name, module in parent._modules.items():
            if module is not None:
                yield parent, name, module


def _with_parameters_of(old: nn.Module, new: nn.Module) -> nn.Module:
    for name, parameter in old._parameters.items():  # by every name of one that has several
        if parameter is not None:
            new.register_parameter(name, parameter)
    if isinstance(new, nn.RNNBase):
        new._flat_weights = [getattr(new, name) for name in new._flat_weights_names]
        new.flatten_parameters()
    return new


def _own_behaviour(module: nn.Module, base: type[nn.Module]) -> str | None:
    """What the module has that an instance of `base` does not."""
    if parametrize.is_parametrized(module):
        return "its weights are parametrized"
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        return "it has hooks"
    for kind in type(module).__mro__:
        if kind is base:
            break
        own = sorted(set(vars(kind)) - ADDS_NOTHING)
        if own:
            return f"{kind.__name__} has {', '.join(own)} of its own"
    extra = sorted(set(_public(module)) - _plain(base))
    return f"it has {', '.join(extra)} of its own" if extra else None


def _public(module: nn.Module) -> Iterator[str]:
    """Attributes and parts beside the parameters."""
    yield from (name for name in vars(module) if not name.startswith("_"))
    yield from module._modules
    yield from module._buffers


def _plain(kind: type[nn.Module]) -> frozenset[str]:
    """What every instance of `kind` has beside its parameters."""
    # Made on the CPU, since on the meta device the initial values would import torch's compiler.
    with torch.random.fork_rng(devices=[]):
        return frozenset(_public(kind() if kind is LockedDropout else kind(1, 1, device="cpu")))

"""The prior's part of the objective: the KL term of the paper (eq. 3 and 4), or weight decay."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .checks import check_module, check_number, check_probability
from .moments import at_least_float32


def kl_penalty(
    module: nn.Module,
    *,
    length_scale: float,
    num_data: int,
    dropout: Mapping[str, float] | None = None,
) -> Tensor:
    """sum over parameters of p_keep l^2 / (2 N) ||w||^2, biases included (paper, section 3).

    Add it to the loss per data point (a mean, not a sum). Where a weight is parametrized
    (torch.nn.utils.parametrize), w is the weight that the layer computes with. A weight that
    several modules share counts once, with the least dropout among those of them that are named in
    `dropout`, or if none is, among all of them. Sums are taken in float32 at least.

    Args:
        module: any model; this package's layers know their own dropout, others count as p_keep = 1
            unless named in `dropout`.
        length_scale: l of the prior, > 0; larger pulls harder towards zero.
        num_data: N, the number of training points, >= 1.
        dropout: submodule name -> probability of dropping its input, for layers fed by a
            LockedDropout or an nn.Dropout that stands elsewhere ("decoder": 0.5).

    Returns:
        A scalar that can be differentiated.

    Raises:
        ValueError: length_scale <= 0, num_data < 1, an unknown name or a p outside [0, 1].
        TypeError: not an nn.Module, or another argument of another type.
    """
    decays = _decays(module, length_scale, num_data, dropout)
    terms = (0.5 * decay * at_least_float32(w).square().sum() for w, decay in decays)
    total = sum(terms, start=torch.zeros(()))
    # of FSDP2's sharded parameters each process has a part of the sum
    return total.full_tensor() if hasattr(total, "full_tensor") else total


def weight_decay_groups(
    module: nn.Module,
    *,
    length_scale: float,
    num_data: int,
    dropout: Mapping[str, float] | None = None,
) -> list[dict]:
    """The same prior as optimizer parameter groups: weight_decay = p_keep l^2 / N.

    For torch.optim.SGD the gradients equal those of the loss plus `kl_penalty`. Arguments and
    errors as there. Parameters that need no gradient are left out. A weight that is computed from
    others, as parametrizations and pruning have it, is no parameter of an optimizer: ValueError.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for w, decay in _decays(module, length_scale, num_data, dropout):
        if not isinstance(w, nn.Parameter):
            raise ValueError(
                "module: expected weights that are parameters (for parametrized or pruned ones "
                f"add kl_penalty to the loss), got a computed one of shape {list(w.shape)}"
            )
        if w.requires_grad:
            groups.setdefault(decay, []).append(w)
    return [{"params": params, "weight_decay": decay} for decay, params in groups.items()]


def _decays(
    module: nn.Module,
    length_scale: float,
    num_data: int,
    dropout: Mapping[str, float] | None,
) -> Iterator[tuple[Tensor, float]]:
    """(weight, p_keep l^2 / N), each weight once, whatever the order of the modules."""
    check_module(module)
    check_number("length_scale", length_scale)
    check_number("num_data", num_data)
    if not length_scale > 0:
        raise ValueError(f"length_scale: expected more than 0, got {length_scale}")
    if not num_data >= 1:
        raise ValueError(f"num_data: expected at least 1, got {num_data}")
    if dropout is not None and not isinstance(dropout, Mapping):
        raise TypeError(
            f"dropout: expected a mapping of submodule names, got {type(dropout).__name__}"
        )
    dropout = dict(dropout or {})
    chosen: dict[Tensor, tuple[bool, float]] = {}  # whether a name decided, and the dropout
    pairs: Iterable[tuple[Tensor, float]]
    for name, submodule in module.named_modules():
        if "parametrizations" in name.split("."):
            continue  # the weight made of these counts, with the module that has it
        named = name in dropout
        if named:
            p = check_probability(f"dropout[{name!r}]", dropout.pop(name))
            pairs = [(w, p) for w in _own_weights(submodule)]
            if not pairs:
                raise ValueError(
                    f"dropout: expected names of submodules with parameters of their own, "
                    f"got {name!r}"
                )
        elif hasattr(submodule, "dropout_of_parameters"):
            pairs = submodule.dropout_of_parameters()
        else:
            pairs = ((w, 0.0) for w in _own_weights(submodule))
        for w, p in pairs:
            others_named, least = chosen.get(w, (False, 1.0))
            if named and not others_named:
                chosen[w] = True, p
            elif named == others_named:
                chosen[w] = named, min(p, least)
    if dropout:
        raise ValueError(
            f"dropout: expected names of submodules, got {', '.join(map(repr, dropout))}"
        )
    for w, (_, p) in chosen.items():
        yield w, (1.0 - p) * length_scale**2 / num_data


def _own_weights(module: nn.Module) -> Iterator[Tensor]:
    """The parameters of the module itself, and what it computes from parametrized ones."""
    yield from module.parameters(recurse=False)
    parametrizations = getattr(module, "parametrizations", None)
    if isinstance(parametrizations, nn.ModuleDict):  # torch.nn.utils.parametrize
        yield from (getattr(module, name) for name in parametrizations)

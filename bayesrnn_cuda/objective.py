"""The prior's part of the objective: the KL term of the paper (eq. 3 and 4), or weight decay."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .masks import check_probability


def kl_penalty(
    module: nn.Module,
    *,
    length_scale: float,
    num_data: int,
    dropout: Mapping[str, float] | None = None,
) -> Tensor:
    """sum over parameters of p_keep l^2 / (2 N) ||w||^2, biases included (paper, section 3).

    Add it to the loss per data point (a mean, not a sum).

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
    """
    decays = _decays(module, length_scale, num_data, dropout)
    terms = (0.5 * decay * w.square().sum() for w, decay in decays)
    return sum(terms, start=torch.zeros(()))


def weight_decay_groups(
    module: nn.Module,
    *,
    length_scale: float,
    num_data: int,
    dropout: Mapping[str, float] | None = None,
) -> list[dict]:
    """The same prior as optimizer parameter groups: weight_decay = p_keep l^2 / N.

    For torch.optim.SGD the gradients equal those of the loss plus `kl_penalty`. Arguments and
    errors as there. Parameters that need no gradient are left out.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for w, decay in _decays(module, length_scale, num_data, dropout):
        if w.requires_grad:
            groups.setdefault(decay, []).append(w)
    return [{"params": params, "weight_decay": decay} for decay, params in groups.items()]


def _decays(
    module: nn.Module,
    length_scale: float,
    num_data: int,
    dropout: Mapping[str, float] | None,
) -> Iterator[tuple[nn.Parameter, float]]:
    """(parameter, p_keep l^2 / N), each parameter once."""
    if not length_scale > 0:
        raise ValueError(f"length_scale: expected more than 0, got {length_scale}")
    if not num_data >= 1:
        raise ValueError(f"num_data: expected at least 1, got {num_data}")
    dropout = dict(dropout or {})
    seen: set[nn.Parameter] = set()
    for name, submodule in module.named_modules():
        if name in dropout:
            p = check_probability(f"dropout[{name!r}]", dropout.pop(name))
            pairs = [(w, p) for w in submodule.parameters(recurse=False)]
            if not pairs:
                raise ValueError(
                    f"dropout: expected names of submodules with parameters of their own, "
                    f"got {name!r}"
                )
        elif hasattr(submodule, "dropout_of_parameters"):
            pairs = submodule.dropout_of_parameters()
        else:
            pairs = ((w, 0.0) for w in submodule.parameters(recurse=False))
        for w, p in pairs:
            if w not in seen:
                seen.add(w)
                yield w, (1.0 - p) * length_scale**2 / num_data
    if dropout:
        raise ValueError(
            f"dropout: expected names of submodules, got {', '.join(map(repr, dropout))}"
        )

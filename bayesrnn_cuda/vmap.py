"""torch.vmap over the ops: samples run as batch, or in a loop where each has its own weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What a rule returns: results with their samples, and the dimension where each has them.
Batched = tuple[tuple[Tensor, ...], tuple[int, ...]]


def forward(
    op: Callable[..., tuple[Tensor, ...]], info: Any, in_dims: tuple, *arguments: Any, states: int
) -> Batched:
    """Rule of a layer's op, which carries `states`: S samples of B sequences run as S * B."""
    if any(dim is not None for dim in in_dims[1 + states : 5 + states]):  # weights and biases
        return loop(op, info, in_dims, *arguments)
    # where x, states, masks, lengths and resets have their batch; arguments beyond are no tensors
    batch_dims = (1, *(0,) * states, *(None,) * 4, 1, 1, 0, 1)
    folded = list(arguments)
    for i, batch_dim in enumerate(batch_dims):
        if batch_dim is not None and folded[i] is not None:
            folded[i] = _fold(folded[i], in_dims[i], batch_dim, info.batch_size)
    results = op(*folded)
    for_backward = len(results) - 1 - states  # what backward needs
    out_dims = (1, *(0,) * states, *(1,) * for_backward)
    pairs = zip(results, out_dims, strict=True)
    return tuple(t.unflatten(dim, (info.batch_size, -1)) for t, dim in pairs), out_dims


def loop(
    op: Callable[..., tuple[Tensor, ...]], info: Any, in_dims: tuple, *arguments: Any
) -> Batched:
    """Rule of the backward ops too, where each sample wants gradients of weights for itself."""
    results = [op(*_sample(s, in_dims, arguments)) for s in range(info.batch_size)]
    stacked = tuple(torch.stack(tensors) for tensors in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def first(op: Callable[..., int], info: Any, in_dims: tuple, *arguments: Any) -> tuple[int, None]:
    """Rule of check_layer: what it checks is the same for all samples."""
    return op(*_sample(0, in_dims, arguments)), None


def _sample(s: int, in_dims: tuple, arguments: tuple) -> list[Any]:
    return [
        a if dim is None else a.select(dim, s) for a, dim in zip(arguments, in_dims, strict=True)
    ]


def _fold(t: Tensor, dim: int | None, batch_dim: int, size: int) -> Tensor:
    """t with its samples, or `size` times itself, in the batch: [..., S * B, ...]."""
    if dim is None:
        shape = (*t.shape[:batch_dim], size, *t.shape[batch_dim:])
        t = t.unsqueeze(batch_dim).expand(shape)
    else:
        t = t.movedim(dim, batch_dim)
    return t.flatten(batch_dim, batch_dim + 1)

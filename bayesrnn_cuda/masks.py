"""Dropout masks: one per sequence, held for all its time steps (paper, section 3)."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops

_SEEDS = torch.iinfo(torch.int64)


class LayerMasks(NamedTuple):
    """The masks of one layer in one direction; `None` stands for no dropout.

    There is no time dimension: the same mask serves every step, that is the method. A named tuple.

    Attributes:
        keep_x: bool [G or 1, B, I]: what is kept of the input.
        keep_h: bool [G or 1, B, H]: what is kept of h_{t-1}.
        scale_x: 1 / (1 - p) of the input.
        scale_h: 1 / (1 - p) of h_{t-1}.
    """

    keep_x: Tensor | None = None
    keep_h: Tensor | None = None
    scale_x: float = 1.0
    scale_h: float = 1.0

    def index_select(self, index: Tensor) -> "LayerMasks":
        """The masks of the sequences in `index` (int64 [B']), in that order."""

        def pick(keep: Tensor | None) -> Tensor | None:
            return None if keep is None else keep.index_select(1, index)

        return self._replace(keep_x=pick(self.keep_x), keep_h=pick(self.keep_h))


def dropout_scale(p: float) -> float:
    """1 / (1 - p), and 0 for p = 1, where nothing is kept and the result must be 0, not NaN."""
    return 0.0 if p == 1.0 else 1.0 / (1.0 - p)


def sample_keep(
    shape: Iterable[int],
    p: float,
    *,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A mask that is True with probability 1 - p, independently at each place: bool [*shape]."""
    shape = tuple(shape)
    if _has_fused_sampling(device):
        seed = torch.randint(_SEEDS.min, _SEEDS.max, (1,), device=device, generator=generator)
        return ops.call(torch.ops.bayesrnn.sample_keep, seed, math.prod(shape), p).view(shape)
    # rand lies in [0, 1): p = 0 keeps everything and p = 1 nothing, exactly.
    # torch.rand with a generator argument, None even, takes no symbolic sizes (torch.compile).
    if generator is None:
        return torch.rand(shape, device=device) >= p
    return torch.rand(shape, device=device, generator=generator) >= p


def _has_fused_sampling(device: torch.device | str | None) -> bool:
    """Whether an op of csrc draws. Not in vmap, which asks whether samples share a mask."""
    if torch._C._are_functorch_transforms_active():
        return False
    device = torch.device(device or torch.get_default_device())
    return device.type == "cpu" or (device.type == "cuda" and _has_kernel(device))


def _has_kernel(device: torch.device) -> bool:
    """Whether the library was compiled for that GPU. (A graph is only made where it was.)"""
    if torch.compiler.is_compiling() or not ops.CUDA_ARCHITECTURES:
        return bool(ops.CUDA_ARCHITECTURES)
    if not torch.cuda.is_available():  # the tensors are FakeTensorMode's
        return False
    return ops.compiled_for(torch.cuda.get_device_capability(device))


def apply_mask(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """x * keep / (1 - p). A NaN that is dropped stays dropped."""
    return torch.where(keep, x * dropout_scale(p), x.new_zeros(()))


def sample_layer_masks(
    gates: int,
    batch_size: int,
    input_size: int,
    hidden_size: int,
    *,
    input_dropout: float,
    recurrent_dropout: float,
    tie_gates: bool = False,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> LayerMasks:
    """Masks of one layer and direction, `gates` independent ones or, tied, one for all gates."""
    sets = 1 if tie_gates else gates
    if (input_dropout or recurrent_dropout) and _has_fused_sampling(device):
        # One op, not one a mask: between two calls of a layer all this has left the caches.
        seeds = torch.randint(_SEEDS.min, _SEEDS.max, (2,), device=device, generator=generator)
        keep_x, keep_h = ops.call(
            torch.ops.bayesrnn.sample_layer_keep,
            seeds, sets, batch_size, input_size, hidden_size, input_dropout, recurrent_dropout,
        )  # fmt: skip
    else:
        keep_x, keep_h = (
            sample_keep((sets, batch_size, size), p, device=device, generator=generator)
            if p
            else None
            for p, size in ((input_dropout, input_size), (recurrent_dropout, hidden_size))
        )
    return LayerMasks(
        keep_x if input_dropout else None,
        keep_h if recurrent_dropout else None,
        dropout_scale(input_dropout),
        dropout_scale(recurrent_dropout),
    )

"""How sequences come to a layer and go back, batch first, unbatched or packed; inside they are
time-major.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import autograd
from .checks import ArgumentError, check_tensor


class TimeMajor(NamedTuple):
    """What a layer computes with."""

    x: Tensor  # [T, B, I]
    lengths: Tensor | None  # int64 [B]
    resets: Tensor | None  # bool [T, B]
    packed: Tensor | None = None  # int64 [B] of a PackedSequence, in its order, on the CPU


class Layout(NamedTuple):
    """How the input of one call came, which is how its output goes."""

    batch_first: bool
    unbatched: bool
    packed: PackedSequence | None = None

    @classmethod
    def of(cls, input: Tensor | PackedSequence, batch_first: bool) -> "Layout":
        """ArgumentError for a rank that no layout has."""
        if isinstance(input, PackedSequence):
            if torch.compiler.is_exporting() or autograd.in_func_grad():  # torch cannot unpack it
                raise ArgumentError(
                    "input: expected a tensor within torch.export and torch.func, "
                    "got PackedSequence"
                )
            return cls(batch_first, unbatched=False, packed=input)
        check_tensor("input", input)
        if input.dim() not in (2, 3):
            raise ArgumentError(f"input: expected 2 (unbatched) or 3 dimensions, got {input.dim()}")
        return cls(batch_first, unbatched=input.dim() == 2)

    def time_major(self, input: Tensor | PackedSequence, resets: Tensor | None) -> TimeMajor:
        """The input, and where its segments begin. ArgumentError for resets of another shape."""
        lengths = packed = None
        if isinstance(input, PackedSequence):
            x, lengths, packed = _unpack(input)
        elif self.unbatched:
            x = input.unsqueeze(1)
        else:
            x = input.transpose(0, 1) if self.batch_first else input
        check_tensor("resets", resets, optional=True)
        if resets is None:
            return TimeMajor(x, lengths, None, packed)
        T, B = x.shape[:2]
        shape = (T,) if self.unbatched else (B, T) if self.batch_first else (T, B)
        if tuple(resets.shape) != shape:
            letters = "T" if self.unbatched else "B, T" if self.batch_first else "T, B"
            raise ArgumentError(
                f"resets: expected shape {list(shape)} ({letters}), got {list(resets.shape)}"
            )
        if self.unbatched:
            return TimeMajor(x, lengths, resets.unsqueeze(1), packed)
        return TimeMajor(x, lengths, resets.t() if self.batch_first else resets, packed)

    def output(
        self, y: Tensor, packed: Tensor | None, states: tuple[Tensor, ...]
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
        """y [T, B, F] and the states [layers*D, B, H] as the input came."""
        if self.packed is not None and packed is not None:
            return _pack(y, packed, self.packed), states
        if self.unbatched:
            return y.squeeze(1), tuple(state.squeeze(1) for state in states)
        return (y.transpose(0, 1) if self.batch_first else y), states


# A PackedSequence has its batch_sizes on the CPU, and its data perhaps on a GPU. Neither of these
# waits for that one: in torch's own way to the caller's order and back, the host reads the order.


def _unpack(input: PackedSequence) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, B, I] and its lengths in the caller's order, and the lengths as they are packed."""
    x, packed = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes))
    lengths = packed.to(x.device, non_blocking=not _captures(x))
    if input.unsorted_indices is None:
        return x, lengths, packed
    order = input.unsorted_indices
    return x.index_select(1, order), lengths.index_select(0, order), packed


def _captures(x: Tensor) -> bool:
    """Whether a CUDA graph may be made of the call. It would read the lengths again where they were
    on the CPU; a copy that waits is an error there."""
    if torch.compiler.is_compiling():
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _pack(y: Tensor, lengths: Tensor, like: PackedSequence) -> PackedSequence:
    """y [T, B, F] in the layout of `like`, which holds the same sequences of these lengths."""
    if like.sorted_indices is not None:
        y = y.index_select(1, like.sorted_indices)
    data = pack_padded_sequence(y, lengths).data
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)

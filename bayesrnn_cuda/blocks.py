"""What holds for the time of a `with` block: flags of modules, and the masks of their layers.

Blocks nest, overlap and run in several threads. A flag is one for all threads, as torch's
`training` is, so that what a block found is handed on when it ends before a later one. Which masks
a layer uses belongs to the thread or task that opened the block.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

_lock = threading.RLock()


class _Found:
    """One block's value of one attribute: what it found there."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner = owner  # kept alive, since the key is its id
        self.key = (id(owner), name)
        self.value = getattr(owner, name)


# Of each attribute the blocks that are open, in the order they began.
_open_flags: dict[tuple[int, str], list[_Found]] = {}


@contextmanager
def flags(values: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Sets (object, attribute, value) within the block, and then what stood there before.

    Where blocks overlap, the last to end restores what the first one found.
    """
    if torch.compiler.is_compiling():  # one thread, and no lock in a graph
        before = [getattr(owner, name) for owner, name, _ in values]
        for owner, name, value in values:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for (owner, name, _), found in zip(values, before, strict=True):
                setattr(owner, name, found)
        return
    entered: list[_Found] = []
    try:
        with _lock:
            for owner, name, value in values:
                found = _Found(owner, name)
                _open_flags.setdefault(found.key, []).append(found)
                entered.append(found)
                setattr(owner, name, value)
        yield
    finally:
        with _lock:
            for found in reversed(entered):
                _leave(found)


def _leave(found: _Found) -> None:
    """Restores what was found, or hands it to the next block, which found what this one set."""
    blocks = _open_flags[found.key]
    index = blocks.index(found)
    if found is blocks[-1]:
        setattr(found.owner, found.key[1], found.value)
    else:
        blocks[index + 1].value = found.value
    del blocks[index]
    if not blocks:
        del _open_flags[found.key]


class Layer(Protocol):
    """A module that draws masks."""

    def _fresh(self, sequences: int, features: int, device: torch.device) -> list[Tensor | None]:
        """New masks for so many sequences."""

    def _largest_dropout(self) -> float:
        """0 where nothing is dropped."""

    _mask_batch_dim: int  # of its masks, where the sequences are
    _in_block: bool  # whether any thread is in a block that holds or shares its masks


class MaskBlock:
    """How the layers of one module draw within one block, and what they saw.

    Args:
        layers: those that the block is about.
        hold: a layer's first call draws, later ones reuse.
        sets: so many sets of masks for all sequences, each for as many that follow one another.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        hold: bool = False,
        sets: int | None = None,
    ) -> None:
        self.layers = {id(layer): layer for layer in layers}
        self.hold = hold
        self.sets = sets
        self.sequences: list[int] = []  # of each call of a layer
        self.drew = False  # whether any dropout did
        self._held: dict[tuple[int, int], tuple[int, list[Tensor | None]]] = {}

    def saw(self, sequences: int, *, drew: bool = False) -> None:
        """A layer's call."""
        self.sequences.append(sequences)
        self.drew |= drew

    def masks(
        self, layer: Layer, sequences: int, features: int, device: torch.device
    ) -> list[Tensor | None] | None:
        """The masks of one call of `layer`; None where it draws as outside of any block."""
        self.drew |= layer._largest_dropout() > 0
        if not self.hold:
            if self.sets is None:
                return None
            return self._draw(layer, sequences, features, device)
        key = (id(layer), features)
        if key not in self._held:
            masks = self._draw(layer, sequences, features, device)
            if any(m is not None and torch._C._functorch.is_batchedtensor(m) for m in masks):
                raise ValueError(
                    "hold_masks: expected calls outside of torch.vmap, or with "
                    'randomness="same", got masks that differ within it'
                )
            self._held[key] = sequences, masks
        held, masks = self._held[key]
        if held != sequences:
            raise ValueError(
                f"input: expected {held} sequences, for which this block holds the masks of "
                f"{type(layer).__name__}, got {sequences}"
            )
        return masks

    def _draw(
        self, layer: Layer, sequences: int, features: int, device: torch.device
    ) -> list[Tensor | None]:
        # what cannot be told apart evenly is no sample of mc_predict, which checks it
        if self.sets is None or sequences % self.sets:
            return layer._fresh(sequences, features, device)
        masks = layer._fresh(self.sets, features, device)
        return repeat_sets(layer, masks, sequences // self.sets)


def repeat_sets(layer: Layer, masks: list[Tensor | None], each: int) -> list[Tensor | None]:
    """Every set of masks for `each` sequences that follow one another."""
    dim = layer._mask_batch_dim
    return [None if m is None else m.repeat_interleave(each, dim=dim) for m in masks]


_open_blocks: ContextVar[tuple[MaskBlock, ...]] = ContextVar("mask_blocks", default=())
_all_blocks: list[MaskBlock] = []  # of every thread


@contextmanager
def entered(block: MaskBlock) -> Iterator[MaskBlock]:
    """`block` is the innermost one of this thread or task."""
    _open_blocks.set((*_open_blocks.get(), block))
    _all_blocks.append(block)
    try:
        yield block
    finally:
        # not by a token: blocks may end in the order in which they began
        _open_blocks.set(tuple(b for b in _open_blocks.get() if b is not block))
        _all_blocks.remove(block)


def is_open(block: MaskBlock) -> bool:
    """Whether this thread or task is within `block`."""
    return block in _open_blocks.get()


def block_of(layer: Layer) -> MaskBlock | None:
    """The innermost open block that is about `layer`."""
    for block in reversed(_open_blocks.get()):
        if id(layer) in block.layers:
            return block
    if layer._in_block and torch._C._current_graph_task_id() >= 0:
        # a checkpoint computes again in a thread of autograd, which is within no block
        found = [block for block in list(_all_blocks) if id(layer) in block.layers]
        if len(found) > 1:
            raise RuntimeError(
                "hold_masks: expected one open block for a checkpoint that computes again in "
                f"backward, got {len(found)}"
            )
        return found[0] if found else None
    return None

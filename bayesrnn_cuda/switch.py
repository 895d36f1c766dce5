"""Whether a module draws masks: a switch that every tool for MC dropout finds."""

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import blocks


class MaskDropout(nn.Dropout):
    """The switch of a module with masks: they are drawn while its `training` flag is set.

    `train()` and `eval()` of the module reach it as they reach any nn.Dropout, and so do tools that
    switch every nn.Dropout to `train()` for MC dropout. It is called by nobody, has no entry in a
    state_dict and does not show in the module's repr.
    """

    def __init__(self, layer: "DropoutModule") -> None:
        nn.Module.__init__(self)  # nn.Dropout's own would set p
        self.inplace = False
        # weak: a cycle would keep the weights of a dropped module until the next collection
        self._layer: weakref.ref[DropoutModule] | None = weakref.ref(layer)

    @property
    def p(self) -> float:  # type: ignore[override]
        """The largest probability of the module. Set, it takes the place of all that are not 0."""
        layer = self._layer and self._layer()
        return layer._largest_dropout() if layer else 0.0

    @p.setter
    def p(self, value: float) -> None:
        layer = self._layer and self._layer()
        if layer:
            layer._replace_dropout(value)

    def belongs_to(self, layer: "DropoutModule") -> None:
        """Ties a switch that was copied or unpickled to the module that has it now."""
        if self._layer is None:
            self._layer = weakref.ref(layer)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_layer": None}


class DropoutModule(nn.Module):
    """Base of the modules that draw masks: while `mask_dropout.training`, whatever their own flag.

    A subclass says how masks are drawn (`_fresh`), and asks `_sample` for those of a call.
    """

    _mask_batch_dim = 0

    def __init__(self) -> None:
        super().__init__()
        self._add_switch()

    def _add_switch(self) -> None:
        self.mask_dropout = MaskDropout(self)
        # Both here, and not where a block sets them, because a compiled module is compiled again
        # where an attribute appears.
        self._in_block = False  # while a block of any thread holds or shares the masks
        self._traced: dict[int, list[Tensor | None]] | None = None
        self._key = 0

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        # A copy, or what was saved, belongs to no block that the original was in.
        self._in_block, self._traced, self._key = False, None, 0
        if "mask_dropout" not in self._modules:  # pickled by a version before there was a switch
            drew = self.__dict__.pop("mc", False) or self.training
            self._add_switch()
            self.mask_dropout.train(drew)
        if isinstance(self.mask_dropout, MaskDropout):  # and not what a tool put in its place
            self.mask_dropout.belongs_to(self)

    @property
    def draws_masks(self) -> bool:
        """Whether a call draws masks when it is given none.

        Not asked by calls themselves: nn.Module would report what is missing here, say after
        `del module.mask_dropout`, as a missing `draws_masks`.
        """
        return self.mask_dropout.training

    def _as_leaf(self, *arguments: Any, **kwargs: Any) -> fx.Proxy | None:
        """The node of this module in a symbolic trace by torch.fx; None outside of one.

        There torch's own layers are leaves, by the name of the package that they stand in.
        """
        tracers = {x.tracer for x in arguments if isinstance(x, fx.Proxy)}
        if not tracers:
            return None
        (tracer,) = tracers
        given = {name: value for name, value in kwargs.items() if value is not None}
        path = tracer.path_of_module(self)  # type: ignore[attr-defined]
        return tracer.create_proxy("call_module", path, arguments, given)

    def _largest_dropout(self) -> float:
        raise NotImplementedError

    def _replace_dropout(self, p: float) -> None:
        raise NotImplementedError

    def _mask_shapes(self, sequences: int, features: int) -> list[tuple[int, ...] | None]:
        """Of what `_fresh` draws."""
        raise NotImplementedError

    def _fresh(
        self,
        sequences: int,
        features: int,
        device: torch.device | str | None,
        generator: torch.Generator | None = None,
    ) -> list[Tensor | None]:
        """New masks for so many sequences; `features` of the input, where the module has no size of
        its own. None where nothing is dropped."""
        raise NotImplementedError

    def _shared(
        self,
        sequences: int,
        features: int,
        device: torch.device | str | None,
        generator: torch.Generator | None = None,
    ) -> list[Tensor | None]:
        """As `_fresh`, one set for all sequences."""
        masks = self._fresh(1, features, device, generator)
        return blocks.repeat_sets(self, masks, sequences)

    def _saw(self, sequences: int, *, drew: bool = False) -> None:
        """Tells the block, if there is one, of a call."""
        if not torch.compiler.is_compiling():
            block = blocks.block_of(self)
            if block is not None:
                block.saw(sequences, drew=drew)

    def _sample(
        self, sequences: int, features: int, device: torch.device
    ) -> list[Tensor | None] | None:
        """The masks that the innermost block has for a call; None outside of any."""
        if not torch.compiler.is_compiling():
            block = blocks.block_of(self)
            return None if block is None else block.masks(self, sequences, features, device)
        if self._traced is not None:
            if features not in self._traced:
                self._traced[features] = self._fresh(sequences, features, device)
            return self._traced[features]
        if self._in_block:
            return self._ask_block(sequences, features, device)
        return None

    def _ask_block(
        self, sequences: int, features: int, device: torch.device
    ) -> list[Tensor | None]:
        """As `_sample`, by an op, since a graph runs in whichever thread calls it."""
        return [
            None
            if shape is None
            else torch.ops.bayesrnn.block_keep(
                self._key, index, sequences, features, list(shape), device
            )
            for index, shape in enumerate(self._mask_shapes(sequences, features))
        ]

    def __repr__(self) -> str:
        if len(self._modules) == 1:
            return f"{self._get_name()}({self.extra_repr()})"
        # a subclass has parts of its own, or a weight is parametrized, which copy.copy refuses
        parts = {name: part for name, part in self._modules.items() if name != "mask_dropout"}
        shown = object.__new__(type(self))
        shown.__dict__.update(self.__dict__, _modules=parts)
        return nn.Module.__repr__(shown)


def single(masks: list[Tensor | None]) -> Tensor:
    """The mask of a module that has one."""
    (keep,) = masks
    assert keep is not None
    return keep


_keys = itertools.count(1)
_layers: weakref.WeakValueDictionary[int, DropoutModule] = weakref.WeakValueDictionary()


def register(layer: DropoutModule) -> None:
    """Gives the layer the number by which a compiled graph asks for its masks."""
    if _layers.get(layer._key) is not layer:  # new, or a copy of one that has it
        layer._key = next(_keys)
        _layers[layer._key] = layer


def _block_keep(
    layer: int,
    index: int,
    sequences: int,
    features: int,
    sizes: Sequence[int],
    device: torch.device,
) -> Tensor:
    module = _layers.get(layer)
    if module is None:
        raise RuntimeError(
            "hold_masks: expected the layer that the graph was compiled of, got none"
        )
    block = blocks.block_of(module)
    held = None if block is None else block.masks(module, sequences, features, device)
    if held is None:  # the block is another thread's
        held = module._fresh(sequences, features, device)
    keep = held[index]
    assert keep is not None
    return keep.clone()  # the graph may write into what it got


_op = torch.library.custom_op(
    "bayesrnn::block_keep",
    _block_keep,
    mutates_args=(),
    tags=(torch.Tag.nondeterministic_seeded, torch.Tag.cudagraph_unsafe),
)


@_op.register_fake
def _(layer, index, sequences, features, sizes, device):
    return torch.empty(sizes, dtype=torch.bool, device=device)

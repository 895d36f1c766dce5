"""Attributes of a module that are checked wherever they are set, in its constructor or later."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from . import engines
from .checks import (
    check_flag,
    check_no_projections,
    check_probabilities,
    check_probability,
    check_size,
)


class Settings(nn.Module):
    """A module whose attributes in `settings` are checked, and stored as their check returns them.

    A dropout schedule that sets a probability gets what the constructor would have made of it,
    errors included. What the parameters have their shapes from is in `fixed`: another value of it
    is refused, because they would stay as they are.
    """

    settings: ClassVar[dict[str, Callable[[str, Any], Any]]] = {}
    fixed: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        check = self.settings.get(name)
        if check is not None:
            value = check(name, value)
            built = self.__dict__.get(name, getattr(type(self), name, value))
            if name in self.fixed and value != built:
                raise ValueError(
                    f"{name}: expected {built!r}, which the parameters were made for, got {value!r}"
                )
        super().__setattr__(name, value)


class LayerSettings(Settings):
    """The attributes of a recurrent layer, which are those of torch.nn.LSTM and ours."""

    mode: str  # torch's name of the cell
    input_size: int
    hidden_size: int
    num_layers: int
    dropout: float
    input_dropout: Any  # kept as one float per layer, set as the constructor takes it

    fixed = frozenset({
        "mode", "input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size"
    })  # fmt: skip
    settings: ClassVar = {
        "mode": lambda name, value: value,
        "input_size": check_size,
        "hidden_size": check_size,
        "num_layers": check_size,
        "bias": check_flag,
        "batch_first": check_flag,
        "dropout": check_probability,
        "bidirectional": check_flag,
        "proj_size": check_no_projections,
        "recurrent_dropout": check_probability,
        "tie_gates": check_flag,
        "engine": lambda name, value: engines.check_name(value),
    }

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "dropout":
            by_dropout = self._between_layers(self.dropout)
            self._set_dropout(value, replaced=self.input_dropout != by_dropout)
        elif name == "input_dropout":
            value = check_probabilities(name, value, self.num_layers)
            super().__setattr__("dropout", 0.0)  # whose place it takes
            super().__setattr__(name, value)
        else:
            super().__setattr__(name, value)

    def _set_dropout(self, p: float, *, replaced: bool) -> None:
        """Makes `input_dropout` of torch's `dropout`; `replaced`: it has been given itself."""
        p = check_probability("dropout", p)
        if replaced and p:
            raise ValueError(
                "dropout: expected 0 where input_dropout, which takes its place, is given too, "
                f"got {p!r}"
            )
        if p and self.num_layers == 1:
            warnings.warn(
                "dropout: expected 0 for one layer, since it drops what enters the layers behind "
                f"the first (input_dropout drops the input too), got {p!r}",
                stacklevel=3,
            )
        if not replaced:
            super().__setattr__("input_dropout", self._between_layers(p))
        super().__setattr__("dropout", p)

    def _between_layers(self, p: float) -> tuple[float, ...]:
        return (0.0,) + (p,) * (self.num_layers - 1)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "num_layers": 1, "bias": True, "batch_first": False, "bidirectional": False,
            "dropout": 0.0, "input_dropout": self._between_layers(self.dropout),
            "recurrent_dropout": 0.0, "tie_gates": False, "engine": "auto",
        }  # fmt: skip
        parts += [
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        return ", ".join(parts)

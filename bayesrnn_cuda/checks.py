"""Checks of arguments in Python, in one wording: "argument: expected ..., got ...".

Shapes, dtypes and devices of a layer's tensors are checked in csrc/checks.h.
"""

import numbers
import operator
from typing import Any

import torch
from torch import Tensor, nn


def check_tensor(name: str, value: Any, *, optional: bool = False) -> None:
    """ValueError unless `value` is a dense tensor, or None where that is an answer too."""
    if value is None and optional:
        return
    if not isinstance(value, Tensor):
        expected = "a tensor or None" if optional else "a tensor"
        raise ValueError(f"{name}: expected {expected}, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        found = "a nested one" if value.is_nested else f"layout {value.layout}"
        raise ValueError(f"{name}: expected a dense tensor, got {found}")


def check_keep(keep: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """ValueError unless `keep` is a mask of that shape on that device."""
    check_tensor("keep", keep)
    if tuple(keep.shape) != shape:
        raise ValueError(f"keep: expected shape {list(shape)}, got {list(keep.shape)}")
    if keep.dtype != torch.bool:
        raise ValueError(f"keep: expected dtype bool, got {str(keep.dtype).removeprefix('torch.')}")
    if keep.device != device:
        raise ValueError(f"keep: expected device {device}, got {keep.device}")


def check_probability(name: str, p: float) -> float:
    """`p` as a float; ValueError unless it lies in [0, 1]."""
    if isinstance(p, bool) or not isinstance(p, numbers.Real) or not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: expected a probability of dropping in [0, 1], got {p!r}")
    return float(p)


def check_number(name: str, value: float) -> None:
    """ValueError unless `value` is a real number."""
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{name}: expected a number, got {value!r}")


def check_integer(name: str, value: int) -> int:
    """`value` as an int; ValueError unless it is an integer."""
    if not _is_integer(value):
        raise ValueError(f"{name}: expected an integer, got {value!r}")
    return operator.index(value)


def check_size(name: str, value: int, least: int = 1) -> int:
    """`value` as an int; ValueError unless it is an integer from `least` to 2**63 - 1."""
    if not _is_integer(value) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    if value >= 2**63:
        raise ValueError(f"{name}: expected an integer below 2**63, got {value!r}")
    return operator.index(value)


def _is_integer(value: Any) -> bool:
    """A tensor is none, nor is a bool."""
    return hasattr(value, "__index__") and not isinstance(value, bool | Tensor)


def check_flag(name: str, value: bool) -> bool:
    """`value` itself; ValueError unless it is a bool."""
    # nn.LSTM has `dropout` where this package has `bidirectional`: do not take 0.5 for True.
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return value


def check_module(module: nn.Module) -> None:
    """ValueError unless `module` is an nn.Module."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"module: expected an nn.Module, got {type(module).__name__}")

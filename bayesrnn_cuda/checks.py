"""Checks of arguments in Python, in one wording: "argument: expected ..., got ...".

What is of another Python type is a TypeError, what has a wrong value a ValueError. Shapes, dtypes
and devices of a layer's tensors are checked in csrc/checks.h.
"""

import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_SHOWN = 80  # characters of a value in a message


class ArgumentError(ValueError, RuntimeError):
    """A wrong shape, length, dtype or device of what a layer is called with.

    Torch's layers raise RuntimeError for most of these and ValueError for the others: code that
    expects either of them of torch.nn.LSTM catches this.
    """


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32", as torch names it."""
    return str(dtype).removeprefix("torch.")


def check_tensor(name: str, value: Any, *, optional: bool = False) -> None:
    """TypeError unless `value` is a tensor, or None where that is an answer too; dense as well."""
    if value is None and optional:
        return
    if not isinstance(value, Tensor):
        expected = "a tensor or None" if optional else "a tensor"
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        found = "a nested one" if value.is_nested else f"layout {value.layout}"
        raise ArgumentError(f"{name}: expected a dense tensor, got {found}")


def check_tensors(names: Iterable[str], values: Iterable[Any], *, optional: bool = False) -> None:
    """`check_tensor` of each value, as many as there are; a call of a layer has a dozen."""
    for name, value in zip(names, values, strict=False):
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
            check_tensor(name, value, optional=optional)


def check_keep(keep: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """ArgumentError unless `keep` is a mask of that shape on that device."""
    check_tensor("keep", keep)
    if tuple(keep.shape) != shape:
        raise ArgumentError(f"keep: expected shape {list(shape)}, got {list(keep.shape)}")
    if keep.dtype != torch.bool:
        raise ArgumentError(
            f"keep: expected dtype bool, got {str(keep.dtype).removeprefix('torch.')}"
        )
    if keep.device != device:
        raise ArgumentError(f"keep: expected device {device}, got {keep.device}")


def check_probability(name: str, p: float) -> float:
    """`p` as a float; TypeError unless it is a real number, ValueError unless within [0, 1]."""
    number = isinstance(p, numbers.Real) and not isinstance(p, bool)
    if not number or not 0.0 <= p <= 1.0:
        error = ValueError if number else TypeError
        raise error(f"{name}: expected a probability of dropping in [0, 1], got {shown(p)}")
    return float(p)


def check_probabilities(name: str, p: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One probability for each of `count` layers, of a sequence of them or of one for all."""
    p = from_numpy(p)
    if not isinstance(p, Sequence) or isinstance(p, str):
        return (check_probability(name, p),) * count
    if len(p) != count:
        raise ValueError(
            f"{name}: expected a float or one per layer ({count}), got {len(p)} values"
        )
    return tuple(check_probability(name, each) for each in p)


def shown(value: Any) -> str:
    """`value` in a message: as it is written, or its kind where that would be long."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and math.prod(value.shape) > 1:
        dtype = dtype_name(value.dtype)
        return f"{type(value).__name__} of {dtype} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{type(value).__name__} {text[:_SHOWN]}..."


def check_number(name: str, value: float, expected: str = "a number") -> None:
    """TypeError unless `value` is a real number, which True and False are not."""
    if isinstance(value, float):  # first, since abstract types take ten times as long to ask for
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}")


def check_numbers(name: str, value: Any) -> Any:
    """`value`, without numpy; TypeError unless it is a number, a tensor, or a list of those."""
    value = from_numpy(value)
    for each in value if isinstance(value, list | tuple) else (value,):
        if not isinstance(each, Tensor):
            check_number(name, each)
    return value


def check_integer(name: str, value: int) -> int:
    """`value` as an int; TypeError unless it is an integer."""
    if not _is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {shown(value)}")
    return operator.index(value)


def check_size(name: str, value: int, least: int = 1) -> int:
    """`value` as an int; TypeError unless it is an integer, ValueError unless from `least` to
    2**63 - 1."""
    if not _is_integer(value):
        raise TypeError(f"{name}: expected an integer of at least {least}, got {shown(value)}")
    if value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {shown(value)}")
    if value >= 2**63:
        raise ValueError(f"{name}: expected an integer below 2**63, got {shown(value)}")
    return operator.index(value)


def _is_integer(value: Any) -> bool:
    """A tensor is none, nor is a bool."""
    return hasattr(value, "__index__") and not isinstance(value, bool | Tensor)


def check_flag(name: str, value: bool) -> bool:
    """`value` itself; TypeError unless it is a bool."""
    if isinstance(value, bool):
        return value
    value = from_numpy(value)
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return value


def check_no_projections(name: str, value: int) -> int:
    """0; ValueError for torch.nn.LSTM's projections, which no layer here has."""
    if check_size(name, value, least=0) != 0:
        raise ValueError(f"{name}: expected 0, no projections, got {shown(value)}")
    return 0


def from_numpy(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's: configurations and parameter searches have them."""
    return value.tolist() if type(value).__module__ == "numpy" else value


def check_module(module: nn.Module, name: str = "module") -> None:
    """TypeError unless `module` is an nn.Module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name}: expected an nn.Module, got {type(module).__name__}")


def check_level(name: str, value: float) -> float:
    """`value` as a float; TypeError unless it is a real number, ValueError unless in (0, 1)."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0.0 < value < 1.0:
        error = ValueError if number else TypeError
        raise error(f"{name}: expected a probability in (0, 1), got {shown(value)}")
    return float(value)


def check_not_negative(name: str, value: Any) -> None:
    """TypeError unless `value` is a number or a tensor, ValueError unless it is at least 0."""
    if not isinstance(value, Tensor):
        check_number(name, value, "a number or a tensor")
    elif value.dtype == torch.bool or value.is_complex():
        raise ValueError(f"{name}: expected real numbers, got {shown(value)}")
    at_least = torch.as_tensor(value) >= 0
    if not bool(at_least.all()):
        raise ValueError(f"{name}: expected at least 0, got {shown(value)}")


def broadcasting(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """`value` as a tensor like `like`; ValueError unless it broadcasts to that."""
    result = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    try:
        fits = torch.broadcast_shapes(result.shape, like.shape) == like.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {list(like.shape)}, "
            f"got {list(result.shape)}"
        )
    return result

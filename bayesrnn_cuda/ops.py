"""torch.ops.bayesrnn: loads the compiled library and tells torch the shapes of its results.

The schemas stand in csrc/ops.cpp and nowhere else. The ops are functional: tensors, masks, scales,
lengths, resets, direction and engine go in, new tensors come out, nothing is mutated.
"""

import functools
import importlib.util
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .cells import CELLS, Cell
from .checks import ArgumentError

_spec = importlib.util.find_spec("bayesrnn_cuda._C")
if _spec is None or _spec.origin is None:
    raise ImportError(
        "bayesrnn_cuda: the compiled library bayesrnn_cuda._C is missing; "
        "build it with `pip install .` (or `pip install -e .`) in the repository"
    )
LIBRARY_PATH: str = _spec.origin
torch.ops.load_library(LIBRARY_PATH)

# What the library was compiled for, as ["8.0", "9.0a", "12.0+PTX"]; empty: without CUDA.
CUDA_ARCHITECTURES = [a for a in torch.ops.bayesrnn.cuda_architectures().split(";") if a]


@functools.cache
def compiled_for(capability: tuple[int, int]) -> bool:
    """Whether a GPU of that compute capability can run the library's kernels."""
    for architecture in CUDA_ARCHITECTURES:
        number = re.match(r"(\d+)\.(\d+)", architecture)
        assert number is not None
        compiled = int(number[1]), int(number[2])
        rest = architecture[number.end() :]
        if rest == "+PTX":  # for a later one it is compiled when it is loaded
            runs = capability >= compiled
        elif rest:  # "9.0a" runs there and nowhere else, "9.0a+PTX" likewise
            runs = capability == compiled
        else:
            runs = capability[0] == compiled[0] and capability >= compiled
        if runs:
            return True
    return False


def call(op: Callable[..., Any], *arguments: Any) -> Any:
    """op(*arguments), where `op` is one of torch.ops.bayesrnn or ends in one.

    Raises:
        torch.OutOfMemoryError: there is no memory for a result or for what the op needs meanwhile.
            (Torch's stable ABI, through which the library throws, has no word for that.)
        ArgumentError: any other fault of the arguments, by name.
    """
    try:
        return op(*arguments)
    except RuntimeError as error:
        kind = _error_of(str(error))
        if kind is None:
            raise
        raise kind(str(error)) from None


def _error_of(message: str) -> type[Exception] | None:
    """What to raise for an error of the library, which can only throw a RuntimeError."""
    if message.startswith("memory: expected room for "):
        return torch.OutOfMemoryError
    return ArgumentError if re.match(r"\w+: expected .+, got ", message) else None


def _arguments(schema: torch.FunctionSchema, args: tuple, kwargs: dict) -> dict[str, Any]:
    """What an op was called with, by name; checks the tensors among them.

    Meta tensors come here whatever device x has: a real x would get uninitialised results.
    """
    defaults = {a.name: a.default_value for a in schema.arguments}
    given = defaults | dict(zip(defaults, args, strict=False)) | kwargs
    x = given["x"]
    for argument in schema.arguments:
        value, name = given[argument.name], argument.name
        if value is None and not isinstance(argument.type, torch.OptionalType):
            raise RuntimeError(f"{name}: expected a tensor, got None")
        if isinstance(value, Tensor) and value.device != x.device:
            raise RuntimeError(f"{name}: expected device {x.device} as x, got {value.device}")
    return given


def _forward_fake(cell: Cell, schema: torch.FunctionSchema, *args, **kwargs):
    given = _arguments(schema, args, kwargs)
    x, h0 = given["x"], given["h0"]
    T, B, H = x.shape[0], x.shape[1], h0.shape[1]
    steps = T if given["save"] else 0
    # a flag that is off is that of a cell which has nothing to save beside its gates
    saved = steps if all(given[flag] for flag in cell.flags) else 0
    return (
        x.new_empty(T, B, H),
        *(x.new_empty(B, H) for _ in range(cell.states)),
        x.new_empty(steps, B, cell.gates * H),
        *(x.new_empty(saved, B, H) for _ in range(cell.saved)),
    )


def _backward_fake(cell: Cell, schema: torch.FunctionSchema, *args, **kwargs):
    given = _arguments(schema, args, kwargs)
    x, h0 = given["x"], given["h0"]
    weights = given["weight_ih"], given["weight_hh"]
    biases = weights[0].shape[0] if given["bias"] else 0
    return (
        x.new_empty(x.shape if given["need_dx"] else (0,)),
        *(x.new_empty(h0.shape) for _ in range(cell.states)),
        *(torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights),
        *(weights[0].new_empty(biases) for _ in range(2)),
    )


for _cell in CELLS.values():
    for _name, _fake in ((_cell.name, _forward_fake), (f"{_cell.name}_backward", _backward_fake)):
        _schema = getattr(torch.ops.bayesrnn, _name).default._schema
        torch.library.register_fake(f"bayesrnn::{_name}", partial(_fake, _cell, _schema))


@torch.library.register_fake("bayesrnn::sample_keep")
def _sample_keep_fake(seed, count, p):
    return seed.new_empty(count, dtype=torch.bool)


@torch.library.register_fake("bayesrnn::sample_layer_keep")
def _sample_layer_keep_fake(seeds, sets, B, I, H, p_x, p_h):  # noqa: E741
    return tuple(
        seeds.new_empty((sets, B, size) if p else 0, dtype=torch.bool)
        for size, p in ((I, p_x), (H, p_h))
    )

"""torch.ops.bayesrnn: loads the compiled library and tells torch the shapes of its results.

The schemas stand in csrc/ops.cpp and nowhere else. The ops are functional: tensors, masks, scales,
lengths, direction and engine go in, new tensors come out, nothing is mutated.
"""

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


_OPTIONAL = ("bias_ih", "bias_hh", "keep_x", "keep_h", "lengths", "dy", "dh_n", "dc_n")


def _check_devices(x: Tensor, **tensors: Tensor | None) -> None:
    """Meta tensors come here whatever device x has: a real x would get uninitialised results."""
    for name, t in {"x": x, **tensors}.items():
        if t is None and name not in _OPTIONAL:
            raise RuntimeError(f"{name}: expected a tensor, got None")
        if t is not None and t.device != x.device:
            raise RuntimeError(f"{name}: expected device {x.device} as x, got {t.device}")


@torch.library.register_fake("bayesrnn::lstm")
def _lstm_fake(
    x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, keep_x, keep_h, lengths,
    scale_x=1.0, scale_h=1.0, reverse=False, save=True, allow_tf32=False,
    engine="auto",
):  # fmt: skip
    _check_devices(
        x, h0=h0, c0=c0, weight_ih=weight_ih, weight_hh=weight_hh, bias_ih=bias_ih,
        bias_hh=bias_hh, keep_x=keep_x, keep_h=keep_h, lengths=lengths,
    )  # fmt: skip
    T, B, H = x.shape[0], x.shape[1], h0.shape[1]
    saved = T if save else 0
    return (
        x.new_empty(T, B, H),
        x.new_empty(B, H),
        x.new_empty(B, H),
        x.new_empty(saved, B, 4 * H),
        x.new_empty(saved, B, H),
    )


@torch.library.register_fake("bayesrnn::gru")
def _gru_fake(
    x, h0, weight_ih, weight_hh, bias_ih, bias_hh, keep_x, keep_h, lengths,
    scale_x=1.0, scale_h=1.0, reverse=False, reset_after=True, save=True,
    allow_tf32=False, engine="auto",
):  # fmt: skip
    _check_devices(
        x, h0=h0, weight_ih=weight_ih, weight_hh=weight_hh, bias_ih=bias_ih,
        bias_hh=bias_hh, keep_x=keep_x, keep_h=keep_h, lengths=lengths,
    )  # fmt: skip
    T, B, H = x.shape[0], x.shape[1], h0.shape[1]
    saved = T if save else 0
    return (
        x.new_empty(T, B, H),
        x.new_empty(B, H),
        x.new_empty(saved, B, 3 * H),
        x.new_empty(saved if reset_after else 0, B, H),
    )


@torch.library.register_fake("bayesrnn::sample_keep")
def _sample_keep_fake(seed, count, p):
    return seed.new_empty(count, dtype=torch.bool)


@torch.library.register_fake("bayesrnn::sample_layer_keep")
def _sample_layer_keep_fake(seeds, sets, B, I, H, p_x, p_h):  # noqa: E741
    return tuple(
        seeds.new_empty((sets, B, size) if p else 0, dtype=torch.bool)
        for size, p in ((I, p_x), (H, p_h))
    )


def _weight_grads(weight_ih: Tensor, weight_hh: Tensor, bias: bool) -> tuple[Tensor, ...]:
    rows = weight_ih.shape[0] if bias else 0
    return (
        torch.empty_like(weight_ih, memory_format=torch.contiguous_format),
        torch.empty_like(weight_hh, memory_format=torch.contiguous_format),
        weight_ih.new_empty(rows),
        weight_ih.new_empty(rows),
    )


@torch.library.register_fake("bayesrnn::lstm_backward")
def _lstm_backward_fake(
    dy, dh_n, dc_n, x, h0, c0, weight_ih, weight_hh, keep_x, keep_h, lengths, y, gates, cells,
    scale_x=1.0, scale_h=1.0, reverse=False, bias=True, need_dx=True,
    allow_tf32=False, engine="auto",
):  # fmt: skip
    _check_devices(
        x, dy=dy, dh_n=dh_n, dc_n=dc_n, h0=h0, c0=c0, weight_ih=weight_ih, weight_hh=weight_hh,
        keep_x=keep_x, keep_h=keep_h, lengths=lengths, y=y, gates=gates, cells=cells,
    )  # fmt: skip
    dx = x.new_empty(x.shape if need_dx else (0,))
    grads = _weight_grads(weight_ih, weight_hh, bias)
    return (dx, x.new_empty(h0.shape), x.new_empty(c0.shape), *grads)


@torch.library.register_fake("bayesrnn::gru_backward")
def _gru_backward_fake(
    dy, dh_n, x, h0, weight_ih, weight_hh, keep_x, keep_h, lengths, y, gates, hidden_n,
    scale_x=1.0, scale_h=1.0, reverse=False, reset_after=True, bias=True, need_dx=True,
    allow_tf32=False, engine="auto",
):  # fmt: skip
    _check_devices(
        x, dy=dy, dh_n=dh_n, h0=h0, weight_ih=weight_ih, weight_hh=weight_hh, keep_x=keep_x,
        keep_h=keep_h, lengths=lengths, y=y, gates=gates, hidden_n=hidden_n,
    )  # fmt: skip
    dx = x.new_empty(x.shape if need_dx else (0,))
    return (dx, x.new_empty(h0.shape), *_weight_grads(weight_ih, weight_hh, bias))

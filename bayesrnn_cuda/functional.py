"""Stateless layers: one layer, one direction, all time steps in one call of a fused engine."""

from typing import Any

import torch
from torch import Tensor

from . import autograd, engines, reference
from .cells import GRU, LSTM, RNN, Cell
from .checks import check_flag, check_number, check_tensors
from .masks import LayerMasks
from .reference import LayerWeights

__all__ = ["LayerMasks", "LayerWeights", "gru", "lstm", "rnn"]

_NO_MASKS = LayerMasks()
_OPTIONAL = ("bias_ih", "bias_hh", "keep_x", "keep_h", "lengths", "resets")  # of the tensors
# Asked here, because torch.compile of torch 2.10 does not take the question.
_AUTOCAST_DEVICES = {
    device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)
}


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: LayerWeights,
    masks: LayerMasks | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    engine: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer in one direction with variational dropout (paper, section 3, eq. 4).

    For gate k:  z_k = W_k (m^x_k s_x x_t) + b^ih_k + U_k (m^h_k s_h h_{t-1}) + b^hh_k,
    i, f, o = sigmoid(z), g = tanh(z), c_t = f c_{t-1} + i g, h_t = o tanh(c_t).

    Args:
        x: input [T, B, I], T >= 1; any strides.
        h0, c0: initial state [B, H].
        weights: weight_ih [4H, I], weight_hh [4H, H], biases [4H] or None.
        masks: keep_x [4 or 1, B, I] and keep_h [4 or 1, B, H], boolean, True = kept; None = no
            dropout.
        lengths: int64 [B], 0 to T (on a GPU clamped to that, not checked): past its length a
            sequence keeps its state and writes zeros.
        resets: bool [T, B], True where a new segment of a sequence begins, an episode say: zero
            enters it as its state, at step 0 in place of h0 and c0. In reverse a segment is entered
            at its last step: there zero enters every segment but the last, and h0 and c0 always
            enter that one, even if all resets are True. Masks stay. None: nowhere.
        reverse: run from the last step (of each sequence) to the first.
        engine: "auto" or a name from `bayesrnn_cuda.info()`; "reference" differentiates twice.

    Returns:
        y [T, B, H], h_n [B, H], c_n [B, H] in the dtype of x.

    Raises:
        ValueError: unknown engine, wrong rank, size, dtype or device, or a GPU that cannot run the
            engine that was named; names argument, expected and actual. What torch.nn.LSTM raises
            a RuntimeError for is one too.
        TypeError: an argument of another type.
        torch.OutOfMemoryError: no memory for the results or for what the engine needs meanwhile.
    """
    return layer(LSTM, (x, h0, c0), weights, masks, lengths, resets, reverse, engine)


def gru(
    x: Tensor,
    h0: Tensor,
    weights: LayerWeights,
    masks: LayerMasks | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    reset_after: bool = True,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One GRU layer in one direction with variational dropout (paper, section 3).

    With a_k = W_k (m^x_k s_x x_t) + b^ih_k:  r, z = sigmoid(a + U (m^h s_h h_{t-1}) + b^hh),
    reset_after: n = tanh(a_n + r (U_n (m^h_n s_h h_{t-1}) + b^hh_n)), as torch.nn.GRU;
    otherwise:   n = tanh(a_n + U_n (r m^h_n s_h h_{t-1}) + b^hh_n), as Cho et al. (2014);
    h_t = (1 - z) n + z h_{t-1}.

    Args, Raises: as `lstm`, with 3 gates r, z, n and no c0.

    Returns:
        y [T, B, H], h_n [B, H] in the dtype of x.
    """
    check_flag("reset_after", reset_after)
    return layer(GRU, (x, h0), weights, masks, lengths, resets, reverse, engine, reset_after)


def rnn(
    x: Tensor,
    h0: Tensor,
    weights: LayerWeights,
    masks: LayerMasks | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One layer of Elman's RNN in one direction with variational dropout (paper, section 3).

    h_t = tanh(W (m^x s_x x_t) + b^ih + U (m^h s_h h_{t-1}) + b^hh), as torch.nn.RNN.

    Args, Raises: as `lstm`, with one gate and no c0.

    Returns:
        y [T, B, H], h_n [B, H] in the dtype of x.
    """
    return layer(RNN, (x, h0), weights, masks, lengths, resets, reverse, engine)


def layer(
    cell: Cell,
    x_and_states: tuple[Tensor, ...],
    weights: LayerWeights,
    masks: LayerMasks | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
    engine: str,
    *flags: bool,
) -> tuple[Any, ...]:
    """One layer of any cell; `flags` are those that the cell names. (y, *final states)."""
    keep_x, keep_h, scale_x, scale_h = _check(
        x_and_states, weights, masks, lengths, resets, reverse
    )
    tensors = _autocast(*x_and_states, *weights)
    count = len(x_and_states)
    x, *states = tensors[:count]
    parameters = tensors[count:]
    by_reference = _resolve(engine, x) == "reference"
    if by_reference or resets is not None:  # which is changed before the op, which checks too
        engines.check(cell.name, x, states, *parameters, keep_x, keep_h, lengths, resets)
    if by_reference:
        options = dict(zip(cell.flags, flags, strict=True))
        run = getattr(reference, cell.name)
        weights = LayerWeights(*parameters)
        return run(
            x, *states, weights, masks, lengths=lengths, resets=resets, reverse=reverse, **options
        )
    resets = reference.entering(resets, lengths, reverse)
    save = _needs_grad(*tensors)
    results = autograd.call(
        cell.name, *tensors, keep_x, keep_h, lengths, resets, scale_x, scale_h, reverse, *flags,
        save, engines.allow_tf32(x), engine, gradient=save,
    )  # fmt: skip
    return tuple(results[:count])


def _check(
    x_and_states: tuple[Tensor, ...],
    weights: LayerWeights,
    masks: LayerMasks | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> LayerMasks:
    """The types of the arguments; csrc/checks.h has the rest. Returns the masks, or none."""
    check_tensors(("x", "h0", "c0"), x_and_states)
    if not isinstance(weights, LayerWeights):
        raise TypeError(f"weights: expected LayerWeights, got {type(weights).__name__}")
    if masks is not None and not isinstance(masks, LayerMasks):
        raise TypeError(f"masks: expected LayerMasks or None, got {type(masks).__name__}")
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    keep_x, keep_h, scale_x, scale_h = masks = masks or _NO_MASKS
    check_tensors(("weight_ih", "weight_hh"), (weight_ih, weight_hh))
    check_tensors(_OPTIONAL, (bias_ih, bias_hh, keep_x, keep_h, lengths, resets), optional=True)
    check_number("scale_x", scale_x)
    check_number("scale_h", scale_h)
    check_flag("reverse", reverse)
    return masks


def _resolve(engine: str, x: Tensor) -> str:
    """As engines.resolve, but only the reference has forward-mode derivatives."""
    resolved = engines.resolve(engine, x)
    return "reference" if engine == "auto" and autograd.in_forward_mode() else resolved


def _needs_grad(*tensors: Tensor | None) -> bool:
    if torch._C._are_functorch_transforms_active():
        # a transform hides from the tensors here what requires a gradient further out
        return torch.is_grad_enabled() or autograd.in_func_grad()
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def autocast_enabled(x: Tensor) -> bool:
    """Whether autocast is on for the device of x."""
    device = x.device.type
    return device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def _autocast(x: Tensor, *tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype of autocast, where that is on, as torch.nn.LSTM has it."""
    if not autocast_enabled(x):
        return (x, *tensors)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in (x, *tensors)
    )

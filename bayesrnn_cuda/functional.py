"""Stateless layers: one layer, one direction, all time steps in one call of a fused engine."""

import torch
from torch import Tensor

from . import autograd, engines, reference
from .masks import LayerMasks
from .reference import LayerWeights

__all__ = ["LayerMasks", "LayerWeights", "gru", "lstm"]

_OPS = autograd._OPS


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: LayerWeights,
    masks: LayerMasks | None = None,
    *,
    lengths: Tensor | None = None,
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
        lengths: int64 [B], 0 to T: past its length a sequence keeps its state and writes zeros.
        reverse: run from the last step (of each sequence) to the first.
        engine: "auto" or a name from `bayesrnn_cuda.info()`; "reference" differentiates twice.

    Returns:
        y [T, B, H], h_n [B, H], c_n [B, H] in the dtype of x.

    Raises:
        ValueError: unknown engine.
        RuntimeError: wrong rank, size, dtype or device; names argument, expected and actual.
    """
    keep_x, keep_h, scale_x, scale_h = _check_masks(masks)
    x, h0, c0, *weights = _autocast(x, h0, c0, *weights)
    tensors = (x, h0, c0, *weights, keep_x, keep_h, lengths)
    if engines.resolve(engine, x) == "reference":
        engines.check("lstm", *tensors)
        weights = LayerWeights(*weights)
        return reference.lstm(x, h0, c0, weights, masks, lengths=lengths, reverse=reverse)
    save = _needs_grad(x, h0, c0, *weights)
    tf32 = engines.allow_tf32(x)
    y, h_n, c_n, _, _ = _OPS.lstm(*tensors, scale_x, scale_h, reverse, save, tf32, engine)
    return y, h_n, c_n


def gru(
    x: Tensor,
    h0: Tensor,
    weights: LayerWeights,
    masks: LayerMasks | None = None,
    *,
    lengths: Tensor | None = None,
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
    keep_x, keep_h, scale_x, scale_h = _check_masks(masks)
    x, h0, *weights = _autocast(x, h0, *weights)
    tensors = (x, h0, *weights, keep_x, keep_h, lengths)
    if engines.resolve(engine, x) == "reference":
        engines.check("gru", x, h0, None, *tensors[2:])
        weights = LayerWeights(*weights)
        return reference.gru(
            x, h0, weights, masks, lengths=lengths, reverse=reverse, reset_after=reset_after
        )
    save = _needs_grad(x, h0, *weights)
    tf32 = engines.allow_tf32(x)
    y, h_n, _, _ = _OPS.gru(*tensors, scale_x, scale_h, reverse, reset_after, save, tf32, engine)
    return y, h_n


def _check_masks(masks: LayerMasks | None) -> LayerMasks:
    if masks is not None and not isinstance(masks, LayerMasks):
        raise ValueError(f"masks: expected LayerMasks or None, got {type(masks).__name__}")
    return masks or LayerMasks()


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast_enabled(x: Tensor) -> bool:
    """Whether autocast is on for the device of x."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the dtype of autocast, where that is on, as torch.nn.LSTM has it."""
    x = tensors[0]
    if not autocast_enabled(x):
        return tensors
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )

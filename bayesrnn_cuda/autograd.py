"""Makes torch.ops.bayesrnn differentiable: backward is an op too, fed with what forward saved."""

import torch
from torch import Tensor

from . import ops  # noqa: F401  (registers the ops)

_OPS = torch.ops.bayesrnn


def _setup(ctx, inputs, output, *, states: int, outputs: int) -> None:
    """Saves inputs and results. `states`: initial ones after x; `outputs`: differentiable ones."""
    tensors, options = inputs[: 8 + states], inputs[8 + states :]
    *_, save, _allow_tf32, _engine = options
    if not save:
        raise RuntimeError("save: expected True where a gradient is required, got False")
    weight_ih, weight_hh, bias_ih, _, keep_x, keep_h, lengths = tensors[1 + states :]
    ctx.save_for_backward(
        *tensors[: 1 + states], weight_ih, weight_hh, keep_x, keep_h, lengths,
        output[0], *output[outputs:],
    )  # fmt: skip
    ctx.options = options
    ctx.bias = bias_ih is not None
    ctx.mark_non_differentiable(*output[outputs:])
    ctx.set_materialize_grads(False)


def _setup_lstm(ctx, inputs, output) -> None:
    _setup(ctx, inputs, output, states=2, outputs=3)


def _backward_lstm(ctx, dy, dh_n, dc_n, _gates, _cells):
    scale_x, scale_h, reverse, _, allow_tf32, engine = ctx.options
    dx, dh0, dc0, *weights = _OPS.lstm_backward(
        dy, dh_n, dc_n, *ctx.saved_tensors, scale_x, scale_h, reverse, ctx.bias,
        ctx.needs_input_grad[0], allow_tf32, engine,
    )  # fmt: skip
    return _gradients(ctx, dx, (dh0, dc0), weights)


def _setup_gru(ctx, inputs, output) -> None:
    _setup(ctx, inputs, output, states=1, outputs=2)


def _backward_gru(ctx, dy, dh_n, _gates, _hidden_n):
    scale_x, scale_h, reverse, reset_after, _, allow_tf32, engine = ctx.options
    dx, dh0, *weights = _OPS.gru_backward(
        dy, dh_n, *ctx.saved_tensors, scale_x, scale_h, reverse, reset_after, ctx.bias,
        ctx.needs_input_grad[0], allow_tf32, engine,
    )  # fmt: skip
    return _gradients(ctx, dx, (dh0,), weights)


def _gradients(ctx, dx: Tensor, states: tuple, weights: list) -> tuple:
    """One entry per forward argument, None where there is nothing to return."""
    d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh = weights
    biases = (d_bias_ih, d_bias_hh) if ctx.bias else (None, None)
    masks_and_options = (None,) * (3 + len(ctx.options))
    dx = dx if ctx.needs_input_grad[0] else None
    return (dx, *states, d_weight_ih, d_weight_hh, *biases, *masks_and_options)


def _refuse(ctx, *grads):
    raise RuntimeError(
        "bayesrnn: the fused engines have no second derivative; "
        "use engine='reference', which is differentiable to any order"
    )


torch.library.register_autograd("bayesrnn::lstm", _backward_lstm, setup_context=_setup_lstm)
torch.library.register_autograd("bayesrnn::gru", _backward_gru, setup_context=_setup_gru)
torch.library.register_autograd("bayesrnn::lstm_backward", _refuse)
torch.library.register_autograd("bayesrnn::gru_backward", _refuse)

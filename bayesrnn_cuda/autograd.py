"""Makes torch.ops.bayesrnn differentiable: backward is an op too, fed with what forward saved.

Who calls an op directly, and torch.compile, get what torch.library.register_autograd makes of that.
torch.func (grad, vjp, jacrev) refuses it and takes an autograd.Function with the same two functions
inside. Another one serves a layer in plain eager mode: the registered one reads the op's schema at
every call, 0.1 ms, and the layer of an agent or a short sequence may take no more.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

from . import ops, vmap

_OPS = torch.ops.bayesrnn


def call(name: str, *arguments: Any, gradient: bool = False) -> tuple[Tensor, ...]:
    """torch.ops.bayesrnn.<name>, within torch.func.grad and its like too.

    `gradient`: one is required of some argument. (Without it the op alone is right, if slower.)
    """
    if in_forward_mode():
        raise RuntimeError(
            "bayesrnn: the fused engines have no forward-mode derivative; use engine='reference'"
        )
    if in_func_grad():
        run = _FUNCTIONS[name].apply
    elif gradient and not _transformed():
        run = _EAGER[name].apply
    else:
        run = getattr(_OPS, name)
    return ops.call(run, *arguments)


def in_forward_mode() -> bool:
    """Whether torch.func.jvp, jacfwd or torch.autograd.forward_ad may follow a tangent."""
    return forward_ad._current_level >= 0


def in_func_grad() -> bool:
    """Whether torch.func.grad, vjp or jacrev is active. Never in torch.compile: it gets an
    autograd.Function within torch.func wrong, and refuses the op there."""
    if not torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return False
    levels = torch._C._functorch.get_interpreter_stack()
    return any(level.key() == TransformType.Grad for level in levels)


def _transformed() -> bool:
    """Whether something other than plain autograd looks at the call."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


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
    dx, dh0, dc0, *weights = call(
        "lstm_backward", dy, dh_n, dc_n, *ctx.saved_tensors, scale_x, scale_h, reverse, ctx.bias,
        ctx.needs_input_grad[0], allow_tf32, engine,
    )  # fmt: skip
    return _gradients(ctx, dx, (dh0, dc0), weights)


def _setup_gru(ctx, inputs, output) -> None:
    _setup(ctx, inputs, output, states=1, outputs=2)


def _backward_gru(ctx, dy, dh_n, _gates, _hidden_n):
    scale_x, scale_h, reverse, reset_after, _, allow_tf32, engine = ctx.options
    dx, dh0, *weights = call(
        "gru_backward", dy, dh_n, *ctx.saved_tensors, scale_x, scale_h, reverse, reset_after,
        ctx.bias, ctx.needs_input_grad[0], allow_tf32, engine,
    )  # fmt: skip
    return _gradients(ctx, dx, (dh0,), weights)


def _gradients(ctx, dx: Tensor, states: tuple, weights: list) -> tuple:
    """One entry per forward argument, None where there is nothing to return."""
    d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh = weights
    biases = (d_bias_ih, d_bias_hh) if ctx.bias else (None, None)
    masks_and_options = (None,) * (3 + len(ctx.options))
    first = dx if ctx.needs_input_grad[0] else None
    return (first, *states, d_weight_ih, d_weight_hh, *biases, *masks_and_options)


def _refuse(ctx, *grads):
    raise RuntimeError(
        "bayesrnn: the fused engines have no second derivative; "
        "use engine='reference', which is differentiable to any order"
    )


torch.library.register_autograd("bayesrnn::lstm", _backward_lstm, setup_context=_setup_lstm)
torch.library.register_autograd("bayesrnn::gru", _backward_gru, setup_context=_setup_gru)
torch.library.register_autograd("bayesrnn::lstm_backward", _refuse)
torch.library.register_autograd("bayesrnn::gru_backward", _refuse)

_RULES: dict[str, Callable[..., Any]] = {
    "lstm": partial(vmap.forward, states=2),
    "gru": partial(vmap.forward, states=1),
    "lstm_backward": vmap.loop,
    "gru_backward": vmap.loop,
    "check_layer": vmap.first,
}
for _name, _rule in _RULES.items():
    torch.library.register_vmap(f"bayesrnn::{_name}", partial(_rule, getattr(_OPS, _name)))


def _function(op, setup, gradients, rule) -> type[torch.autograd.Function]:
    """The op as an autograd.Function that torch.func takes."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            return op(*arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            setup(ctx, inputs, output)

        @staticmethod
        def backward(ctx, *grads):
            return gradients(ctx, *grads)

        @staticmethod
        def vmap(info, in_dims, *arguments):
            return rule(Function.apply, info, in_dims, *arguments)

    return Function


def _eager_function(op, setup, gradients) -> type[torch.autograd.Function]:
    """The same for plain autograd. (With setup_context torch binds the arguments by inspect.)"""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            output = op(*arguments)
            setup(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return gradients(ctx, *grads)

    return Function


def _setup_nothing(ctx, inputs, output) -> None:
    pass


_FUNCTIONS = {
    "lstm": _function(_OPS.lstm, _setup_lstm, _backward_lstm, _RULES["lstm"]),
    "gru": _function(_OPS.gru, _setup_gru, _backward_gru, _RULES["gru"]),
    "lstm_backward": _function(_OPS.lstm_backward, _setup_nothing, _refuse, vmap.loop),
    "gru_backward": _function(_OPS.gru_backward, _setup_nothing, _refuse, vmap.loop),
}
_EAGER = {
    "lstm": _eager_function(_OPS.lstm, _setup_lstm, _backward_lstm),
    "gru": _eager_function(_OPS.gru, _setup_gru, _backward_gru),
}

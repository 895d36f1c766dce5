"""Makes torch.ops.bayesrnn differentiable: backward is an op too, fed with what forward saved.

A direct call of an op, and torch.compile, get what torch.library.register_autograd makes of that.
torch.func (grad, vjp, jacrev) refuses it and takes an autograd.Function with the same two functions
inside. Another one serves a layer in plain eager mode: the registered one reads the op's schema at
every call, 0.1 ms, and the layer of an agent or a short sequence may take no more. Where no
gradient is wanted the op is called below torch's autograd, whose part of it is in Python too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

from . import ops, vmap
from .cells import CELLS, Cell

_OPS = torch.ops.bayesrnn


def call(name: str, *arguments: Any, gradient: bool = False) -> tuple[Tensor, ...]:
    """torch.ops.bayesrnn.<name>, within torch.func.grad and its like too.

    `gradient`: one is wanted of the results, by some argument.
    """
    if in_forward_mode():
        raise RuntimeError(
            "bayesrnn: the fused engines have no forward-mode derivative; use engine='reference'"
        )
    if _transformed():
        run = _FUNCTIONS[name].apply if in_func_grad() else getattr(_OPS, name)
    else:
        run = (_EAGER if gradient else _WITHOUT_GRADIENT)[name]
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


def _setup(cell: Cell, ctx, inputs, output) -> None:
    """Saves inputs and results."""
    states, outputs = cell.states, 1 + cell.states  # outputs: differentiable ones
    tensors, options = inputs[: 9 + states], inputs[9 + states :]
    *_, save, _allow_tf32, _engine = options
    if not save:
        raise RuntimeError("save: expected True where a gradient is required, got False")
    weight_ih, weight_hh, bias_ih, _, *masks_and_steps = tensors[1 + states :]
    ctx.save_for_backward(
        *tensors[: 1 + states], weight_ih, weight_hh, *masks_and_steps,
        output[0], *output[outputs:],
    )  # fmt: skip
    ctx.options = options
    ctx.bias = bias_ih is not None
    ctx.mark_non_differentiable(*output[outputs:])
    ctx.set_materialize_grads(False)


def _backward(cell: Cell, ctx, *grads):
    scale_x, scale_h, reverse, *flags, _save, allow_tf32, engine = ctx.options
    dx, *rest = call(
        f"{cell.name}_backward", *grads[: 1 + cell.states], *ctx.saved_tensors,
        scale_x, scale_h, reverse, *flags, ctx.bias, ctx.needs_input_grad[0], allow_tf32, engine,
        gradient=torch.is_grad_enabled(),  # of the gradient, which is refused
    )  # fmt: skip
    return _gradients(ctx, dx, rest[: cell.states], rest[cell.states :])


def _gradients(ctx, dx: Tensor, states: list, weights: list) -> tuple:
    """One entry per forward argument, None where there is nothing to return."""
    d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh = weights
    biases = (d_bias_ih, d_bias_hh) if ctx.bias else (None, None)
    others = (None,) * (4 + len(ctx.options))  # masks, lengths, resets, options
    first = dx if ctx.needs_input_grad[0] else None
    return (first, *states, d_weight_ih, d_weight_hh, *biases, *others)


def _refuse(ctx, *grads):
    raise RuntimeError(
        "bayesrnn: the fused engines have no second derivative; "
        "use engine='reference', which is differentiable to any order"
    )


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


def _without_gradient(op) -> Callable:
    """The op below autograd."""

    def run(*arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    return run


def _eager(op, tensors: int, setup, gradients) -> Callable:
    """The op for plain autograd; `tensors` are its first arguments.

    What comes after them is one argument here, because torch looks at each. (With setup_context it
    binds them by inspect.)
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            arguments = (*arguments[:-1], *arguments[-1])
            output = op(*arguments)
            setup(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return gradients(ctx, *grads)[: tensors + 1]

    def run(*arguments):
        return Function.apply(*arguments[:tensors], arguments[tensors:])

    return run


def _setup_nothing(ctx, inputs, output) -> None:
    pass


_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}
# In plain eager mode, with and without a gradient.
_EAGER: dict[str, Callable] = {}
_WITHOUT_GRADIENT: dict[str, Callable] = {}


def _register(cell: Cell) -> None:
    """Makes both ops of the cell differentiable, and known to vmap."""
    name, name_back = cell.name, f"{cell.name}_backward"
    op, op_back = getattr(_OPS, name), getattr(_OPS, name_back)
    setup, backward = partial(_setup, cell), partial(_backward, cell)
    torch.library.register_autograd(f"bayesrnn::{name}", backward, setup_context=setup)
    torch.library.register_autograd(f"bayesrnn::{name_back}", _refuse)
    rule = partial(vmap.forward, states=cell.states)
    torch.library.register_vmap(f"bayesrnn::{name}", partial(rule, op))
    torch.library.register_vmap(f"bayesrnn::{name_back}", partial(vmap.loop, op_back))
    _FUNCTIONS[name] = _function(op, setup, backward, rule)
    _FUNCTIONS[name_back] = _function(op_back, _setup_nothing, _refuse, vmap.loop)
    for each in (name, name_back):
        _WITHOUT_GRADIENT[each] = _without_gradient(getattr(_OPS, each).default)
    _EAGER[name] = _eager(_WITHOUT_GRADIENT[name], 9 + cell.states, setup, backward)
    _EAGER[name_back] = op_back


for _cell in CELLS.values():
    _register(_cell)
torch.library.register_vmap("bayesrnn::check_layer", partial(vmap.first, _OPS.check_layer))

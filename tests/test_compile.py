"""torch.compile of the functions and of the modules."""

import pytest
import torch
from cases import CELLS, Case, leaves, outputs, sample

import bayesrnn_cuda as brnn

pytestmark = pytest.mark.usefixtures("two_threads")


def eager_and_compiled(f, backend: str, *arguments, seed: int | None = None):
    """Values and gradients of f(*arguments), a tuple of tensors, called plainly and compiled."""
    wanted = [t for t in arguments if isinstance(t, torch.Tensor) and t.requires_grad]
    both = []
    torch._dynamo.reset()
    for call in (f, torch.compile(f, backend=backend, fullgraph=True)):
        if seed is not None:
            torch.manual_seed(seed)
        results = call(*arguments)
        loss = sum(t.square().sum() for t in results)
        both.append((*results, *torch.autograd.grad(loss, wanted)))
    return both


def assert_same(eager, compiled) -> None:
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masks", ["none", "untied"])
@pytest.mark.parametrize("cell", CELLS)
def test_compile_functional(cell, masks):
    case = Case(cell, T=3, masks=masks, lengths=masks == "untied", reverse=masks == "untied")
    inputs = leaves(case, sample(case, torch.float32))
    names = list(inputs.differentiable())

    def f(*values):
        replaced = inputs.replace_tensors(dict(zip(names, values, strict=True)))
        return tuple(outputs(case, replaced, "auto").values())

    assert_same(*eager_and_compiled(f, "aot_eager", *inputs.differentiable().values()))


def layer(kind, *, train: bool, layers: int = 2, bidirectional: bool = True):
    """A module as a function of x and its parameters."""
    torch.manual_seed(1)
    module = kind(
        3, 4, layers, bidirectional=bidirectional, input_dropout=0.25, recurrent_dropout=0.25
    ).train(train)

    def f(x, *parameters):
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        output, states = torch.func.functional_call(module, named, (x,))
        return (output, *states) if isinstance(states, tuple) else (output, states)

    x = torch.randn(3, 2, 3, requires_grad=True)
    return f, (x, *module.parameters())


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", [brnn.BayesianLSTM, brnn.BayesianGRU])
def test_compile_module(kind, train):
    """Masks are drawn inside the compiled module, from torch's generator as in eager."""
    f, arguments = layer(kind, train=train)
    assert_same(*eager_and_compiled(f, "aot_eager", *arguments, seed=5))


def test_compile_module_with_inductor():
    f, arguments = layer(brnn.BayesianLSTM, train=True, layers=1, bidirectional=False)
    # eager's random numbers; no trial builds to find the instruction set, which take 20 seconds
    with torch._inductor.config.patch({"fallback_random": True, "cpp.vec_isa_ok": False}):
        assert_same(*eager_and_compiled(f, "inductor", *arguments, seed=5))

"""torch.compile of the functions and of the modules."""

from dataclasses import replace

import pytest
import torch
from cases import CELLS, Case, leaves, outputs, sample
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

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
    case = Case(cell, T=3, masks=masks)
    if masks == "untied":
        case = replace(case, lengths=True, resets="random", reverse=True)
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


every_kind = pytest.mark.parametrize(
    "kind", [brnn.BayesianLSTM, brnn.BayesianGRU, brnn.BayesianRNN]
)


@pytest.mark.parametrize("train", [True, False])
@every_kind
def test_compile_module(kind, train):
    """Masks are drawn inside the compiled module, from torch's generator as in eager."""
    f, arguments = layer(kind, train=train)
    assert_same(*eager_and_compiled(f, "aot_eager", *arguments, seed=5))


# ---- What is compiled again, and what is not


class Model(torch.nn.Module):
    """Everything that draws masks."""

    def __init__(self, kind):
        super().__init__()
        self.words = brnn.BayesianEmbedding(9, 3, dropout=0.25)
        self.layers = kind(3, 4, 2, input_dropout=0.25, recurrent_dropout=0.25)
        self.out = brnn.LockedDropout(0.25)

    def forward(self, tokens):
        return self.out(self.layers(self.words(tokens))[0])


def tokens(steps: int, batch: int) -> torch.Tensor:
    return torch.randint(9, (steps, batch))


def counted(module):
    """(compiled as one graph without breaks, its counter of compilations)."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(module, backend=counter, fullgraph=True), counter


@pytest.mark.parametrize(
    ("kind", "dynamic"),
    [(brnn.BayesianLSTM, None), (brnn.BayesianLSTM, True), (brnn.BayesianGRU, None)],
)
def test_default_backend(kind, dynamic):
    """Inductor writes other code for batches that fill its vectors than for others, and for sizes
    that are open: everything that draws masks compiles in each, to the eager values."""
    torch._dynamo.reset()
    model = Model(kind)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for batch in (32, 20, 16):
        both = []
        x = tokens(6, batch)
        for call in (model, compiled):
            torch.manual_seed(5)
            with torch._inductor.config.patch(fallback_random=True):  # the eager random numbers
                y = call(x)
            both.append((y, *torch.autograd.grad(y.square().sum(), model.parameters())))
        assert_same(*both)


@every_kind
def test_lengths_and_batches_do_not_compile_again(kind):
    """Once for the first sizes, once with the sizes open."""
    compiled, counter = counted(Model(kind))
    for steps, batch in ((5, 3), (6, 4), (7, 5), (3, 6), (40, 2), (9, 9)):
        output = compiled(tokens(steps, batch))
        assert output.shape == (steps, batch, 4)
        output.sum().backward()
    assert counter.frame_count == 2


@every_kind
def test_each_mode_is_compiled_once(kind):
    torch.manual_seed(0)
    model = Model(kind).eval()
    compiled, counter = counted(model)
    x = tokens(5, 3)
    for _ in range(3):
        assert torch.equal(compiled(x), compiled(x))
        assert counter.frame_count <= 2
        with brnn.mc_dropout(model):
            assert not torch.equal(compiled(x), compiled(x))
    assert counter.frame_count == 2


@every_kind
def test_mc_predict_of_a_compiled_module(kind):
    torch.manual_seed(0)
    model = Model(kind)
    x = tokens(5, 3)
    compiled, _ = counted(model)
    both = []
    for module in (model, compiled):
        torch.manual_seed(1)
        both.append(brnn.mc_predict(module, x, samples=6))
    assert both[0].std.abs().max() > 0
    torch.testing.assert_close(both[1][:2], both[0][:2])
    assert model.training


def test_mc_dropout_within_a_compiled_function():
    model = Model(brnn.BayesianLSTM).eval()

    def f(x):
        with brnn.mc_dropout(model):
            return model(x)

    x = tokens(5, 3)
    compiled, _ = counted(f)
    assert not torch.equal(compiled(x), compiled(x))
    assert torch.equal(model(x), model(x))


# ---- Together with autocast, checkpoints, packed sequences and torch.func


@every_kind
def test_compile_under_autocast(kind):
    f, arguments = layer(kind, train=True, layers=1)

    def g(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            results = f(*arguments)
        assert {t.dtype for t in results} == {torch.bfloat16}
        return tuple(t.float() for t in results)

    eager, compiled = eager_and_compiled(g, "aot_eager", *arguments, seed=5)
    for a, b in zip(eager, compiled, strict=True):
        # dtypes are exact; a rounding to bfloat16 may be left out or come in
        torch.testing.assert_close(b, a, rtol=2**-6, atol=2**-6)


def test_compile_with_checkpoints():
    """The masks are drawn again as they were."""
    f, arguments = layer(brnn.BayesianLSTM, train=True, layers=1)

    def g(*arguments):
        return checkpoint(f, *arguments, use_reentrant=False)

    plain, _ = eager_and_compiled(f, "eager", *arguments, seed=5)
    assert_same(plain, eager_and_compiled(g, "aot_eager", *arguments, seed=5)[1])


def test_packed_sequences_break_the_graph_and_run():
    torch._dynamo.reset()
    module = brnn.BayesianGRU(3, 4, bidirectional=True)
    x = pack_sequence([torch.randn(n, 3) for n in (2, 5, 3)], enforce_sorted=False)
    compiled = torch.compile(module, backend="aot_eager")
    assert_same([t for t in module(x)[0] if t is not None], compiled(x)[0])


def test_compile_vmap():
    f, arguments = layer(brnn.BayesianLSTM, train=False)
    x = torch.randn(5, 3, 2, 3, requires_grad=True)

    def g(x, *parameters):
        return torch.vmap(lambda each: f(each, *parameters))(x)

    assert_same(*eager_and_compiled(g, "aot_eager", x, *arguments[1:]))


def test_compile_of_torch_func():
    """jvp takes the reference, as without compile; grad is refused and not wrong."""
    module = brnn.BayesianLSTM(3, 4).eval()
    x = torch.randn(1, 2, 3)

    def tangent(x):
        return torch.func.jvp(lambda x: module(x)[0], (x,), (x.sin(),))[1]

    def slope(x):
        return torch.func.grad(lambda x: module(x)[0].sum())(x)

    torch.testing.assert_close(counted(tangent)[0](x), tangent(x))
    with pytest.raises(RuntimeError, match=r"autograd\.Function with functorch"):
        counted(slope)[0](x)
    module.engine = "reference"
    torch.testing.assert_close(counted(slope)[0](x), slope(x))

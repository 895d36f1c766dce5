"""The layers with what torch has for GPUs: graphed callables, autocast, compile, torch.func."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import bayesrnn_cuda as brnn

T, B, I, H = 9, 5, 40, 96  # noqa: E741

every_kind = pytest.mark.parametrize("kind", [brnn.BayesianLSTM, brnn.BayesianGRU])


def make(kind, p=0.3, **options):
    torch.manual_seed(0)
    return kind(I, H, 2, input_dropout=p, recurrent_dropout=p, device="cuda", **options)


def inputs(**options):
    return torch.randn(T, B, I, device="cuda", **options)


def gradients(module, x):
    """(output, gradients by the parameters) of one training step."""
    module.zero_grad()
    output = module(x)[0]
    output.float().square().mean().backward()
    return output.detach().clone(), [p.grad.clone() for p in module.parameters()]


# ---- CUDA graphs


@every_kind
def test_graphed_callables_equal_the_layer(kind):
    """make_graphed_callables: forward and backward as graphs, here without dropout."""
    layer = make(kind, p=0.0)
    plain = copy.deepcopy(layer)
    torch.cuda.make_graphed_callables(layer, (inputs(requires_grad=True),))
    for _ in range(2):
        x = inputs(requires_grad=True)
        twin = x.detach().clone().requires_grad_()
        got, expected = gradients(layer, x), gradients(plain, twin)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(x.grad, twin.grad)


@every_kind
def test_graphed_callables_draw_new_masks(kind):
    """Each replay goes on with the generator, and its backward has the masks of its forward."""
    layer = make(kind)
    torch.cuda.make_graphed_callables(layer, (inputs(requires_grad=True),))
    x = inputs(requires_grad=True)
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        x.grad = None
        drawn.append((*gradients(layer, x), x.grad.clone()))
    torch.testing.assert_close(drawn[2], drawn[0], rtol=0, atol=0)
    assert not torch.equal(drawn[0][0], drawn[1][0])
    layer.eval()  # not captured: the layer itself
    assert torch.equal(layer(x)[0], layer(x)[0])


@every_kind
def test_a_training_step_as_one_graph(kind):
    """Loss, backward and optimizer captured together; the loss falls over the replays."""
    layer, linear = make(kind, p=0.1), nn.Linear(H, 1, device="cuda")
    parameters = [*layer.parameters(), *linear.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2, capturable=True)
    x = inputs()
    target = x.sum(-1, keepdim=True).tanh()

    def step():
        optimizer.zero_grad(set_to_none=False)
        loss = (linear(layer(x)[0]) - target).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        first = step().item()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for _ in range(200):
        graph.replay()
    assert loss.item() < 0.5 * first


@every_kind
def test_compile_with_graphs(kind):
    """mode="reduce-overhead" puts the layer into CUDA graphs of torch's own."""
    layer = make(kind, p=0.0)
    compiled = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):  # warm-up, capture, replays
        x = inputs()
        torch.compiler.cudagraph_mark_step_begin()
        got = gradients(compiled, x)
        torch.testing.assert_close(got, gradients(layer, x), rtol=1e-4, atol=1e-5)


# ---- Autocast and checkpoints


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_kind
def test_autocast_with_float32_parameters(kind, dtype):
    """What the layer in that dtype computes, with float32 gradients, also through a GradScaler."""
    layer = make(kind, p=0.0)
    x = inputs()
    output, expected = gradients(copy.deepcopy(layer).to(dtype), x.to(dtype))

    def loss():
        with torch.autocast("cuda", dtype):
            y = layer(x)[0]
        assert torch.equal(y, output)
        return y.float().square().mean()

    loss().backward()
    for p, grad in zip(layer.parameters(), expected, strict=True):
        assert p.grad.dtype == torch.float32
        assert torch.equal(p.grad, grad.float())
    layer.zero_grad()
    scaler = torch.amp.GradScaler("cuda")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler.scale(loss()).backward()
    before = [p.detach().clone() for p in layer.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert all(p.isfinite().all() for p in layer.parameters())
    assert not any(torch.equal(p, q) for p, q in zip(layer.parameters(), before, strict=True))


@every_kind
def test_checkpoints_reuse_the_masks(kind):
    layer = make(kind)
    x = inputs(requires_grad=True)
    both = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(7)
        loss = run(x)[0].square().sum()
        both.append(torch.autograd.grad(loss, [x, *layer.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


# ---- torch.func and conversion


@every_kind
def test_vmap_and_grad(kind):
    """Samples run as batch; gradients of each sample equal those of a loop."""
    layer = make(kind, dtype=torch.float64)
    masks = layer.sample_masks(B)
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    x = torch.randn(3, T, B, I, device="cuda", dtype=torch.float64)

    def loss(weights, x):
        y = torch.func.functional_call(layer, weights, (x,), {"masks": masks})[0]
        return y.square().sum()

    got = torch.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for s in range(len(x)):
        expected = torch.autograd.grad(
            loss(dict(layer.named_parameters()), x[s]), list(layer.parameters())
        )
        for a, b in zip(got.values(), expected, strict=True):
            torch.testing.assert_close(a[s], b, rtol=1e-10, atol=1e-12)


@every_kind
def test_masks_follow_the_module(kind):
    """Moved there after construction; drawn by a generator of that device too."""
    layer = kind(I, H, input_dropout=0.5, recurrent_dropout=0.5).to("cuda")
    generator = torch.Generator("cuda").manual_seed(1)
    masks = layer.sample_masks(B, generator=generator)
    assert all(m.keep_x.is_cuda and m.keep_h.is_cuda for m in masks)
    assert layer(inputs(), masks=masks)[0].is_cuda
    back = layer.to_torch()
    assert all(p.is_cuda for p in back.parameters())
    x = inputs()
    torch.testing.assert_close(layer.eval()(x)[0], back.eval()(x)[0], rtol=0, atol=1e-5)

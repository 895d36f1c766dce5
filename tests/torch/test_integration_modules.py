"""The layers in code written for nn.LSTM and nn.GRU: conversion, parametrization, hooks."""

import copy

import pytest
import torch
from module_cases import PAIRS, B, H, I, T, every_cell, flat
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import bayesrnn_cuda as brnn

LAYOUT = {"num_layers": 3, "bias": False, "batch_first": True, "bidirectional": True}


def same_computation(a, b, x) -> bool:
    """Equal bits where both run without dropout."""
    return all(torch.equal(p, q) for p, q in zip(flat(a(x)), flat(b(x)), strict=True))


# ---- from_torch and to_torch


@every_cell
@pytest.mark.parametrize("layout", [{}, LAYOUT], ids=["default", "other"])
def test_from_torch_and_back(cell, layout):
    ours, theirs = PAIRS[cell]
    module = theirs(I, H, **layout, dtype=torch.float64).eval()
    module.weight_hh_l0.requires_grad_(False)
    layer = ours.from_torch(module, recurrent_dropout=0.5, tie_gates=True, engine="cpu")
    assert type(layer) is ours
    assert (layer.recurrent_dropout, layer.tie_gates, layer.engine) == (0.5, True, "cpu")
    back = layer.to_torch()
    assert type(back) is theirs
    for converted in (layer, back):
        for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first"):
            assert getattr(converted, name) == getattr(module, name)
        assert converted.bidirectional == module.bidirectional
        assert not converted.training
        frozen = {n: p.requires_grad for n, p in module.named_parameters()}
        assert {n: p.requires_grad for n, p in converted.named_parameters()} == frozen
        for name, value in module.state_dict().items():
            assert torch.equal(converted.state_dict()[name], value)
            assert converted.state_dict()[name].data_ptr() != value.data_ptr()
    x = torch.randn(B, T, I, dtype=torch.float64)
    assert same_computation(back, module, x)
    torch.testing.assert_close(flat(layer(x)), flat(module(x)), rtol=1e-10, atol=1e-12)


@every_cell
def test_from_torch_takes_the_dropout_between_layers(cell):
    ours, theirs = PAIRS[cell]
    module = theirs(I, H, 3, dropout=0.25)
    assert ours.from_torch(module).input_dropout == (0.0, 0.25, 0.25)
    assert ours.from_torch(module).training
    assert ours.from_torch(module, input_dropout=0.5).input_dropout == (0.5, 0.5, 0.5)
    assert ours.from_torch(module, input_dropout=0.0).input_dropout == (0.0, 0.0, 0.0)
    assert ours.from_torch(theirs(I, H)).input_dropout == (0.0,)
    assert ours.from_torch(module).to_torch().dropout == 0.25


@every_cell
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_conversion_draws_no_random_numbers(cell, device):
    ours, theirs = PAIRS[cell]
    module = theirs(I, H, device=device)
    before = torch.get_rng_state()
    layer = ours.from_torch(module)
    assert {p.device.type for p in layer.parameters()} == {device}
    layer.to_torch()
    assert torch.equal(torch.get_rng_state(), before)


def test_from_torch_takes_the_values_of_parametrized_weights():
    module = parametrizations.weight_norm(nn.LSTM(I, H), "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(2)
    with torch.no_grad():
        layer = brnn.BayesianLSTM.from_torch(module)
    assert torch.equal(layer.weight_hh_l0, module.weight_hh_l0)
    assert layer.weight_hh_l0.requires_grad and layer.weight_hh_l0.is_leaf


def test_conversion_errors():
    with pytest.raises(TypeError, match=r"module: expected torch\.nn\.LSTM, got GRU"):
        brnn.BayesianLSTM.from_torch(nn.GRU(I, H))
    with pytest.raises(TypeError, match=r"module: expected torch\.nn\.GRU, got BayesianGRU"):
        brnn.BayesianGRU.from_torch(brnn.BayesianGRU(I, H))
    with pytest.raises(ValueError, match=r"proj_size: expected 0, no projections, got 3"):
        brnn.BayesianLSTM.from_torch(nn.LSTM(I, H, proj_size=3))
    with pytest.raises(ValueError, match=r"input_dropout: expected .* per layer \(1\), got 2"):
        brnn.BayesianLSTM.from_torch(nn.LSTM(I, H), input_dropout=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"reset_after: expected True, .* torch\.nn\.GRU"):
        brnn.BayesianGRU(I, H, reset_after=False).to_torch()


# ---- What nn.LSTM takes and has beside


@every_cell
@pytest.mark.parametrize("layout", [{}, LAYOUT], ids=["default", "other"])
def test_all_weights(cell, layout):
    ours, theirs = (cls(I, H, **layout) for cls in PAIRS[cell])
    shapes = [[[w.shape for w in weights] for weights in m.all_weights] for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert [w for weights in ours.all_weights for w in weights][-1] is list(ours.parameters())[-1]


@every_cell
@pytest.mark.parametrize("method", ["half", "bfloat16", "double"])
def test_methods_that_change_the_dtype(cell, method):
    layer = getattr(PAIRS[cell][0](I, H, input_dropout=0.5), method)()
    x = getattr(torch.randn(T, B, I), method)()
    assert {t.dtype for t in flat(layer(x))} == {x.dtype}


@every_cell
def test_autocast_of_packed_sequences(cell):
    ours, theirs = PAIRS[cell]
    module = theirs(I, H, bidirectional=True)
    layer = ours.from_torch(module)
    x = pack_padded_sequence(torch.randn(T, B, I), [2, T, 1], enforce_sorted=False)
    with torch.autocast("cpu", torch.bfloat16):
        got = flat(layer(x))
    assert {t.dtype for t in got} == {torch.bfloat16}
    for a, b in zip(got, flat(module(x)), strict=True):
        # a few units in the last place of numbers in (-1, 1)
        torch.testing.assert_close(a.float(), b, rtol=0, atol=4 * torch.finfo(a.dtype).eps)


@every_cell
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda x: x.to_sparse(), "layout torch.sparse_coo"),
        (lambda x: torch.nested.nested_tensor([x[0]], layout=torch.jagged), "a nested one"),
        pytest.param(
            lambda x: torch.nested.nested_tensor([x[0]]),
            "a nested one",
            marks=pytest.mark.filterwarnings("ignore:.*prototype"),
        ),
    ],
    ids=["sparse", "jagged", "nested"],
)
def test_tensors_that_are_not_dense_are_refused(cell, make, found):
    with pytest.raises(ValueError, match=f"input: expected a dense tensor, got {found}"):
        PAIRS[cell][0](I, H)(make(torch.randn(T, B, I)))


# ---- Parametrization and pruning


class Counted(nn.Module):
    calls = 0

    def forward(self, weight):
        self.calls += 1
        return 2 * weight


@every_cell
def test_parametrized_weights_are_computed_once_a_call(cell):
    """Spectral norm and noise change from one access to the next."""
    layer = PAIRS[cell][0](I, H, input_dropout=0.5, recurrent_dropout=0.5)
    counted = Counted()
    parametrize.register_parametrization(layer, "weight_ih_l0", counted)
    counted.calls = 0
    layer(torch.randn(T, B, I))
    assert counted.calls == 1


@every_cell
def test_weight_norm_as_on_torchs_layer(cell):
    x = torch.randn(T, B, I, dtype=torch.float64)
    module = PAIRS[cell][1](I, H, dtype=torch.float64)
    results = []
    for m in (module, PAIRS[cell][0].from_torch(module)):
        parametrizations.weight_norm(m, "weight_hh_l0")
        loss = m(x)[0].square().sum()
        gradients = torch.autograd.grad(loss, list(m.parameters()))
        results.append((loss, *gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


@every_cell
@pytest.mark.parametrize("change", ["spectral_norm", "prune"])
def test_training_with_computed_weights(cell, change):
    layer = PAIRS[cell][0](I, H, input_dropout=0.5)
    if change == "prune":
        prune.l1_unstructured(layer, "weight_hh_l0", 0.5)
    else:
        parametrizations.spectral_norm(layer, "weight_hh_l0")
    layer(torch.randn(T, B, I))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    if change == "prune":
        dropped = layer.weight_hh_l0_mask == 0
        assert (layer.weight_hh_l0_orig.grad[dropped] == 0).all()
        assert (layer.weight_hh_l0_orig.grad[~dropped] != 0).any()


@every_cell
def test_prior_of_parametrized_weights_is_that_of_what_they_compute(cell):
    """In this package's layers and in torch's, each weight once and not what it is made of."""
    model = nn.Sequential(PAIRS[cell][0](I, H, recurrent_dropout=0.25), nn.Linear(H, 2))
    prior = {"length_scale": 3.0, "num_data": 10, "dropout": {"1": 0.5}}
    expected = brnn.kl_penalty(model, **prior)
    twin = copy.deepcopy(model)
    parametrizations.weight_norm(twin[0], "weight_hh_l0")
    parametrizations.weight_norm(twin[1], "weight")
    got = brnn.kl_penalty(twin, **prior)
    torch.testing.assert_close(got, expected)
    got.backward()
    assert all(p.grad is not None for p in twin.parameters())


@pytest.mark.parametrize(
    ("change", "part", "name"),
    [
        (parametrizations.weight_norm, 0, "weight_hh_l0"),
        (parametrizations.weight_norm, 1, "weight"),
        (prune.identity, 0, "weight_hh_l0"),
    ],
)
def test_weight_decay_of_computed_weights_is_refused(change, part, name):
    """Decay of what they are made of is another prior, and the weights are not leaves."""
    model = nn.Sequential(brnn.BayesianLSTM(I, H), nn.Linear(H, 2))
    change(model[part], name)
    with pytest.raises(ValueError, match=r"module: expected weights that are parameters .*kl_pen"):
        brnn.weight_decay_groups(model, length_scale=1.0, num_data=1)


# ---- Hooks, checkpoints, derivatives


@every_cell
def test_module_hooks_see_all_outputs(cell):
    layer = PAIRS[cell][0](I, H)
    seen = []
    layer.register_forward_hook(lambda module, given, result: seen.append(len(flat(result))))
    layer.register_full_backward_hook(lambda module, by_input, by_output: seen.append("backward"))
    layer(torch.randn(T, B, I, requires_grad=True))[0].sum().backward()
    assert seen == [3 if cell == "lstm" else 2, "backward"]


@every_cell
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_reuse_the_masks(cell, use_reentrant):
    """Of a whole model: layer, words and outputs draw alike when they run again."""
    torch.manual_seed(0)
    words = brnn.BayesianEmbedding(7, I, dropout=0.5)
    layer = PAIRS[cell][0](I, H, input_dropout=0.5, recurrent_dropout=0.5)
    out = brnn.LockedDropout(0.5)
    tokens = torch.randint(7, (T, B))
    parameters = [*words.parameters(), *layer.parameters()]

    def gradients(run):
        torch.manual_seed(7)
        words.zero_grad()
        layer.zero_grad()
        run().square().sum().backward()  # use_reentrant=True refuses torch.autograd.grad
        return [p.grad.clone() for p in parameters]

    def rest(vectors):
        return out(layer(vectors)[0])

    plain = gradients(lambda: rest(words(tokens)))
    again = gradients(lambda: checkpoint(rest, words(tokens), use_reentrant=use_reentrant))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@every_cell
def test_saved_tensors_may_be_moved(cell):
    layer = PAIRS[cell][0](I, H)
    x = torch.randn(T, B, I)
    expected = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.double(), lambda t: t.float()):
        got = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@every_cell
def test_gradient_penalty(cell):
    """A second derivative: the reference has it, the fused engine says that it has not."""
    layer = PAIRS[cell][0](2, 3, 2, bidirectional=True, dtype=torch.float64, engine="reference")
    x = torch.randn(2, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)
    layer.engine = "auto"
    (d_x,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; use engine='reference'"):
        d_x.square().sum().backward()

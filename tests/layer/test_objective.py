"""kl_penalty and weight_decay_groups."""

import copy
import math

import pytest
import torch
from torch import nn

import bayesrnn_cuda as brnn

PRIOR = {"length_scale": 0.7, "num_data": 50}


class Model(nn.Module):
    """One of each: embedding, stacked recurrent layer, norm, decoder behind output dropout."""

    def __init__(self, cell=brnn.BayesianLSTM, tied=False):
        super().__init__()
        self.embedding = brnn.BayesianEmbedding(7, 4, dropout=0.1)
        self.rnn = cell(
            4, 4, 2, bidirectional=False, input_dropout=(0.2, 0.3), recurrent_dropout=0.4
        )
        self.dropout = brnn.LockedDropout(0.5)
        self.norm = nn.LayerNorm(4)
        self.decoder = nn.Linear(4, 7)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(self.norm(self.dropout(self.rnn(self.embedding(tokens))[0])))


KEPT = {
    "embedding.weight": 0.9,
    "rnn.weight_ih_l0": 0.8, "rnn.bias_ih_l0": 0.8,
    "rnn.weight_hh_l0": 0.6, "rnn.bias_hh_l0": 0.6,
    "rnn.weight_ih_l1": 0.7, "rnn.bias_ih_l1": 0.7,
    "rnn.weight_hh_l1": 0.6, "rnn.bias_hh_l1": 0.6,
    "norm.weight": 1.0, "norm.bias": 1.0,
    "decoder.weight": 1.0, "decoder.bias": 1.0,
}  # fmt: skip
every_cell = pytest.mark.parametrize(
    "cell", [brnn.BayesianLSTM, brnn.BayesianGRU, brnn.BayesianRNN]
)


def make(cell=brnn.BayesianLSTM, **options):
    torch.manual_seed(0)
    return Model(cell, **options).double()


def by_hand(model, kept, length_scale, num_data):
    """sum of p_keep l^2 / (2 N) ||w||^2, and its gradient by each parameter."""
    factors = {name: p * length_scale**2 / num_data for name, p in kept.items()}
    weights = {name: w.detach() for name, w in model.named_parameters()}
    assert factors.keys() == weights.keys()
    value = sum(factors[name] / 2 * w.square().sum() for name, w in weights.items())
    return value, {name: factors[name] * w for name, w in weights.items()}


def assert_penalty(model, kept, **options):
    value, gradients = by_hand(model, kept, **PRIOR)
    penalty = brnn.kl_penalty(model, **PRIOR, **options)
    assert penalty.shape == ()
    torch.testing.assert_close(penalty.detach(), value, rtol=1e-12, atol=0)
    for (name, w), got in zip(
        model.named_parameters(), torch.autograd.grad(penalty, model.parameters()), strict=True
    ):
        torch.testing.assert_close(got, gradients[name], rtol=1e-12, atol=0, msg=f"{name} {w}")


def decays(groups):
    """{parameter: weight decay}; asserts that no parameter comes twice."""
    pairs = [(w, group["weight_decay"]) for group in groups for w in group["params"]]
    assert len(pairs) == len({w for w, _ in pairs})
    return dict(pairs)


@every_cell
def test_penalty_by_hand(cell):
    assert_penalty(make(cell), KEPT)


def test_penalty_of_both_directions():
    lstm = brnn.BayesianLSTM(
        3, 4, 2, bidirectional=True, input_dropout=(0.25, 1.0), recurrent_dropout=0.5
    ).double()
    kept = {
        name: 0.5 if "_hh_" in name else {"l0": 0.75, "l1": 0.0}[name.split("_")[2]]
        for name, _ in lstm.named_parameters()
    }
    assert_penalty(lstm, kept)


def test_penalty_without_biases():
    gru = brnn.BayesianGRU(3, 4, bias=False, input_dropout=0.5).double()
    assert_penalty(gru, {"weight_ih_l0": 0.5, "weight_hh_l0": 1.0})


def test_dropout_names_what_feeds_a_layer():
    named = {"decoder": 0.5, "norm": 0.25}
    kept = KEPT | {
        "decoder.weight": 0.5, "decoder.bias": 0.5, "norm.weight": 0.75, "norm.bias": 0.75,
    }  # fmt: skip
    assert_penalty(make(), kept, dropout=named)
    assert named == {"decoder": 0.5, "norm": 0.25}  # left as it was


def test_dropout_names_the_module_itself():
    linear = nn.Linear(2, 2).double()
    assert_penalty(linear, {"weight": 0.5, "bias": 0.5}, dropout={"": 0.5})


def test_parameters_outside_of_any_layer_count_as_kept():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0).double())

    assert_penalty(Scaled(), {"scale": 1.0})


def test_frozen_parameters_count_in_the_value_and_not_in_the_groups():
    model = make()
    frozen = [model.embedding.weight, model.rnn.weight_hh_l0]
    for w in frozen:
        w.requires_grad_(False)
    value, _ = by_hand(model, KEPT, **PRIOR)
    torch.testing.assert_close(brnn.kl_penalty(model, **PRIOR).detach(), value)
    got = decays(brnn.weight_decay_groups(model, **PRIOR))
    assert set(got) == set(model.parameters()) - set(frozen)


@every_cell
def test_groups_hold_every_parameter_once_with_its_decay(cell):
    model = make(cell)
    groups = brnn.weight_decay_groups(model, **PRIOR, dropout={"decoder": 0.5})
    kept = KEPT | {"decoder.weight": 0.5, "decoder.bias": 0.5}
    got = decays(groups)
    assert len(groups) == len(set(kept.values()))
    for name, w in model.named_parameters():
        assert math.isclose(got[w], kept[name] * 0.7**2 / 50, rel_tol=1e-12)


@every_cell
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_with_groups_equals_sgd_on_the_penalty(cell, tied, momentum):
    with_groups = make(cell, tied=tied)
    with_penalty = copy.deepcopy(with_groups)
    named = {"decoder": 0.5}
    optimizers = [
        torch.optim.SGD(parameters, lr=0.3, momentum=momentum)
        for parameters in (
            brnn.weight_decay_groups(with_groups, **PRIOR, dropout=named),
            with_penalty.parameters(),
        )
    ]
    tokens, targets = torch.randint(7, (2, 5, 3)).unbind()
    for step in range(3):
        for model, optimizer in zip((with_groups, with_penalty), optimizers, strict=True):
            torch.manual_seed(step)  # the same masks
            loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
            if model is with_penalty:
                loss = loss + brnn.kl_penalty(model, **PRIOR, dropout=named)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for (name, a), b in zip(with_groups.named_parameters(), with_penalty.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14, msg=name)
    start = make(cell, tied=tied)
    assert not any(
        torch.equal(a, b) for a, b in zip(start.parameters(), with_groups.parameters(), strict=True)
    )


def turned(model):
    """The same model, whose modules are registered in the opposite order."""
    model._modules = dict(reversed(model._modules.items()))
    return model


@pytest.mark.parametrize("order", [lambda model: model, turned])
@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ({}, 1.0),  # the embedding drops 0.1 of it, the decoder nothing
        ({"decoder": 0.5}, 0.5),
        ({"embedding": 0.25}, 0.75),
        ({"decoder": 0.5, "embedding": 0.25}, 0.75),
    ],
)
def test_a_shared_weight_counts_once_with_the_least_dropout(order, named, kept):
    model = order(make(tied=True))
    factors = {
        name: (0.5 if "decoder" in named and name == "decoder.bias" else p)
        for name, p in KEPT.items()
    }
    shared = {"decoder.weight", "embedding.weight"} & dict(model.named_parameters()).keys()
    for name in ("decoder.weight", "embedding.weight"):
        del factors[name]
    assert_penalty(model, factors | dict.fromkeys(shared, kept), dropout=named)
    groups = decays(brnn.weight_decay_groups(model, **PRIOR, dropout=named))
    assert set(groups) == set(model.parameters())
    assert math.isclose(groups[model.embedding.weight], kept * 0.7**2 / 50, rel_tol=1e-12)


def test_a_module_that_stands_twice_counts_once():
    model = make()
    twice = nn.ModuleDict({"a": model.rnn, "b": model.rnn})
    torch.testing.assert_close(
        brnn.kl_penalty(twice, **PRIOR), brnn.kl_penalty(model.rnn, **PRIOR), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_penalty_of_narrow_weights_is_summed_in_float32(dtype):
    """In float16 the squares of 1e-4 vanish, and 300 ** 2 is infinite."""
    for value in (1e-4, 300.0):
        linear = nn.Linear(100, 100, bias=False).to(dtype)
        nn.init.constant_(linear.weight, value)
        penalty = brnn.kl_penalty(linear, length_scale=1.0, num_data=1)
        exact = linear.weight.double().square().sum() / 2
        torch.testing.assert_close(penalty.double(), exact, rtol=1e-4, atol=0)


def test_penalty_scales_with_the_prior():
    model = make()
    base = brnn.kl_penalty(model, length_scale=1.0, num_data=1)
    torch.testing.assert_close(brnn.kl_penalty(model, length_scale=3.0, num_data=1), 9 * base)
    torch.testing.assert_close(brnn.kl_penalty(model, length_scale=1.0, num_data=100), base / 100)


def test_penalty_is_the_same_in_every_mode():
    model = make()
    assert brnn.kl_penalty(model.train(), **PRIOR) == brnn.kl_penalty(model.eval(), **PRIOR)


@pytest.mark.parametrize("function", [brnn.kl_penalty, brnn.weight_decay_groups])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length_scale": 0.0}, r"length_scale: expected more than 0, got 0\.0"),
        ({"length_scale": -1}, r"length_scale: expected more than 0, got -1"),
        ({"length_scale": math.nan}, r"length_scale: expected more than 0, got nan"),
        ({"num_data": 0}, r"num_data: expected at least 1, got 0"),
        ({"num_data": math.nan}, r"num_data: expected at least 1, got nan"),
        ({"dropout": {"decodr": 0.5}}, r"dropout: expected names of submodules, got 'decodr'"),
        ({"dropout": {"decoder": 1.5}}, r"dropout\['decoder'\]: expected .*\[0, 1\], got 1\.5"),
    ],
)
def test_bad_arguments(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(make(), **(PRIOR | arguments))


@pytest.mark.parametrize("function", [brnn.kl_penalty, brnn.weight_decay_groups])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": None}, r"module: expected an nn.Module, got NoneType"),
        ({"length_scale": "1"}, r"length_scale: expected a number, got '1'"),
        ({"num_data": None}, r"num_data: expected a number, got None"),
        ({"dropout": 0.5}, r"dropout: expected a mapping of submodule names, got float"),
        ({"dropout": {"decoder": None}}, r"dropout\['decoder'\]: expected .*\[0, 1\], got None"),
    ],
)
def test_wrong_types(function, arguments, message):
    with pytest.raises(TypeError, match=message):
        function(**({"module": make()} | PRIOR | arguments))


@pytest.mark.parametrize("function", [brnn.kl_penalty, brnn.weight_decay_groups])
def test_dropout_of_a_container_is_refused(function):
    """A Sequential has no parameters of its own: the name would silently do nothing."""
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"dropout: .*'0'"):
        function(model, **PRIOR, dropout={"0": 0.5})

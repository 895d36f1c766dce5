"""convert and to_torch: whole models, with the parameters that they have."""

import abc
import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import bayesrnn_cuda as brnn


class Named(nn.LSTM):
    """Adds a name."""


class Sized(Named):
    def __init__(self, size):
        super().__init__(size, size, batch_first=True)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.encoder = nn.LSTM(4, 6, 2, dropout=0.25, bidirectional=True)
        self.parts = nn.ModuleList([nn.GRU(12, 5), nn.Sequential(Sized(5)), nn.RNN(5, 5)])
        self.again = self.parts[0]
        self.out = nn.Linear(5, 3)

    def forward(self, tokens):
        x, _ = self.encoder(self.embedding(tokens))
        x, _ = self.again(x)
        x, _ = self.parts[1][0](x.transpose(0, 1))
        x, _ = self.parts[2](x.transpose(0, 1))
        return self.out(x)


TOKENS = torch.randint(9, (7, 3), generator=torch.Generator().manual_seed(0))


def made():
    torch.manual_seed(0)
    return Model()


@pytest.mark.parametrize("training", [False, True])
def test_every_layer_becomes_ours_with_its_parameters(training):
    model = made().train(training)
    expected = model.eval()(TOKENS)
    model.train(training)
    before, keys = dict(model.named_parameters()), list(model.state_dict())
    new = brnn.convert(model, recurrent_dropout=0.5)
    assert new is model
    assert type(model.encoder) is type(model.parts[1][0]) is brnn.BayesianLSTM
    assert type(model.parts[2]) is brnn.BayesianRNN
    assert type(model.again) is brnn.BayesianGRU and model.again is model.parts[0]
    assert model.encoder.input_dropout == (0.0, 0.25) and model.parts[1][0].batch_first
    assert model.encoder.training == model.encoder.draws_masks == training
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and list(model.state_dict()) == keys
    assert all(after[name] is before[name] for name in before)
    torch.testing.assert_close(model.eval()(TOKENS), expected)
    assert (brnn.mc_predict(model, TOKENS, samples=5).std > 0).any()


def test_and_back():
    model = made()
    expected = model.eval()(TOKENS)
    before = dict(model.named_parameters())
    brnn.to_torch(brnn.convert(model, recurrent_dropout=0.5, input_dropout=0.1))
    assert type(model.encoder) is type(model.parts[1][0]) is nn.LSTM
    assert type(model.again) is nn.GRU and model.again is model.parts[0]
    assert all(p is before[name] for name, p in model.named_parameters())
    torch.testing.assert_close(model(TOKENS), expected)
    model.train()(TOKENS).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_words_and_outputs_go_to_torch_too(frozen):
    torch.manual_seed(0)
    model = nn.Sequential(
        brnn.BayesianEmbedding(9, 4, dropout=0.5, padding_idx=2),
        brnn.LockedDropout(0.25),
        nn.Linear(4, 9),
    ).eval()
    model[2].weight = model[0].weight
    model[0].weight.requires_grad_(not frozen)
    expected = model(TOKENS)
    brnn.to_torch(model)
    assert type(model[0]) is nn.Embedding and model[0].padding_idx == 2
    assert type(model[1]) is nn.Dropout and model[1].p == 0.25 and not model[1].training
    assert model[0].weight is model[2].weight
    assert model[0].weight.requires_grad is not frozen
    assert torch.equal(model(TOKENS), expected)


def test_a_layer_itself_is_replaced():
    lstm = nn.LSTM(3, 4)
    new = brnn.convert(lstm, recurrent_dropout=0.5, tie_gates=True, engine="reference")
    assert type(new) is brnn.BayesianLSTM and new.tie_gates and new.engine == "reference"
    assert new.weight_ih_l0 is lstm.weight_ih_l0
    assert type(brnn.to_torch(new)) is nn.LSTM


def test_optimizers_and_ties_stay_right():
    model = made()
    model.parts[0].bias_ih_l0 = model.parts[0].bias_hh_l0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    brnn.convert(model, recurrent_dropout=0.5)
    assert model.again.bias_ih_l0 is model.again.bias_hh_l0
    before = copy.deepcopy(model.state_dict())
    model(TOKENS).sum().backward()
    optimizer.step()
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert any("encoder.weight_hh" in k for k in changed)


def test_a_class_that_is_abstract_in_name_alone_counts_as_its_base():
    class Recurrent(abc.ABC, nn.LSTM):
        """As libraries have a base for several cells."""

    assert type(brnn.convert(Recurrent(2, 3), recurrent_dropout=0.5)) is brnn.BayesianLSTM


class Own(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


class Holding(nn.GRU):
    def __init__(self):
        super().__init__(3, 4)
        self.scale = 2.0


def hooked():
    layer = nn.GRU(3, 4)
    layer.register_forward_pre_hook(lambda *_: None)
    return layer


def parametrized():
    layer = nn.LSTM(3, 4)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: nn.RNN(3, 4, nonlinearity="relu"), "its nonlinearity is 'relu', not 'tanh'"),
        (lambda: nn.LSTMCell(3, 4), "LSTMCell has no counterpart here"),
        (lambda: nn.LSTM(3, 4, proj_size=2), r"it has projections \(proj_size\)"),
        (lambda: Own(3, 4), "Own has forward of its own"),
        (Holding, "it has scale of its own"),
        (hooked, "it has hooks"),
        (parametrized, "its weights are parametrized"),
    ],
)
def test_what_cannot_be_converted_is_told_by_name(layer, reason):
    """And nothing is changed."""
    model = nn.ModuleDict({"fine": nn.GRU(3, 4), "inner": nn.ModuleDict({"odd": layer()})})
    odd = model["inner"]["odd"]
    with pytest.raises(ValueError, match=rf"model: .* inner\.odd \({reason}\)"):
        brnn.convert(model, recurrent_dropout=0.5)
    assert type(model["fine"]) is nn.GRU
    brnn.convert(model, recurrent_dropout=0.5, leave=["inner.odd"])
    assert type(model["fine"]) is brnn.BayesianGRU and model["inner"]["odd"] is odd


def test_what_cannot_go_to_torch_is_told_by_name():
    class Ours(brnn.BayesianGRU):
        def forward(self, x):
            return super().forward(x)[0]

    model = nn.ModuleDict({
        "a": brnn.BayesianGRU(3, 4, reset_after=False), "b": Ours(3, 4), "c": nn.LSTM(3, 4)
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"a \(.*reset_after=False\); b \(Ours has forward of"):
        brnn.to_torch(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: brnn.convert(nn.Linear(2, 2), recurrent_dropout=0.5), "model: .* got Linear"),
        (lambda: brnn.to_torch(nn.LSTM(2, 2)), "model: expected a module of bayesrnn_cuda inside"),
        (
            lambda: brnn.convert(nn.LSTM(2, 2), recurrent_dropout=0.5, leave=["x", "a"]),
            "leave: expected names of submodules, got a, x",
        ),
        (
            lambda: brnn.convert(nn.LSTM(2, 2), recurrent_dropout=1.5),
            r"recurrent_dropout: expected a probability of dropping in \[0, 1\], got 1.5",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": nn.LSTM}, r"model: expected an nn.Module, got type"),
        ({"leave": 3}, r"leave: expected names of submodules, got 3"),
        ({"leave": ["a", None]}, r"leave: expected names of submodules, got None"),
        ({"recurrent_dropout": "0.5"}, r"recurrent_dropout: expected a prob.*, got '0\.5'"),
        ({"input_dropout": "0.5"}, r"input_dropout: expected a prob.*, got '0\.5'"),
        ({"tie_gates": 1}, r"tie_gates: expected True or False, got 1"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        brnn.convert(**({"model": nn.LSTM(2, 2), "recurrent_dropout": 0.5} | arguments))
    if "dropout" not in message and "tie_gates" not in message:
        with pytest.raises(TypeError, match=message):
            brnn.to_torch(**({"model": brnn.BayesianLSTM(2, 2)} | arguments))


def test_import_leaves_out_what_only_a_conversion_needs():
    """torch's compiler takes longer to import than torch does beside it."""
    program = "import sys, bayesrnn_cuda; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_convert_leaves_the_random_state_alone():
    program = (
        "import torch, bayesrnn_cuda as brnn\n"
        "model = torch.nn.Sequential(torch.nn.GRU(3, 4))\n"
        "torch.manual_seed(1)\n"
        "brnn.to_torch(brnn.convert(model, recurrent_dropout=0.5))\n"
        "drawn = torch.rand(3)\n"
        "torch.manual_seed(1)\n"
        "assert torch.equal(drawn, torch.rand(3))\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

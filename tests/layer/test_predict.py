"""mc_predict: its values, what it leaves behind, its errors."""

import math

import pytest
import torch
from predict_cases import B, Function, H, I, Replay, T, modes, tagger
from torch import nn

import bayesrnn_cuda as brnn


class Linear(nn.Module):
    """y = w . LockedDropout(x): its mean and variance are known."""

    def __init__(self, p, weight):
        super().__init__()
        self.dropout = brnn.LockedDropout(p)
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return self.dropout(x) @ self.weight


# Values


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("chunk", [None, 700])
def test_mean_and_std_tend_to_the_analytic_ones(p, chunk):
    """y = sum_j w_j x_j m_j / (1 - p): mean w . x, variance p / (1 - p) sum_j (w_j x_j)^2."""
    torch.manual_seed(0)
    module = Linear(p, torch.randn(8, dtype=torch.float64)).eval()
    x = torch.randn(1, B, 8, dtype=torch.float64)
    samples = 4000
    mean, std, entropy, information, *_ = brnn.mc_predict(module, x, samples=samples, chunk=chunk)
    assert entropy is information is None
    assert mean.shape == std.shape == (1, B)

    parts = (module.weight * x).detach()
    variance = (p / (1 - p) * parts.square()).sum(dim=-1)
    assert ((mean - parts.sum(dim=-1)).abs() < 5 * (variance / samples).sqrt()).all()
    # the sample variance has variance (mu_4 - sigma^4) / S; mu_4 from the Bernoulli's cumulants
    q = 1 - p
    kappa_4 = (p * (1 - 6 * p * q) / q**3 * parts**4).sum(dim=-1)
    bound = 5 * ((kappa_4 + 2 * variance.square()) / samples).sqrt()
    assert ((std.square() - variance).abs() < bound).all()


@pytest.mark.parametrize("chunk", [None, 1, 3, 10, 50])
def test_moments_equal_those_of_the_draws(chunk):
    torch.manual_seed(0)
    draws = torch.randn(10, B, 2, dtype=torch.float64) + 1e4  # a far mean: no cancellation
    prediction = brnn.mc_predict(Replay(draws), torch.zeros(B), samples=10, chunk=chunk)
    torch.testing.assert_close(prediction.mean, draws.mean(dim=0), rtol=1e-12, atol=0)
    std = draws.std(dim=0, correction=0)
    torch.testing.assert_close(prediction.std, std, rtol=1e-9, atol=0)


@pytest.mark.parametrize("chunk", [None, 1, 3, 10])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_categorical_equals_the_direct_computation(chunk, temperature):
    torch.manual_seed(0)
    logits = temperature * torch.randn(10, B, 4, dtype=torch.float64)
    mean, std, entropy, information, *_ = brnn.mc_predict(
        Replay(logits), torch.zeros(B), samples=10, likelihood="categorical", chunk=chunk
    )
    p = logits.softmax(dim=-1)
    total = torch.special.entr(p.mean(dim=0)).sum(dim=-1)
    expected = torch.special.entr(p).sum(dim=-1).mean(dim=0)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(mean, p.mean(dim=0), **close)
    torch.testing.assert_close(std, p.std(dim=0, correction=0), **close)
    torch.testing.assert_close(entropy, total, **close)
    torch.testing.assert_close(information, total - expected, **close)
    torch.testing.assert_close(mean.sum(dim=-1), torch.ones(B, dtype=torch.float64), **close)
    assert (information >= 0).all()
    assert (information <= entropy).all()
    assert (entropy <= math.log(4)).all()


def test_probabilities_are_averaged_and_not_logits():
    """Two sure and opposite samples: mean (1/2, 1/2), all of the entropy is disagreement."""
    logits = torch.tensor([[[40.0, 0.0]], [[-60.0, 0.0]]])  # mean logit -10: surely class 1
    mean, std, entropy, information, *_ = brnn.mc_predict(
        Replay(logits),
        torch.zeros(1),
        samples=2,
        likelihood="categorical",
        output_batch_dim=0,
    )
    torch.testing.assert_close(mean, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(std, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(2)]))
    torch.testing.assert_close(information, entropy)


def test_samples_that_agree_inform_of_nothing():
    logits = torch.tensor([[[0.3, -0.2, 1.0]]]).expand(7, 1, 3)
    _, std, entropy, information, *_ = brnn.mc_predict(
        Replay(logits), torch.zeros(1), samples=7, likelihood="categorical"
    )
    torch.testing.assert_close(entropy, torch.special.entr(logits[0].softmax(dim=-1)).sum(dim=-1))
    assert information.item() < 1e-6
    assert std.max() < 1e-6


@pytest.mark.parametrize("logits", [[0.0, -math.inf], [1e4, -1e4], [0.0]], ids=str)
def test_certainty_has_no_entropy(logits):
    draws = torch.tensor(logits).expand(3, B, len(logits))
    prediction = brnn.mc_predict(Replay(draws), torch.zeros(B), samples=3, likelihood="categorical")
    assert (prediction.mean == torch.tensor([1.0, 0.0][: len(logits)])).all()
    assert (prediction.entropy == 0).all()
    assert (prediction.mutual_information == 0).all()


def test_one_sample_has_no_spread():
    mean, std, *_ = brnn.mc_predict(tagger(), torch.randn(T, B, I), samples=1)
    assert mean.shape == (T, B, 2)
    assert (std == 0).all()


# What it leaves behind


@pytest.mark.parametrize("training", [False, True])
def test_keeps_no_gradients_and_restores_the_modes(training):
    module = tagger().train(training)
    before = modes(module)
    x = torch.randn(T, B, I, requires_grad=True)
    prediction = brnn.mc_predict(module, x, samples=5, likelihood="categorical")
    assert not any(t.requires_grad for t in prediction if t is not None)
    assert all(p.grad is None for p in module.parameters())
    assert modes(module) == before
    assert torch.is_grad_enabled()


def test_restores_the_modes_when_the_module_raises():
    module = tagger()
    before = modes(module)
    with pytest.raises(ValueError, match=r"input: expected last dimension 5"):
        brnn.mc_predict(module, torch.randn(T, B, I + 1), samples=5)
    assert modes(module) == before
    assert torch.is_grad_enabled()


def test_inputs_are_left_as_they_were():
    x = torch.randn(B, I)
    copy = x.clone()

    def in_place(v):
        return v.mul_(2)

    prediction = brnn.mc_predict(Function(in_place), x, samples=3)
    assert torch.equal(x, copy)
    torch.testing.assert_close(prediction.mean, 2 * copy)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, r"samples: expected an integer of at least 1, got 0"),
        ({"samples": -3}, r"samples: expected an integer of at least 1, got -3"),
        ({"chunk": 0}, r"chunk: expected an integer of at least 1, got 0"),
        ({"likelihood": "softmax"}, r"likelihood: expected one of .*, got 'softmax'"),
        ({"batch_dim": 3}, r"batch_dim: expected a dimension of \[4, 3, 5\], got 3"),
        ({"noise": -1}, r"noise: expected at least 0, got -1"),
        ({"noise": torch.full((T, B), math.nan)}, r"noise: .*, got Tensor of float32 \[4, 3\]"),
        ({"noise": torch.ones(2, dtype=torch.bool)}, r"noise: expected real numbers, got Tensor"),
        ({"batch_dim": -4}, r"batch_dim: expected a dimension of \[4, 3, 5\], got -4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(tagger(), torch.randn(T, B, I), **arguments)


def test_the_noise_is_checked_before_the_module_runs():
    def never(x):
        raise AssertionError("called")

    for noise, error in ((-1, ValueError), ("1", TypeError)):
        with pytest.raises(error, match=r"^noise: "):
            brnn.mc_predict(Function(never), torch.zeros(B), noise=noise)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 2.5}, r"samples: expected an integer of at least 1, got 2\.5"),
        ({"chunk": "2"}, r"chunk: expected an integer of at least 1, got '2'"),
        ({"likelihood": None}, r"likelihood: expected one of .*, got None"),
        ({"noise": "0.1"}, r"noise: expected a number or a tensor, got '0\.1'"),
        ({"noise": True}, r"noise: expected a number or a tensor, got True"),
        (
            {"noise": [0.1] * 99},
            r"noise: expected a number or a tensor, got list \[0\.1, .*\.\.\.$",
        ),
        ({"batch_dim": 0.5}, r"batch_dim: expected an integer, got 0\.5"),
        ({"output_batch_dim": "0"}, r"output_batch_dim: expected an integer, got '0'"),
        ({"keep_draws": 1}, r"keep_draws: expected True or False, got 1"),
        ({"share_masks": None}, r"share_masks: expected True or False, got None"),
        ({"hold": "yes"}, r"hold: expected True or False, got 'yes'"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        brnn.mc_predict(tagger(), torch.randn(T, B, I), **arguments)


def test_bad_inputs():
    with pytest.raises(ValueError, match=r"inputs: expected at least 1 tensor, got 0"):
        brnn.mc_predict(tagger())
    with pytest.raises(ValueError, match=r"inputs: expected one size in dimension 0, got \[3, 2\]"):
        brnn.mc_predict(Function(lambda a, b: a), torch.zeros(3), torch.zeros(2))
    with pytest.raises(TypeError, match=r"module: expected an nn.Module, got function"):
        brnn.mc_predict(lambda x: x, torch.zeros(3))


def test_runs_as_in_eval_but_for_dropout():
    """Batch norm must not see the repeated samples as training data."""
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(I)).train()
    before = module[1].running_mean.clone()
    prediction = brnn.mc_predict(module, torch.randn(B, I), samples=4)
    assert (prediction.std > 0).any()
    assert torch.equal(module[1].running_mean, before)
    assert module[0].training and module[1].training


def test_dropout_inside_torchs_own_layers_stays_on():
    module = nn.LSTM(I, H, num_layers=2, dropout=0.5).eval()
    assert (brnn.mc_predict(module, torch.randn(T, B, I), samples=8).std > 0).any()
    assert not module.training

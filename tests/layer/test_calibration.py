"""fit_noise, model_precision, conformal_scale and coverage, where the right value is known."""

import math

import numpy as np
import pytest
import torch
from predict_cases import Replay

import bayesrnn_cuda as brnn

scipy_stats = pytest.importorskip("scipy.stats")


def prediction(mean, std, noise=None):
    """By two samples, mean -+ std."""
    draws = torch.stack([mean - std, mean + std])
    return brnn.mc_predict(Replay(draws), torch.zeros(len(mean)), samples=2, noise=noise)


def known(n, horizon=5, seed=0):
    """Targets around a mean with the model's doubt 0.3 and a noise that grows over the steps."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.arange(1, horizon + 1).double() / 2
    mean = torch.randn(n, horizon, generator=generator, dtype=torch.float64)
    scatter = torch.randn(n, horizon, generator=generator, dtype=torch.float64)
    targets = mean + scatter * (noise**2 + 0.3**2).sqrt()
    return prediction(mean, torch.full_like(mean, 0.3)), targets, noise


# The noise


def test_the_noise_is_what_the_doubt_does_not_explain():
    got, targets, noise = known(40_000)
    fitted = brnn.fit_noise(got, targets, separate=1)
    assert fitted.shape == (1, 5)
    # the deviation of a deviation is sigma / sqrt(2 n)
    torch.testing.assert_close(fitted[0], noise, rtol=0.02, atol=0)
    pooled = brnn.fit_noise(got, targets)
    assert pooled.shape == ()
    torch.testing.assert_close(pooled, noise.square().mean().sqrt(), rtol=0.01, atol=0)
    lower, upper = got.with_noise(fitted).interval(0.9)
    assert brnn.coverage((lower, upper), targets).item() == pytest.approx(0.9, abs=0.005)
    by_doubt = brnn.coverage(got.interval(0.9), targets).item()
    assert by_doubt < 0.45


def test_a_doubt_that_explains_all_leaves_no_noise():
    got = prediction(torch.zeros(10, 1), torch.full((10, 1), 3.0))
    assert brnn.fit_noise(got, torch.ones(10, 1)) == 0


def test_a_linear_model_with_known_noise():
    """y = w . x + noise and dropout on x: the noise is told apart from the masks' variance."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = brnn.LockedDropout(0.1)
            self.weight = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, x):
            return self.drop(x) @ self.weight

    torch.manual_seed(0)
    x = torch.randn(1, 5000, 4, dtype=torch.float64)
    doubt = (0.1 / 0.9 * x.square().sum(-1)).sqrt()
    targets = x.sum(-1) + torch.randn(1, 5000) * doubt + 0.5 * torch.randn(1, 5000)
    got = brnn.mc_predict(Linear(), x, samples=400, batch_dim=1)
    torch.testing.assert_close(got.std, doubt, rtol=0.25, atol=0.02)
    noise = brnn.fit_noise(got, targets)
    assert noise.item() == pytest.approx(0.5, rel=0.06)
    inside = brnn.coverage(got.with_noise(noise).interval(0.9), targets)
    assert inside.item() == pytest.approx(0.9, abs=0.02)


def test_model_precision_of_the_paper():
    tau = brnn.model_precision(length_scale=0.1, dropout=0.25, num_data=200, weight_decay=1e-3)
    assert tau == pytest.approx(0.75 * 0.01 / (2 * 200 * 1e-3))


def test_model_precision_belongs_to_the_penalty():
    """mean (y - f)^2 / 2 + lambda ||w||^2 is what kl_penalty makes of a precision tau."""
    linear = torch.nn.Linear(3, 2).double()
    decay, n, scale = 1e-3, 50, 0.7
    tau = brnn.model_precision(length_scale=scale, dropout=0.5, num_data=n, weight_decay=decay)
    penalty = brnn.kl_penalty(linear, length_scale=scale, num_data=n, dropout={"": 0.5})
    norm = sum(w.square().sum() for w in linear.parameters())
    torch.testing.assert_close(penalty / tau, decay * norm)


# Conformal scale


@pytest.mark.parametrize("n", [1, 8, 9, 10, 19, 99, 800])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_the_scale_is_the_score_of_that_rank(n, level):
    torch.manual_seed(n)
    std = torch.rand(n, 1, dtype=torch.float64) + 0.5
    got = prediction(torch.zeros(n, 1, dtype=torch.float64), std)
    targets = torch.randn(n, 1, dtype=torch.float64)
    scores = np.sort((targets.abs() / std).flatten().numpy())
    rank = math.ceil(round((n + 1) * level, 9))
    expected = scores[rank - 1] if rank <= n else math.inf
    scale = brnn.conformal_scale(got, targets, level)
    assert scale.shape == ()
    assert scale.item() == expected


def test_its_coverage_is_exact_in_finite_samples():
    """With n = 19 the coverage of new data is Beta(18, 2): 0.9 in the mean, whatever the model."""
    trials, n = 4000, 19
    torch.manual_seed(0)
    targets = torch.randn(trials, n + 1, dtype=torch.float64).exp()  # far from normal
    shares = []
    for row in targets:
        got = prediction(torch.zeros(n + 1, 1, dtype=torch.float64), torch.ones(n + 1, 1).double())
        part = got._replace(mean=got.mean[:n], std=got.std[:n], total_std=got.total_std[:n])
        scale = brnn.conformal_scale(part, row[:n, None], 0.9)
        shares.append(bool(row[n] <= scale))
    share = np.mean(shares)
    assert abs(share - 0.9) < 4 * (0.9 * 0.1 / trials) ** 0.5


@pytest.mark.parametrize("n", [1, 28, 29, 40, 800, 100_000])
@pytest.mark.parametrize(("level", "confidence"), [(0.9, 0.95), (0.5, 0.5), (0.98, 0.9)])
def test_a_confidence_takes_the_first_rank_that_has_it(n, level, confidence):
    """The coverage of the r-th of n scores is Beta(r, n + 1 - r)."""
    got = prediction(torch.zeros(n, 1, dtype=torch.float64), torch.ones(n, 1).double())
    targets = torch.arange(1, n + 1, dtype=torch.float64)[:, None]
    scale = brnn.conformal_scale(got, targets, level, confidence=confidence).item()
    ranks = np.arange(1, n + 1)
    sure = scipy_stats.beta.sf(level, ranks, n + 1 - ranks) >= confidence
    assert scale == (ranks[sure][0] if sure.any() else math.inf)
    if (n, confidence) == (800, 0.95):
        assert scale == 735


def test_joint_and_separate_scales():
    got, targets, noise = known(800, seed=1)
    got = got.with_noise(noise)
    scores = ((targets - got.mean).abs() / got.total_std).numpy()
    joint = brnn.conformal_scale(got, targets, 0.9, joint=1)
    assert joint.item() == np.sort(scores.max(axis=1))[721 - 1]  # ceil(801 * 0.9)
    apart = brnn.conformal_scale(got, targets, 0.98, separate=1)
    assert apart.shape == (1, 5)
    np.testing.assert_array_equal(apart[0].numpy(), np.sort(scores, axis=0)[785 - 1])

    new, came, _ = known(20_000, seed=2)
    new = new.with_noise(noise)
    for scale, least, most in ((joint, 0.87, 0.93), (apart, 0.87, 0.94)):
        inside = brnn.coverage(new.interval(scale=scale), came, joint=1).item()
        assert least < inside < most
    pooled = brnn.coverage(new.interval(scale=joint), came).item()
    assert pooled > 0.97  # each step alone
    assert brnn.interval_width(new.interval(scale=apart)).item() == pytest.approx(
        (2 * apart * new.total_std).mean().item()
    )


def test_separate_dimensions_keep_their_order():
    torch.manual_seed(0)
    mean = torch.zeros(30, 2, 3, dtype=torch.float64)
    got = prediction(mean, torch.ones_like(mean))
    targets = torch.randn(30, 2, 3, dtype=torch.float64) * torch.arange(1, 7).view(1, 2, 3)
    both = brnn.conformal_scale(got, targets, 0.9, separate=(2, 1))
    assert both.shape == (1, 2, 3)
    for i in range(2):
        for j in range(3):
            assert both[0, i, j] == targets[:, i, j].abs().sort().values[27]
    last = brnn.conformal_scale(got, targets, 0.9, separate=-1, joint=1)
    assert last.shape == (1, 1, 3)
    assert last[0, 0, 2] == targets[:, :, 2].abs().amax(dim=1).sort().values[27]


def test_a_known_distribution_needs_no_scale():
    """Where total_std is right, the scale is the normal quantile."""
    got, targets, noise = known(40_000)
    scale = brnn.conformal_scale(got.with_noise(noise), targets, 0.9).item()
    assert scale == pytest.approx(scipy_stats.norm.ppf(0.95), abs=0.02)


# Coverage


def test_coverage_counts_both_ends():
    lower, upper = torch.zeros(2, 3), torch.ones(2, 3)
    targets = torch.tensor([[0.0, 1.0, 0.5], [0.2, 1.1, -0.1]])
    assert brnn.coverage((lower, upper), targets) == pytest.approx(4 / 6)
    assert brnn.coverage((lower, upper), targets, joint=1) == 0.5
    assert brnn.coverage((lower, upper), targets, joint=(0, -1)) == 0.0
    assert brnn.coverage((lower, upper), targets, joint=0) == pytest.approx(1 / 3)


# Errors

GIVEN = prediction(torch.zeros(6, 2), torch.ones(6, 2))
Y = torch.ones(6, 2)
PAIR = (torch.zeros(6, 2), torch.ones(6, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: brnn.fit_noise(GIVEN, Y[:3]), r"targets: expected shape \[6, 2\], got \[3, 2\]"),
        (
            lambda: brnn.fit_noise(GIVEN, Y, separate=2),
            r"separate: expected dimensions from -2 to 1",
        ),
        (lambda: brnn.fit_noise(GIVEN, Y * math.nan), r"targets: expected finite ones"),
        (lambda: brnn.coverage(PAIR, Y * math.nan), r"targets: expected numbers, got NaN"),
        (lambda: brnn.conformal_scale(GIVEN, Y, 0.0), r"level: expected a probability in \(0, 1\)"),
        (lambda: brnn.conformal_scale(GIVEN, Y, 90), r"level: expected a probability"),
        (lambda: brnn.conformal_scale(GIVEN, Y, joint=0, separate=0), r"joint: expected other"),
        (
            lambda: brnn.conformal_scale(GIVEN, Y, joint=5),
            r"joint: expected dimensions from -2 to 1",
        ),
        (lambda: brnn.conformal_scale(GIVEN, Y * math.nan), r"prediction: expected a total_std"),
        (
            lambda: brnn.conformal_scale(prediction(Y * 0, Y * 0), Y),
            r"prediction: expected a total_std above 0",
        ),
        (lambda: brnn.coverage(PAIR[:1], Y), r"interval: expected \(lower, upper\), got 1 val"),
        (lambda: brnn.coverage(PAIR, Y[:3]), r"lower: expected shape \[3, 2\], got \[6, 2\]"),
        (lambda: brnn.coverage(PAIR, Y, joint=2), r"joint: expected dimensions from -2 to 1"),
        (
            lambda: brnn.model_precision(length_scale=0, dropout=0, num_data=1, weight_decay=1),
            r"length_scale: expected more than 0, got 0",
        ),
        (
            lambda: brnn.model_precision(length_scale=1, dropout=2, num_data=1, weight_decay=1),
            r"dropout: expected a probability of dropping in \[0, 1\], got 2",
        ),
        (
            lambda: brnn.model_precision(length_scale=1, dropout=0, num_data=0.5, weight_decay=1),
            r"num_data: expected at least 1, got 0.5",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_classes_are_refused():
    classes = brnn.mc_predict(
        Replay(torch.zeros(3, 6, 2)), torch.zeros(6), samples=3, likelihood="categorical"
    )
    for function in (brnn.fit_noise, brnn.conformal_scale):
        with pytest.raises(ValueError, match=r"prediction: expected gaussian .* got categorical"):
            function(classes, Y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: brnn.fit_noise((Y, Y), Y), r"prediction: expected MCPrediction, got tuple"),
        (lambda: brnn.fit_noise(GIVEN, Y.numpy()), r"targets: expected a tensor, got ndarray"),
        (lambda: brnn.fit_noise(GIVEN, Y, separate=0.5), r"separate: expected an integer, got 0"),
        (lambda: brnn.conformal_scale(GIVEN, Y, "0.9"), r"level: expected a prob.*, got '0\.9'"),
        (lambda: brnn.conformal_scale(GIVEN, Y, True), r"level: expected a prob.*, got True"),
        (lambda: brnn.conformal_scale(GIVEN, Y, joint="0"), r"joint: expected an integer, got '0'"),
        (lambda: brnn.coverage(Y, Y), r"interval: expected \(lower, upper\), got Tensor"),
        (lambda: brnn.coverage((Y, 3), Y), r"upper: expected a tensor, got int"),
        (lambda: brnn.coverage(PAIR, 3), r"targets: expected a tensor, got int"),
        (lambda: brnn.interval_width(Y), r"interval: expected \(lower, upper\), got Tensor"),
        (lambda: brnn.interval_width((0, Y)), r"lower: expected a tensor, got int"),
        (
            lambda: brnn.model_precision(length_scale="1", dropout=0, num_data=1, weight_decay=1),
            r"length_scale: expected a number, got '1'",
        ),
    ],
)
def test_wrong_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()

"""MCPrediction: quantiles, intervals, scores, against closed forms, scipy and torchmetrics."""

import math
import weakref

import numpy as np
import pytest
import torch
from predict_cases import Function, Replay
from torch import nn

import bayesrnn_cuda as brnn

scipy_stats = pytest.importorskip("scipy.stats")
scipy_optimize = pytest.importorskip("scipy.optimize")
scipy_integrate = pytest.importorskip("scipy.integrate")

S, B = 12, 4
LEVELS = [0.01, 0.05, 0.5, 0.9, 0.995]


def predicted(noise=None, keep_draws=True, likelihood="gaussian", samples=S, seed=0):
    torch.manual_seed(seed)
    draws = torch.randn(samples, B, 2, dtype=torch.float64) * 3 + torch.randn(B, 2).double()
    return draws, brnn.mc_predict(
        Replay(draws), torch.zeros(B), samples=samples, keep_draws=keep_draws, noise=noise,
        likelihood=likelihood,
    )  # fmt: skip


def noises():
    return torch.rand(B, 2, dtype=torch.float64) + 0.1


def elements(*tensors):
    """The draws and whatever else of each of the B x 2 outputs, as numpy."""
    for index in np.ndindex(B, 2):
        yield index, *(t[(..., *index)].numpy() for t in tensors)


def mixture_cdf(y, draws, noise):
    return scipy_stats.norm.cdf((y - draws) / noise).mean()


# Moments and draws


@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_draws_are_all_outputs_in_their_order(chunk):
    draws = torch.randn(S, B, 2)
    got = brnn.mc_predict(Replay(draws), torch.zeros(B), samples=S, keep_draws=True, chunk=chunk)
    assert torch.equal(got.draws, draws)
    assert brnn.mc_predict(Replay(draws), torch.zeros(B), samples=S).draws is None
    p = brnn.mc_predict(
        Replay(draws), torch.zeros(B), samples=S, keep_draws=True, likelihood="categorical"
    )
    torch.testing.assert_close(p.draws, draws.softmax(-1))
    assert p.total_std is None and p.noise is None


def test_total_std_adds_the_noise():
    for noise in (0.7, noises(), torch.tensor([0.1, 0.2])):
        draws, got = predicted(noise)
        variance = draws.var(dim=0, correction=0)
        expected = (variance + torch.as_tensor(noise, dtype=torch.float64) ** 2).sqrt()
        torch.testing.assert_close(got.total_std, expected)
        torch.testing.assert_close(got.std, variance.sqrt())
        torch.testing.assert_close(predicted()[1].with_noise(noise).total_std, expected)
    _, plain = predicted()
    assert torch.equal(plain.total_std, plain.std) and plain.noise is None


def test_without_draws_nothing_of_the_samples_is_kept():
    """Memory does not grow with S: of 200 outputs a handful is alive at any time."""
    alive, most = [], 0

    def output(x):
        nonlocal most
        y = torch.randn(len(x), 3)
        alive.append(weakref.ref(y))
        most = max(most, sum(ref() is not None for ref in alive))
        return y

    for likelihood in ("gaussian", "categorical"):
        brnn.mc_predict(
            Function(output), torch.zeros(B, 1), samples=200, chunk=2, likelihood=likelihood
        )
    assert most <= 4


@pytest.mark.parametrize("form", ["halves", "tuple"])
@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_heteroscedastic(form, chunk):
    """Mean and log variance; the variances are averaged, not their logs."""
    torch.manual_seed(0)
    values = torch.randn(S, B, 3, dtype=torch.float64)
    logs = torch.randn(S, B, 3, dtype=torch.float64)
    joined = torch.cat([values, logs], dim=-1)
    replay = Replay(joined)
    module = replay if form == "halves" else nn.Sequential(
        replay, Function(lambda y: tuple(y.chunk(2, dim=-1)))
    )  # fmt: skip
    got = brnn.mc_predict(
        module, torch.zeros(B), samples=S, likelihood="heteroscedastic", chunk=chunk,
        keep_draws=True,
    )  # fmt: skip
    torch.testing.assert_close(got.mean, values.mean(dim=0))
    torch.testing.assert_close(got.std, values.std(dim=0, correction=0))
    noise = logs.exp().mean(dim=0)
    torch.testing.assert_close(got.noise, noise.sqrt())
    torch.testing.assert_close(got.total_std, (values.var(dim=0, correction=0) + noise).sqrt())
    assert torch.equal(got.draws, values)
    torch.testing.assert_close(got.draw_noise, (logs / 2).exp())
    y = torch.randn(B, 3, dtype=torch.float64)
    density = torch.distributions.Normal(values, (logs / 2).exp()).log_prob(y)
    torch.testing.assert_close(got.log_likelihood(y), density.logsumexp(0) - math.log(S))


@pytest.mark.parametrize("keep_draws", [False, True])
def test_heteroscedastic_outputs_have_their_noise_already(keep_draws):
    _, got = predicted(keep_draws=keep_draws, likelihood="heteroscedastic")
    assert got.heteroscedastic and not predicted(0.1)[1].heteroscedastic
    got = torch.utils._pytree.tree_map(lambda t: t if t is None else t.float(), got)
    assert got.mean.dtype == torch.float32 and got._replace(std=got.mean).heteroscedastic
    with pytest.raises(ValueError, match=r"noise: expected a gaussian prediction"):
        got.with_noise(0.3)
    with pytest.raises(ValueError, match=r"prediction: expected gaussian, got heteroscedastic"):
        brnn.fit_noise(got, torch.zeros_like(got.mean))


def test_heteroscedastic_outputs_that_are_none():
    for output, message in (
        (torch.zeros(B, 3), r"output: expected mean and log variance, .* got \[4, 3\]"),
        ((torch.zeros(B, 3), torch.zeros(B, 1)), r"got \[4, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            brnn.mc_predict(
                Function(lambda x, y=output: y), torch.zeros(B), likelihood="heteroscedastic"
            )


# Quantiles and intervals


def test_quantiles_without_draws_are_those_of_the_normal_distribution():
    _, got = predicted(noises(), keep_draws=False)
    expected = scipy_stats.norm.ppf(
        np.reshape(LEVELS, (-1, 1, 1)), got.mean.numpy(), got.total_std.numpy()
    )
    np.testing.assert_allclose(got.quantile(LEVELS).numpy(), expected, rtol=1e-9)
    lower, _ = got.interval(0.9)
    np.testing.assert_allclose(lower.numpy(), expected[1], rtol=1e-9)
    assert got.quantile(0.5).shape == (B, 2)


def test_quantiles_of_draws_are_those_of_torch():
    draws, got = predicted()
    for q in (*LEVELS, 0.0, 1.0):
        torch.testing.assert_close(got.quantile(q), draws.quantile(q, dim=0))
    draws, got = predicted(samples=1)
    torch.testing.assert_close(got.quantile([0.1, 0.9]), draws.expand(2, B, 2))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_quantiles_of_draws_and_noise_are_those_of_the_mixture(scale):
    noise = noises() * scale
    draws, got = predicted(noise)
    quantiles = got.quantile(torch.tensor(LEVELS))
    for index, d, n in elements(draws, noise):
        for q, value in zip(LEVELS, quantiles[(..., *index)].tolist(), strict=True):
            assert mixture_cdf(value, d, n) == pytest.approx(q, abs=1e-7)
    lower, upper = got.interval(0.8)
    torch.testing.assert_close(torch.stack([lower, upper]), got.quantile([0.1, 0.9]))
    assert (got.quantile([0.0, 1.0]) == torch.tensor([-math.inf, math.inf]).view(2, 1, 1)).all()


def test_an_interval_by_scale():
    _, got = predicted(noises())
    scale = torch.tensor([2.0, 3.0])
    lower, upper = got.interval(scale=scale)
    torch.testing.assert_close(upper, got.mean + scale * got.total_std)
    torch.testing.assert_close(lower, got.mean - scale * got.total_std)


# Scores


def test_log_likelihood_of_draws_is_that_of_their_mixture():
    noise = noises()
    draws, got = predicted(noise)
    y = torch.randn(B, 2, dtype=torch.float64)
    scores = got.log_likelihood(y)
    for index, d, n, target in elements(draws, noise, y):
        expected = math.log(scipy_stats.norm.pdf(target, d, n).mean())
        assert scores[index].item() == pytest.approx(expected, rel=1e-9)
    _, got = predicted(noise, keep_draws=False)
    expected = scipy_stats.norm.logpdf(y.numpy(), got.mean.numpy(), got.total_std.numpy())
    np.testing.assert_allclose(got.log_likelihood(y).numpy(), expected, rtol=1e-9)


def test_log_likelihood_of_classes():
    draws, got = predicted(likelihood="categorical")
    y = torch.tensor([0, 1, 1, 0])
    expected = draws.softmax(-1).mean(dim=0)[torch.arange(B), y].log()
    torch.testing.assert_close(got.log_likelihood(y), expected)
    for outside in (2, -1):
        y[1] = outside
        with pytest.raises(
            ValueError, match=rf"^targets: expected classes below 2, got {outside}$"
        ):
            got.log_likelihood(y)
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=rf"^targets: expected integers .*, got {dtype} "):
            got.log_likelihood(y.to(dtype))


@pytest.mark.parametrize("keep_draws", [False, True])
def test_crps_is_the_integral(keep_draws):
    noise = noises()
    draws, got = predicted(noise, keep_draws)
    y = torch.randn(B, 2, dtype=torch.float64) * 4
    scores = got.crps(y)
    for index, d, n, target, mean, std in elements(draws, noise, y, got.mean, got.total_std):

        def cdf(v, d=d, n=n, mean=mean, std=std):
            return mixture_cdf(v, d, n) if keep_draws else scipy_stats.norm.cdf(v, mean, std)

        below, _ = scipy_integrate.quad(lambda v: cdf(v) ** 2, -60, target, limit=300)
        above, _ = scipy_integrate.quad(lambda v: (1 - cdf(v)) ** 2, target, 60, limit=300)
        assert scores[index].item() == pytest.approx(below + above, rel=1e-5)


def test_crps_of_draws_alone_is_that_of_torchmetrics():
    regression = pytest.importorskip("torchmetrics.regression")
    metric = getattr(regression, "ContinuousRankedProbabilityScore", None)
    if metric is None:
        pytest.skip("this torchmetrics has no CRPS")
    draws, got = predicted()
    y = torch.randn(B, 2, dtype=torch.float64)
    ours = got.crps(y).mean()
    theirs = metric()
    theirs.update(draws.flatten(1).T.contiguous(), y.flatten())
    torch.testing.assert_close(ours, theirs.compute().to(ours.dtype), rtol=1e-5, atol=0)


def test_a_better_forecast_has_better_scores():
    """Of a normal target, the true deviation has the least CRPS and the greatest likelihood."""
    torch.manual_seed(0)
    y = torch.randn(20_000, 1, dtype=torch.float64) * 2
    draws = torch.zeros(1, 20_000, 1, dtype=torch.float64)
    scores = []
    for noise in (1.0, 1.6, 2.0, 2.5, 4.0):
        got = brnn.mc_predict(Replay(draws), torch.zeros(20_000), samples=1, noise=noise)
        scores.append((got.crps(y).mean().item(), -got.log_likelihood(y).mean().item()))
    assert min(range(5), key=lambda i: scores[i][0]) == 2
    assert min(range(5), key=lambda i: scores[i][1]) == 2


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.quantile(1.5), r"q: expected probabilities in \[0, 1\]"),
        (lambda p: p.quantile(torch.tensor([[0.1]])), r"q: expected probabilities"),
        (lambda p: p.quantile(math.nan), r"q: expected probabilities"),
        (lambda p: p.quantile([]), r"q: expected probabilities .*, got \[\]"),
        (lambda p: p.interval(), r"interval: expected either level or scale, got neither"),
        (lambda p: p.interval(0.9, scale=1.0), r"interval: .* got both"),
        (lambda p: p.interval(1.0), r"level: expected a probability in \(0, 1\), got 1\.0"),
        (lambda p: p.interval(scale=-1.0), r"scale: expected at least 0, got -1\.0"),
        (lambda p: p.interval(scale=math.nan), r"scale: expected at least 0, got nan"),
        (lambda p: p.interval(scale=torch.ones(5)), r"scale: .* broadcasts to \[4, 2\], got \[5\]"),
        (lambda p: p.interval(90), r"level: expected a probability in \(0, 1\), got 90"),
        (lambda p: p.crps(torch.zeros(B)), r"targets: expected shape \[4, 2\], got \[4\]"),
        (lambda p: p.log_likelihood(torch.zeros(2, B)), r"targets: expected shape \[4, 2\]"),
        (lambda p: p.log_likelihood(torch.zeros(B, 2)), r"noise: expected to be known"),
        (lambda p: p.with_noise(-1), r"noise: expected at least 0, got -1"),
        (lambda p: p.with_noise(torch.ones(3)), r"noise: .* broadcasts to \[4, 2\], got \[3\]"),
        (lambda p: p.with_noise(torch.ones(1, B, 2)), r"noise: .* broadcasts to \[4, 2\]"),
    ],
)
def test_bad_arguments(call, message):
    _, got = predicted()
    with pytest.raises(ValueError, match=message):
        call(got)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.quantile("0.5"), r"q: expected a number, got '0\.5'"),
        (lambda p: p.quantile(None), r"q: expected a number, got None"),
        (lambda p: p.quantile([0.1, None]), r"q: expected a number, got None"),
        (lambda p: p.quantile([[0.1]]), r"q: expected a number, got \[0\.1\]"),
        (lambda p: p.interval("0.9"), r"level: expected a probability .*, got '0\.9'"),
        (lambda p: p.interval(torch.tensor(0.9)), r"level: expected a probability .*, got tensor"),
        (lambda p: p.interval(scale="2"), r"scale: expected a number or a tensor, got '2'"),
        (lambda p: p.interval(scale=True), r"scale: expected a number or a tensor, got True"),
        (lambda p: p.crps(0.0), r"targets: expected a tensor, got float"),
        (lambda p: p.log_likelihood([0.0]), r"targets: expected a tensor, got list"),
        (lambda p: p.with_noise("1"), r"noise: expected a number or a tensor, got '1'"),
    ],
)
def test_wrong_types(call, message):
    _, got = predicted()
    with pytest.raises(TypeError, match=message):
        call(got)


def test_quantiles_take_numpy_and_tensors():
    _, got = predicted()
    expected = got.quantile([0.25, 0.75])
    for q in (np.array([0.25, 0.75]), (0.25, 0.75), torch.tensor([0.25, 0.75])):
        assert torch.equal(got.quantile(q), expected)
    assert torch.equal(got.quantile(np.float64(0.25)), expected[0])


@pytest.mark.parametrize("name", ["quantile", "interval", "crps", "with_noise"])
def test_classes_have_no_order(name):
    _, got = predicted(likelihood="categorical")
    with pytest.raises(ValueError, match=rf"{name}: expected a gaussian prediction"):
        getattr(got, name)(0.5 if name != "crps" else torch.zeros(B, 2))
    with pytest.raises(ValueError, match=r"targets: expected integers of shape \[4\]"):
        got.log_likelihood(torch.zeros(B, 2))


@pytest.mark.parametrize("likelihood", ["categorical", "heteroscedastic"])
def test_noise_belongs_to_gaussian(likelihood):
    with pytest.raises(ValueError, match=rf"noise: expected None for likelihood '{likelihood}'"):
        predicted(0.5, likelihood=likelihood)

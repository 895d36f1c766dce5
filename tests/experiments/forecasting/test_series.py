"""The series and the oracle, against the joint distribution written out."""

import numpy as np
import pytest
import torch

from bayesrnn_cuda.experiments.forecasting.series import (
    GIVEN,
    HORIZON,
    draw,
    load_series,
    oracle_forecast,
    oracle_interval,
)

STEPS = GIVEN + HORIZON


def joint_distribution(noise: str, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of z_0 ... z_19: z = L x + e with L_kj = 0.9^(k-j), x ~ N(1, 4)."""
    k = np.arange(STEPS)
    weights = np.tril(0.9 ** (k[:, None] - k[None, :]))
    deviations = 0.1 * level * (k if noise == "time" else np.ones(STEPS))
    return weights.sum(axis=1), 4 * weights @ weights.T + np.diag(deviations**2)


@pytest.mark.parametrize("noise", ["static", "time"])
@pytest.mark.parametrize("level", [1, 5])
def test_the_series_have_their_distribution(noise, level):
    count = 200_000
    series = torch.cat(draw(count, noise, level, [3]), dim=1).double()
    mean, covariance = joint_distribution(noise, level)
    error = 5 * np.sqrt(np.diag(covariance) / count)
    assert (abs(series.mean(dim=0).numpy() - mean) < error).all()
    np.testing.assert_allclose(np.cov(series.numpy().T), covariance, rtol=0.04, atol=0.15)


@pytest.mark.parametrize("noise", ["static", "time"])
@pytest.mark.parametrize("level", [0, 1, 5])
def test_the_oracle_is_the_conditional_distribution(noise, level):
    given = draw(7, noise, level, [1]).given
    mean, covariance = joint_distribution(noise, level)
    past, future = slice(GIVEN), slice(GIVEN, None)
    gain = covariance[future, past] @ np.linalg.pinv(covariance[past, past])
    expected = mean[future] + (given.double().numpy() - mean[past]) @ gain.T
    got, spread = oracle_forecast(given, noise, level)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        spread.numpy(), covariance[future, future] - gain @ covariance[past, future], atol=1e-8
    )


def test_the_oracle_covers_what_it_promises():
    series = draw(100_000, "time", 3, [5])
    lower, upper = oracle_interval(series.given, "time", 3, 0.9)
    inside = ((series.targets >= lower) & (series.targets <= upper)).all(dim=1)
    assert inside.double().mean().item() == pytest.approx(0.9, abs=0.005)


def test_more_series_begin_with_the_same_ones():
    few, many = load_series("static", 2, 10, 5, 1), load_series("static", 2, 30, 5, 1)
    assert torch.equal(few.known.given, many.known.given[:10])
    assert torch.equal(few.test.targets, many.test.targets)
    assert not torch.equal(few.known.given[:5], few.test.given)
    prints = {
        load_series(noise, level, 10, 5, seed).fingerprint()
        for noise in ("static", "time")
        for level in (1, 2)
        for seed in (1, 2)
    }
    assert len(prints) == 8

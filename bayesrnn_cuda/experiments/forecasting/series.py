"""The synthetic series of Stankeviciute, Alaa and van der Schaar, "Conformal time-series
forecasting" (NeurIPS 2021), and the forecast of whoever knows how they were made.

x_k ~ N(1, 2^2) drives y_k = 0.9 y_(k-1) + x_k from y_(-1) = 0; observed is z_k = y_k + e_k with e_k
~ N(0, s_k^2). z_0 ... z_14 are given, z_15 ... z_19 are to be forecast.
"""

import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GIVEN, HORIZON = 15, 5  # steps
NOISES = ("static", "time")
_DECAY, _MEAN, _DEVIATION = 0.9, 1.0, 2.0
_DRAWS = 1 << 20  # for the oracle's joint interval: its width is exact to 0.2 %


class Series(NamedTuple):
    """Some series: `given` [n, GIVEN] and `targets` [n, HORIZON], float32."""

    given: Tensor
    targets: Tensor

    def part(self, rows: slice) -> "Series":
        """Those in `rows`."""
        return Series(self.given[rows], self.targets[rows])


class Forecasts(NamedTuple):
    """What is trained on and what is tested on."""

    known: Series  # to train on, or to train and to calibrate
    test: Series

    def fingerprint(self) -> int:
        """Checksum: is a resumed run on the series that it began with?"""
        value = 0
        for part in (*self.known, *self.test):
            value = zlib.crc32(part.contiguous().numpy().tobytes(), value)
        return value


def noise_deviations(noise: str, level: int) -> np.ndarray:
    """s_k, [GIVEN + HORIZON]: 0.1 level where the noise is "static", 0.1 level k for "time"."""
    steps = np.arange(GIVEN + HORIZON)
    return 0.1 * level * (steps if noise == "time" else np.ones_like(steps))


def draw(count: int, noise: str, level: int, seed: list[int]) -> Series:
    """`count` series; of more, the first ones are the same."""
    normal = np.random.default_rng(seed).standard_normal((count, 2, GIVEN + HORIZON))
    drive = _MEAN + _DEVIATION * normal[:, 0]
    values, y = np.empty_like(drive), 0.0
    for k in range(GIVEN + HORIZON):
        y = _DECAY * y + drive[:, k]
        values[:, k] = y
    values += noise_deviations(noise, level) * normal[:, 1]
    z = torch.from_numpy(values).float()
    return Series(z[:, :GIVEN], z[:, GIVEN:])


def load_series(noise: str, level: int, count: int, test: int, seed: int) -> Forecasts:
    """`count` series to learn from and `test` other ones, the same for every method."""
    return Forecasts(
        draw(count, noise, level, [seed, level, 0]), draw(test, noise, level, [seed, level, 1])
    )


def oracle_forecast(given: Tensor, noise: str, level: int) -> tuple[Tensor, Tensor]:
    """The Kalman filter with the true parameters: mean [n, HORIZON] and covariance [HORIZON,
    HORIZON] of the targets, float64. No forecast has a smaller squared error.

    Args:
        given: [n, GIVEN].
        noise, level: as of `draw`.
    """
    s2 = noise_deviations(noise, level) ** 2
    z = given.double()
    mean, variance = torch.zeros(len(z), dtype=torch.float64), 0.0
    for k in range(GIVEN):
        mean, variance = _DECAY * mean + _MEAN, _DECAY**2 * variance + _DEVIATION**2
        gain = variance / (variance + s2[k])
        mean, variance = mean + gain * (z[:, k] - mean), (1 - gain) * variance
    means, covariance = [], torch.zeros(HORIZON, HORIZON, dtype=torch.float64)
    for i in range(HORIZON):
        mean, variance = _DECAY * mean + _MEAN, _DECAY**2 * variance + _DEVIATION**2
        means.append(mean)
        for j in range(i, HORIZON):
            covariance[i, j] = covariance[j, i] = _DECAY ** (j - i) * variance
        covariance[i, i] += s2[GIVEN + i]
    return torch.stack(means, dim=1), covariance


def oracle_interval(
    given: Tensor, noise: str, level: int, coverage: float
) -> tuple[Tensor, Tensor]:
    """Lower and upper ends [n, HORIZON] within which all targets of a series lie with probability
    `coverage`: mean -+ c times the deviation of each step, one c."""
    mean, covariance = oracle_forecast(given, noise, level)
    deviation = covariance.diagonal().sqrt()
    normal = np.random.default_rng(0).standard_normal((_DRAWS, HORIZON))
    errors = torch.from_numpy(normal) @ torch.linalg.cholesky(covariance).mT
    scores = (errors.abs() / deviation).amax(dim=1)
    reach = deviation * scores.kthvalue(round(coverage * _DRAWS)).values
    return mean - reach, mean + reach

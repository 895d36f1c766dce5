"""Intervals for a whole horizon by different rules, and what they cover."""

from typing import Any

import torch
from torch import Tensor

import bayesrnn_cuda as brnn

from .training.configuration import Range

COVERAGE = Range("a probability in [0.01, 0.99]", 0.01, 0.99)
# Of the held-out series the first fifth tells the noise of each step, the rest the scale.
_NOISE_SHARE = 5
FEWEST = 5  # held-out series
CONFIDENCE = 0.95  # of "max, sure"


def rules(
    held_out: brnn.MCPrediction,
    held_targets: Tensor,
    test: brnn.MCPrediction,
    coverage: float,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Rule -> lower and upper ends for the test series, [n, steps] each.

    "doubt": the deviation over masks alone, each step at `coverage`, as dp-rnn has it; "normal":
    with the noise of each step, each at the level of Bonferroni's rule; "published": cf-rnn's, by
    Bonferroni's rule the interpolated quantile of the errors, at most the largest; "bonferroni":
    the exact rank; "max": one exact rank of the largest score of the horizon; "max, sure": the rank
    that covers with CONFIDENCE over held-out series, not in expectation.

    Args:
        held_out: forecasts of series that trained nothing; without a total_std of its own its noise
            is fitted.
        held_targets: what came, [n, steps], n at least FEWEST.
        test: of new series.
        coverage: with which all steps of a series shall lie inside.
    """
    steps, count = held_targets.shape[1], len(held_targets) // _NOISE_SHARE
    each = 1 - (1 - coverage) / steps
    found = {}
    if bool(held_out.std.any()):
        found["doubt"] = doubt_alone(test, coverage)
    if not bool((held_out.total_std - held_out.std).any()):  # no scale of its own
        first = _rows(held_out, slice(count))
        noise = brnn.fit_noise(first, held_targets[:count], separate=1)
        # Few series may show none; a forecast without doubt would then have no scale at all.
        noise = noise.clamp_min(torch.finfo(noise.dtype).eps)
        held_out, test = held_out.with_noise(noise), test.with_noise(noise)
        found["normal"] = _normal(test.mean, test.total_std, each)
    scores = (held_targets - held_out.mean).abs() / held_out.total_std
    level = min(1.0, (len(scores) + 1) * each / len(scores))
    found["published"] = test.interval(scale=scores.quantile(level, dim=0))
    rest, targets = _rows(held_out, slice(count, None)), held_targets[count:]
    for name, settings in (
        ("bonferroni", {"level": each, "separate": 1}),
        ("max", {"level": coverage, "joint": 1}),
        ("max, sure", {"level": coverage, "joint": 1, "confidence": CONFIDENCE}),
    ):
        found[name] = test.interval(scale=brnn.conformal_scale(rest, targets, **settings))
    return found


def doubt_alone(prediction: brnn.MCPrediction, coverage: float) -> tuple[Tensor, Tensor]:
    """dp-rnn's interval: the deviation over masks, each step at `coverage`."""
    return _normal(prediction.mean, prediction.std, coverage)


def measured(interval: tuple[Tensor, Tensor], targets: Tensor) -> dict[str, Any]:
    """The shares of series with all steps inside and of single steps, and the mean width, None
    where it is infinite."""
    width = brnn.interval_width(interval).item()
    return {
        "joint": 100 * brnn.coverage(interval, targets, joint=1).item(),
        "independent": 100 * brnn.coverage(interval, targets).item(),
        "width": width if width < float("inf") else None,
    }


def certain(mean: Tensor, total_std: Tensor | None = None) -> brnn.MCPrediction:
    """A forecast without doubt, with the scale of its errors if the model says one."""
    zero = torch.zeros_like(mean)
    return brnn.MCPrediction(mean, zero, None, None, zero if total_std is None else total_std)


def _normal(mean: Tensor, deviation: Tensor, level: float) -> tuple[Tensor, Tensor]:
    reach = deviation * torch.special.ndtri(mean.new_tensor((1 + level) / 2))
    return mean - reach, mean + reach


def _rows(prediction: brnn.MCPrediction, rows: slice) -> brnn.MCPrediction:
    """The series in `rows`; a noise of one size for all of them broadcasts."""
    return certain(prediction.mean[rows], prediction.total_std[rows])._replace(
        std=prediction.std[rows]
    )

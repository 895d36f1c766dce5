"""Uncertainty held against data: observation noise, conformal scale, coverage.

The spread over masks is the model's doubt alone. What will be observed scatters around the true
function too, and an interval that leaves that noise out covers next to nothing.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_integer, check_level, check_number, check_probability, check_tensor
from .moments import at_least_float32
from .prediction import MCPrediction


def fit_noise(
    prediction: MCPrediction, targets: Tensor, *, separate: int | Sequence[int] = ()
) -> Tensor:
    """Standard deviation of the observation noise, from residuals of held-out data.

    noise^2 = mean of (target - mean)^2 - std^2: what the model's doubt does not explain, and 0
    where it explains all. For `mc_predict(noise=)` or `MCPrediction.with_noise`.

    Args:
        prediction: gaussian, of data that the model was not trained on.
        targets: in the shape of its mean.
        separate: dimensions that have a noise of their own (the steps of a horizon, the outputs);
            all others are averaged over.

    Returns:
        >= 0, in the unit of the outputs; a scalar, or of size 1 where averaged, so that it
        broadcasts to the mean.

    Raises:
        ValueError: classes or heteroscedastic outputs, another shape, no target, targets that are
            not finite, no such dimension.
        TypeError: an argument of another type.
    """
    _check_gaussian(prediction, targets)
    if prediction.heteroscedastic:
        raise ValueError("prediction: expected gaussian, got heteroscedastic")
    own = _dims("separate", separate, targets.dim())
    over = [d for d in range(targets.dim()) if d not in own]
    rest = (targets - prediction.mean).square() - prediction.std.square()
    if rest.numel() == 0:
        raise ValueError(f"targets: expected at least 1, got shape {list(targets.shape)}")
    if not bool(rest.isfinite().all()):
        raise ValueError("targets: expected finite ones, and such a prediction, got others")
    # without dimensions torch would average over all of them
    variance = at_least_float32(rest).mean(dim=over, keepdim=True) if over else rest
    variance = variance if own else variance.reshape(())
    return variance.clamp_min(0).sqrt()


def model_precision(
    *, length_scale: float, dropout: float, num_data: int, weight_decay: float
) -> float:
    """The paper's tau = p_keep l^2 / (2 N lambda): the precision of the observation noise that
    a prior and a weight decay imply (Gal and Ghahramani, 2016, "Dropout as a Bayesian
    approximation", eq. 7). The noise's standard deviation is tau ** -0.5.

    Args:
        length_scale: l of the prior, > 0, in the inverse unit of the inputs.
        dropout: p, the probability of dropping; 1 - p is kept.
        num_data: N, the number of training points, >= 1.
        weight_decay: lambda > 0, in mean of (y - f)^2 / 2 + lambda ||w||^2. An optimizer's
            weight_decay is 2 lambda there, and 4 lambda for torch's mse_loss, which has no 1/2.

    Returns:
        tau, in the inverse square of the unit of the targets.

    Raises:
        ValueError: a value outside of these ranges.
        TypeError: what is no number.
    """
    p = check_probability("dropout", dropout)
    values = {"length_scale": length_scale, "num_data": num_data, "weight_decay": weight_decay}
    for name, value in values.items():
        check_number(name, value)
        if not value > 0 or (name == "num_data" and value < 1):
            least = "at least 1" if name == "num_data" else "more than 0"
            raise ValueError(f"{name}: expected {least}, got {value!r}")
    return (1 - p) * length_scale**2 / (2 * num_data * weight_decay)


def conformal_scale(
    prediction: MCPrediction,
    targets: Tensor,
    level: float = 0.9,
    *,
    joint: int | Sequence[int] = (),
    separate: int | Sequence[int] = (),
    confidence: float | None = None,
) -> Tensor:
    """Split conformal prediction: the s for which mean -+ s * total_std covers new data.

    The score of a target is |target - mean| / total_std; s is the ceil((n + 1) level)-th smallest
    of n held-out scores, and infinite where that is more than n. If those data and new ones are
    exchangeable, the interval holds a new target with a probability of at least `level` and,
    without ties, at most level + 1 / (n + 1), whatever the model (Papadopoulos et al., 2002; Lei et
    al., 2018). Use: `prediction.interval(scale=s)`.

    Args:
        prediction: gaussian or heteroscedastic, of data that neither trained the model nor fitted
            its noise.
        targets: in the shape of its mean.
        level: in (0, 1).
        joint: dimensions that count as one target, all of whose parts must lie inside at once: the
            score is their largest (the steps of a horizon).
        separate: dimensions that have a scale of their own. For h steps that shall lie inside
            jointly by Bonferroni's rule: separate steps at level 1 - (1 - level) / h.
        confidence: in (0, 1), with which the level holds for the data at hand; None: on average.

    Returns:
        s >= 0 in a shape that broadcasts to the mean; a scalar if nothing is separate.

    Raises:
        ValueError: classes, another shape, a level or a confidence outside (0, 1), no such
            dimension or one that is both, no target, a total_std of 0 beside an error.
        TypeError: an argument of another type.
    """
    _check_gaussian(prediction, targets)
    level = check_level("level", level)
    if confidence is not None:
        confidence = check_level("confidence", confidence)
    apart = _dims("separate", separate, targets.dim())
    together = _dims("joint", joint, targets.dim())
    if apart & together:
        raise ValueError(f"joint: expected other dimensions than separate, got {joint!r}")
    assert prediction.total_std is not None
    error = (targets - prediction.mean).abs()
    scores = torch.where(error == 0, error, error / prediction.total_std)
    if not bool(scores.isfinite().all()):
        raise ValueError(
            "prediction: expected a total_std above 0 where there is an error (noise=, fit_noise), "
            "got 0, or targets that are not finite"
        )
    if together:
        scores = scores.amax(dim=sorted(together), keepdim=True)
    shape = [length if d in apart else 1 for d, length in enumerate(targets.shape)]
    rows = scores.movedim(sorted(apart), list(range(len(apart)))).flatten(len(apart))
    count = rows.shape[-1]
    if count == 0:
        raise ValueError(f"targets: expected at least 1, got shape {list(targets.shape)}")
    rank = _rank(count, level, confidence)
    if rank > count:
        scale = rows.new_full(rows.shape[:-1], math.inf)
    else:
        scale = rows.kthvalue(max(1, rank), dim=-1).values
    return scale.reshape(shape) if apart else scale


def _rank(count: int, level: float, confidence: float | None) -> int:
    """Which of `count` sorted scores is the scale, from 1; count + 1: none is large enough."""
    if confidence is None:
        # less a rounding: (9 + 1) * 0.9 is 9
        return math.ceil((count + 1) * level - 1e-9)
    # The r-th score covers more than the level where fewer than r of the scores lie within it:
    # a binomial number of them does.
    below = torch.arange(count, dtype=torch.float64)
    n = torch.tensor(float(count), dtype=torch.float64)
    log_choose = (n + 1).lgamma() - (below + 1).lgamma() - (n - below + 1).lgamma()
    log_p = log_choose + below * math.log(level) + (n - below) * math.log1p(-level)
    return int((log_p.exp().cumsum(0) < confidence).sum()) + 1


def coverage(
    interval: tuple[Tensor, Tensor], targets: Tensor, *, joint: int | Sequence[int] = ()
) -> Tensor:
    """The share of targets that lie within [lower, upper].

    Args:
        interval: (lower, upper), each in the shape of the targets.
        targets: what came.
        joint: dimensions that count as one target, all of whose parts must lie inside.

    Returns:
        A scalar in [0, 1], float64.

    Raises:
        ValueError: other shapes, no such dimension, no target, a NaN among them.
        TypeError: an argument of another type.
    """
    lower, upper = _ends(interval)
    check_tensor("targets", targets)
    for name, value in (("lower", lower), ("upper", upper)):
        if value.shape != targets.shape:
            raise ValueError(
                f"{name}: expected shape {list(targets.shape)}, got {list(value.shape)}"
            )
    if targets.numel() == 0:
        raise ValueError(f"targets: expected at least 1, got shape {list(targets.shape)}")
    if bool(targets.isnan().any()):
        raise ValueError("targets: expected numbers, got NaN")
    inside = (targets >= lower) & (targets <= upper)
    for dim in sorted(_dims("joint", joint, targets.dim()), reverse=True):
        inside = inside.all(dim=dim)
    return inside.double().mean()


def interval_width(interval: tuple[Tensor, Tensor]) -> Tensor:
    """Mean of upper - lower over all of `interval`, in the unit of the outputs: a scalar."""
    lower, upper = _ends(interval)
    return at_least_float32(upper - lower).mean()


def _ends(interval: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(interval, tuple | list):
        raise TypeError(f"interval: expected (lower, upper), got {type(interval).__name__}")
    if len(interval) != 2:
        raise ValueError(f"interval: expected (lower, upper), got {len(interval)} values")
    lower, upper = interval
    check_tensor("lower", lower)
    check_tensor("upper", upper)
    return lower, upper


def _check_gaussian(prediction: MCPrediction, targets: Tensor) -> None:
    if not isinstance(prediction, MCPrediction):
        raise TypeError(f"prediction: expected MCPrediction, got {type(prediction).__name__}")
    if prediction.total_std is None:
        raise ValueError("prediction: expected gaussian or heteroscedastic, got categorical")
    check_tensor("targets", targets)
    if targets.shape != prediction.mean.shape:
        raise ValueError(
            f"targets: expected shape {list(prediction.mean.shape)}, got {list(targets.shape)}"
        )


def _dims(name: str, dims: int | Sequence[int], rank: int) -> set[int]:
    """The dimensions, counted from the front."""
    given = dims if isinstance(dims, tuple | list | set | range) else (dims,)
    found = set()
    for dim in given:
        dim = check_integer(name, dim)
        if not -rank <= dim < rank:
            least = f"dimensions from {-rank} to {rank - 1}" if rank else "none, of one target"
            raise ValueError(f"{name}: expected {least}, got {dim}")
        found.add(dim % rank)
    return found

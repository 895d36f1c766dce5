"""What MC dropout predicts: moments, quantiles, intervals, and scores against what came."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import (
    broadcasting,
    check_level,
    check_not_negative,
    check_numbers,
    check_tensor,
    shown,
)

_BISECTIONS = 60  # of a quantile: below the resolution of float64


class MCPrediction(NamedTuple):
    """Averages over S sampled masks, in the shape of one output, in float32 or float64.

    The first four are of the model alone; `total_std` and the methods count the noise in too.

    Attributes:
        mean: of the outputs, or of the class probabilities.
        std: standard deviation over the samples, with 1/S under the root: the model's doubt.
        entropy: of the mean probabilities, in nats, in the shape of the mean less its last
            dimension; None but for categorical.
        mutual_information: entropy minus the samples' mean entropy; likewise.
        total_std: sqrt(std^2 + noise^2), what will be observed; None for categorical.
        noise: standard deviation of the observations' noise; None where none is known.
        draws: the S outputs or probabilities, [S, ...], with `keep_draws=True`.
        draw_noise: the noise of each draw, [S, ...], with `keep_draws=True` for heteroscedastic.
    """

    mean: Tensor
    std: Tensor
    entropy: Tensor | None
    mutual_information: Tensor | None
    total_std: Tensor | None = None
    noise: Tensor | None = None
    draws: Tensor | None = None
    draw_noise: Tensor | None = None

    @property
    def heteroscedastic(self) -> bool:
        """Whether the noise is an output of the model, and not one for all data."""
        return self.draw_noise is not None

    def with_noise(self, noise: float | Tensor) -> "MCPrediction":
        """The same with observation noise of another standard deviation (`fit_noise`).

        Args:
            noise: >= 0, in the unit of the outputs; a number, or a tensor that broadcasts to one.

        Raises:
            ValueError: classes, a heteroscedastic prediction, a negative noise.
            TypeError: a noise that is no number and no tensor.
        """
        self._refuse_classes("with_noise")
        if self.heteroscedastic:
            raise ValueError("noise: expected a gaussian prediction, got a heteroscedastic one")
        check_not_negative("noise", noise)
        noise = broadcasting("noise", noise, self.mean)
        return self._replace(noise=noise, total_std=torch.hypot(self.std, noise))

    def quantile(self, q: float | Sequence[float] | Tensor) -> Tensor:
        """Quantiles of what will be observed: of the outputs, with the noise, if any is known.

        With draws: of the mixture that they make, exactly (without noise by linear interpolation,
        as torch.quantile). Without: of the normal distribution with `mean` and `total_std`.

        Args:
            q: probabilities in [0, 1], one or a list of K >= 1.

        Returns:
            In the shape of the mean; for a list [K, ...].

        Raises:
            ValueError: classes, which have no order, a q outside [0, 1], an empty list.
            TypeError: a q that is no number.
        """
        self._refuse_classes("quantile")
        like = self.mean
        levels = torch.as_tensor(check_numbers("q", q), dtype=torch.float64, device=like.device)
        within = bool(((levels >= 0) & (levels <= 1)).all())
        if levels.dim() > 1 or levels.numel() == 0 or not within:
            raise ValueError(f"q: expected probabilities in [0, 1], one or a list, got {shown(q)}")
        values = torch.stack([self._quantile(float(level)) for level in levels.reshape(-1)])
        return values[0] if levels.dim() == 0 else values

    def _quantile(self, q: float) -> Tensor:
        spread = self._spread()
        if self.draws is None:
            return self.mean + spread * torch.special.ndtri(self.mean.new_tensor(q))
        if self.noise is None:
            ordered = self.draws.sort(dim=0).values
            place = q * (len(ordered) - 1)
            below = min(int(place), max(0, len(ordered) - 2))
            above = min(below + 1, len(ordered) - 1)
            return torch.lerp(ordered[below], ordered[above], place - below)
        if q in (0.0, 1.0):
            return self.mean.new_full(self.mean.shape, math.inf if q else -math.inf)
        each = torch.special.ndtri(self.draws.new_tensor(q)) * self._noise_of_draws()
        low, high = (self.draws + each).aminmax(dim=0)  # between those of the single draws
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            under = self._cdf(middle) < q
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2

    def _cdf(self, y: Tensor) -> Tensor:
        """P(observation <= y) of the mixture, one draw at a time."""
        noise = self._noise_of_draws()
        total = torch.zeros_like(self.mean)
        for draw, deviation in zip(self.draws, noise, strict=True):  # type: ignore[arg-type]
            total += torch.where(
                deviation > 0, torch.special.ndtr((y - draw) / deviation), (y >= draw).to(y.dtype)
            )
        return total / len(noise)

    def interval(
        self, level: float | None = None, *, scale: float | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(lower, upper) around what will be observed, each in the shape of the mean.

        Args:
            level: probability in (0, 1) that it holds, half of the rest on either side, by
                `quantile`.
            scale: instead of a level, mean -+ scale * total_std, with `conformal_scale`'s: >= 0, a
                number or a tensor that broadcasts to the mean.

        Raises:
            ValueError: both or neither, a level outside (0, 1), a negative scale, classes.
            TypeError: what is no number.
        """
        self._refuse_classes("interval")
        if (level is None) == (scale is None):
            raise ValueError(
                "interval: expected either level or scale, got "
                + ("neither" if level is None else "both")
            )
        if level is None:
            assert scale is not None
            check_not_negative("scale", scale)
            reach = broadcasting("scale", scale, self.mean) * self._spread()
            return self.mean - reach, self.mean + reach
        rest = (1 - check_level("level", level)) / 2
        lower, upper = self.quantile([rest, 1 - rest])
        return lower, upper

    def log_likelihood(self, targets: Tensor) -> Tensor:
        """Log of the probability (density) of what came, in nats, each target alone.

        Gaussian: log of the mean of the draws' normal densities (paper, eq. 5), or without draws of
        the normal density with `mean` and `total_std`. Categorical: log of the mean probability.

        Args:
            targets: in the shape of the mean; classes as integers, less its last dimension.

        Raises:
            ValueError: another shape, no such class; no noise known where there are draws.
            TypeError: targets that are no tensor.
        """
        if self.total_std is None:
            self._check_classes(targets)
            return self.mean.gather(-1, targets.unsqueeze(-1).long()).squeeze(-1).log()
        self._check_targets(targets)
        if self.draws is None:
            return _normal_log_density(targets, self.mean, self.total_std)
        if self.noise is None:
            raise ValueError(
                "noise: expected to be known, since draws alone have no density, got None"
            )
        each = _normal_log_density(targets, self.draws, self._noise_of_draws())
        return each.logsumexp(dim=0) - math.log(len(each))

    def crps(self, targets: Tensor) -> Tensor:
        """Continuous ranked probability score of each target, in its unit; smaller is better.

        The integral over y of (F(y) - [y >= target])^2. Exact for the mixture of draws, with or
        without noise (Grimit et al., 2006), and for the normal distribution with `mean` and
        `total_std` without draws (Gneiting et al., 2005).

        Args:
            targets: in the shape of the mean.

        Raises:
            ValueError: classes, or another shape.
            TypeError: targets that are no tensor.
        """
        self._refuse_classes("crps")
        self._check_targets(targets)
        if self.draws is None:
            spread = self._spread()
            return _mean_distance(targets - self.mean, spread) - spread / math.sqrt(math.pi)
        noise = self._noise_of_draws()
        near = torch.zeros_like(self.mean)
        far = torch.zeros_like(self.mean)
        for draw, deviation in zip(self.draws, noise, strict=True):
            near += _mean_distance(targets - draw, deviation)
            far += _mean_distance(self.draws - draw, torch.hypot(noise, deviation)).mean(dim=0)
        return near / len(noise) - far / (2 * len(noise))

    def _noise_of_draws(self) -> Tensor:
        """[S, ...], 0 where none is known."""
        if self.draw_noise is not None:
            return self.draw_noise
        assert self.draws is not None
        noise = self.mean.new_zeros(()) if self.noise is None else self.noise
        return noise.expand(self.draws.shape)

    def _spread(self) -> Tensor:
        assert self.total_std is not None
        return self.total_std

    def _refuse_classes(self, name: str) -> None:
        if self.total_std is None:
            raise ValueError(f"{name}: expected a gaussian prediction, got class probabilities")

    def _check_classes(self, targets: Tensor) -> None:
        check_tensor("targets", targets)
        *shape, classes = self.mean.shape
        integers = not (targets.is_floating_point() or targets.is_complex())
        if list(targets.shape) != shape or not integers or targets.dtype == torch.bool:
            raise ValueError(
                f"targets: expected integers of shape {shape}, "
                f"got {targets.dtype} {list(targets.shape)}"
            )
        outside = targets[(targets < 0) | (targets >= classes)]
        if outside.numel():
            raise ValueError(f"targets: expected classes below {classes}, got {int(outside[0])}")

    def _check_targets(self, targets: Tensor) -> None:
        check_tensor("targets", targets)
        if targets.shape != self.mean.shape:
            raise ValueError(
                f"targets: expected shape {list(self.mean.shape)}, got {list(targets.shape)}"
            )


class HeteroscedasticPrediction(MCPrediction):
    """One whose noise is an output of the model, also where no draws are kept."""

    __slots__ = ()

    @property
    def heteroscedastic(self) -> bool:
        """True."""
        return True


def _normal_log_density(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -((y - mean) / std).square() / 2 - std.log() - math.log(2 * math.pi) / 2


def _mean_distance(d: Tensor, std: Tensor) -> Tensor:
    """E|d + std e| for a standard normal e."""
    z = d / std.clamp_min(torch.finfo(std.dtype).tiny)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    return torch.where(std > 0, d * (2 * torch.special.ndtr(z) - 1) + 2 * std * density, d.abs())

"""Forecasting as a task of the Trainer."""

from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from ...cli import UserError
from ..intervals import certain, doubt_alone, measured, rules
from ..training.distributed import ALONE, Workers
from ..training.evaluating import evaluating
from ..training.task import Check, Task
from .model import Forecaster, ForecastingConfig, restore_model
from .series import HORIZON, Forecasts, load_series, oracle_forecast, oracle_interval

_EPOCH_TEST = 1000  # series of the test after an epoch
_SERIES_PER_PASS = 1000  # of MC dropout: between two looks for a signal
# The rule whose figures stand for a method.
RULE = {"variational": "max, sure", "naive": "max, sure", "dp-rnn": "doubt", "mq-rnn": "quantiles"}


class ForecastingTask(Task):
    """Forecasts of synthetic series. Errors and widths are in the unit of the series.

    Args:
        config: everything that determines the run.
        data: from `load_series`.
        workers: the processes that train together.
        model: None makes a new one.

    Raises:
        UserError: the device or the engine is not there, or the batch or the method cannot be
            shared.
    """

    config_class = ForecastingConfig
    restore_model = staticmethod(restore_model)
    unit = "series"
    metric = "test_rmse"
    tests_best = False  # nothing is stopped early unless --epochs says so
    axis = "error (RMSE)"
    none_if_infinite = ("width",)
    curves: ClassVar[dict[str, str]] = {"test_rmse": "test", "train_rmse": "training"}

    def __init__(
        self,
        config: ForecastingConfig,
        data: Forecasts,
        workers: Workers = ALONE,
        *,
        model: Forecaster | None = None,
    ) -> None:
        self.config, self.data, self.workers = config, data, workers
        workers.check_divides(config.batch_size)
        if config.method == "adaptive" and workers.size > 1:  # one of its two models rests
            raise UserError(
                f"argument --method: expected one process for adaptive, got {workers.size}"
            )
        device = workers.device(config)
        size = config.series // 2 if config.calibrates() else config.series
        train = data.known.part(slice(size))
        self.held_out = data.known.part(slice(size, None))
        self.model = (model or Forecaster(config, train)).to(device)
        self.given, self.targets = (part.to(device) for part in train)
        self.items = min(config.batch_size, size)
        self.updates = config.drawn_batches or config.passes * -(-size // config.batch_size)
        self.scaling = False  # whether adaptive learns its scale
        self.check_engine(lambda: self.model(_steps(self.given[:1])))

    @classmethod
    def load_data(cls, config: ForecastingConfig) -> Forecasts:
        settings = (config.noise, config.level, config.series, config.test_series)
        return load_series(*settings, config.seed)

    def describe(self) -> str:
        config = self.config
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"data: {config.series:,} series with {config.noise} noise of level {config.level}, "
            f"{len(self.held_out.given):,} of them held out, {config.test_series:,} to test on\n"
            f"model: {config.method}, {config.hidden} units, {size:,} parameters, {self.updates} "
            f"updates an epoch on {self.device}"
        )

    def content(self) -> dict[str, Any]:
        return {"config": asdict(self.config), "model": self.model.state_dict()}

    def start_epoch(self, epoch: int) -> None:
        # From seed and epoch alone: a resumed epoch has the order that it began with.
        draw = np.random.default_rng([self.config.seed, epoch])
        size, batch = len(self.given), self.config.batch_size
        if self.config.drawn_batches is None:
            passes = (draw.permutation(size) for _ in range(self.config.passes))
            orders = [order[i : i + batch] for order in passes for i in range(0, size, batch)]
        else:
            orders = list(draw.integers(size, size=(self.updates, batch)))
        self.batches = [torch.from_numpy(order).to(self.given.device) for order in orders]
        self.scaling = self.config.method == "adaptive" and epoch > self.config.epochs // 2

    def loss(self, model: nn.Module, update: int) -> Tensor:
        batch = self.batches[update]
        share = batch[self.workers.share(len(batch))]
        given, targets = _steps(self.given[share]), self.targets[share]
        if self.scaling:
            with torch.no_grad():
                targets = (targets - self.model(given)).abs().log()
            errors = self.model.scale(given) - targets
        else:
            errors = model(given) - (targets.repeat(1, 2) if self._quantiles() else targets)
        if self._quantiles():
            levels = errors.new_tensor(self.config.quantiles()).repeat_interleave(targets.shape[1])
            losses = torch.maximum((levels - 1) * -errors, levels * -errors)
        else:
            losses = errors.square()
        # Averaged over processes this is the mean of the batch, however unequal their shares are.
        return losses.sum() * (self.workers.size / (len(batch) * losses.shape[1]))

    def _quantiles(self) -> bool:
        return self.config.method == "mq-rnn"

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.config.lr, fused=True)

    def learning_rate(self, epoch: int) -> float:
        return self.config.lr

    def training_record(self, loss: float) -> dict[str, float]:
        if self._quantiles() or self.scaling:
            return {}  # no error of forecasts
        return {"train_rmse": loss**0.5}

    def evaluate(self, check: Check) -> dict[str, float]:
        test = self.data.test.part(slice(_EPOCH_TEST))
        prediction = self._predict(test.given, self.config.mc_samples_epoch, check)
        return {"test_rmse": _rmse(prediction.mean - test.targets)}

    def test(self, check: Check) -> dict[str, Any]:
        config, test = self.config, self.data.test
        samples = config.mc_samples if config.samples_masks() else 0
        prediction = self._predict(test.given, samples, check)
        if self._quantiles():
            lower, upper = self._outputs(test.given).chunk(2, dim=1)
            intervals = {"quantiles": (torch.minimum(lower, upper), torch.maximum(lower, upper))}
        elif config.calibrates():
            held_out = self._predict(self.held_out.given, samples, check)
            intervals = rules(held_out, self.held_out.targets, prediction, config.coverage)
        else:
            intervals = {"doubt": doubt_alone(prediction, config.coverage)}
        found = {name: measured(pair, test.targets) for name, pair in intervals.items()}
        known = config.noise, config.level
        best = oracle_forecast(test.given, *known)[0]
        oracle = measured(oracle_interval(test.given, *known, config.coverage), test.targets)
        chosen = found[RULE.get(config.method, "published")]
        return {
            "test_rmse": _rmse(prediction.mean - test.targets),
            "oracle_rmse": _rmse(best - test.targets),
            "mc_samples": samples,
            "joint": chosen["joint"],
            "width": chosen["width"],
            "oracle_width": oracle["width"],
            "intervals": {"oracle": oracle, **found},
        }

    def _predict(self, given: Tensor, samples: int, check: Check) -> brnn.MCPrediction:
        """Forecasts of series `given` [n, GIVEN], float64 on the CPU."""
        if not samples or not self.config.samples_masks():
            mean = self._outputs(given)
            if self._quantiles():
                mean = (mean[:, :HORIZON] + mean[:, HORIZON:]) / 2
            return certain(mean, self._scale(given) if self.model.scale is not None else None)
        parts = []
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            for part in given.split(_SERIES_PER_PASS):
                prediction = brnn.mc_predict(
                    self.model, _steps(part.to(self.device)), samples=samples, batch_dim=1
                )
                parts.append([prediction.mean.double().cpu(), prediction.std.double().cpu()])
                check()
        mean, std = (torch.cat(column) for column in zip(*parts, strict=True))
        return certain(mean, std)._replace(std=std)

    def _outputs(self, given: Tensor) -> Tensor:
        """The model's, without masks: float64 on the CPU."""
        with evaluating(self.model):
            return self.model(_steps(given.to(self.device))).double().cpu()

    def _scale(self, given: Tensor) -> Tensor:
        """adaptive's expected absolute error; the 1 is the published one's."""
        with evaluating(self.model):
            return self.model.scale(_steps(given.to(self.device))).double().cpu().exp() + 1


def _steps(given: Tensor) -> Tensor:
    """[n, T] -> [T, n, 1]."""
    return given.t().unsqueeze(2)


def _rmse(errors: Tensor) -> float:
    return errors.double().square().mean().sqrt().item()

"""Sentiment regression as a task of the Trainer."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..training.distributed import ALONE, Workers
from ..training.task import Check, Task
from .evaluation import (
    Prediction,
    calibration,
    mc_predict,
    predict,
    rank_correlation,
    root_mean_square,
)
from .model import SentimentConfig, SentimentModel, model_content, restore_model
from .reviews import Reviews, load_reviews


class SentimentTask(Task):
    """The sentiment regression. Ratings are standardized by mean and standard deviation of the
    training pieces; errors are reported in the ratings' own unit, [0, 1].

    Args:
        config: everything that determines the run.
        data: from `load_reviews`.
        workers: the processes that train together.
        model: None makes a new one.

    Raises:
        UserError: the device or the engine is not there, or the batch cannot be shared.
    """

    config_class = SentimentConfig
    restore_model = staticmethod(restore_model)
    unit = "pieces"
    metric = "test_rmse"
    tests_best = False  # the paper's curves end with the last epoch; there is no validation set
    axis = "error (RMSE of the rating, 0 to 1)"
    curves: ClassVar[dict[str, str]] = {
        "test_rmse": "test",
        "test_rmse_mc": "test, MC dropout",
        "train_rmse": "training, with its dropout",
    }

    def __init__(
        self,
        config: SentimentConfig,
        data: Reviews,
        workers: Workers = ALONE,
        *,
        model: SentimentModel | None = None,
    ) -> None:
        self.config, self.data, self.workers = config, data, workers
        workers.check_divides(config.batch_size)
        device = workers.device(config)
        self.model = (model or SentimentModel(config)).to(device)
        self.mean, self.standard_deviation = data.mean, data.standard_deviation
        self.tokens = data.train.tokens.to(device)  # int64 [pieces, T]
        targets = (data.train.ratings - self.mean) / self.standard_deviation
        self.targets = targets.float().to(device)  # [pieces]
        self.items = min(config.batch_size, len(data.train))
        self.updates = -(-len(data.train) // config.batch_size)
        self.check_engine(lambda: self.model(self.tokens[:1]))

    @classmethod
    def load_data(cls, config: SentimentConfig) -> Reviews:
        return load_reviews(
            config.data,
            split=config.split,
            seq_len=config.seq_len,
            vocabulary=config.vocabulary,
            pieces=config.pieces,
        )

    def content(self) -> dict[str, Any]:
        return model_content(
            self.model, self.data.words, self.mean, self.standard_deviation, self.config
        )

    def start_epoch(self, epoch: int) -> None:
        # From seed and epoch alone: a resumed epoch has the order that it began with.
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.tokens))
        self.order = torch.from_numpy(order).to(self.tokens.device)

    def loss(self, model: nn.Module, update: int) -> Tensor:
        start = update * self.config.batch_size
        batch = self.order[start : start + self.config.batch_size]
        share = batch[self.workers.share(len(batch))]
        errors = model(self.tokens[share]).float() - self.targets[share]
        # Averaged over processes this is the mean of the batch, however unequal their shares are.
        return errors.square().sum() * (self.workers.size / len(batch))

    def optimizer(self) -> torch.optim.Optimizer:
        # Adam adds weight_decay * w to the gradient, the penalty's derivative is 2 * X * w.
        return torch.optim.Adam(
            self.model.parameters(),
            lr=self.config.lr,
            weight_decay=2 * self.config.weight_decay,
            fused=True,
        )

    def learning_rate(self, epoch: int) -> float:
        return self.config.lr

    def training_record(self, loss: float) -> dict[str, float]:
        return {"train_rmse": self.standard_deviation * loss**0.5}

    def evaluate(self, check: Check) -> dict[str, float]:
        samples = self.config.mc_samples_epoch if self.config.samples_masks() else 0
        approximation, prediction = self._predictions(samples, lambda _: check())
        figures = {"test_rmse": root_mean_square(self._errors(approximation))}
        if prediction is not None:
            figures["test_rmse_mc"] = root_mean_square(self._errors(prediction.mean))
        return figures

    def test(self, check: Check) -> dict[str, Any]:
        samples = self.config.mc_samples if self.config.samples_masks() else 0
        with self.test_progress((1 + samples) * len(self.data.test), check) as advance:
            approximation, prediction = self._predictions(samples, advance)
        figures = {
            "baseline_rmse": root_mean_square(self.data.test.ratings - self.mean),
            "test_rmse": root_mean_square(self._errors(approximation)),
            "test_rmse_mc": None,
            "mc_samples": samples,
        }
        if prediction is not None:
            errors = self._errors(prediction.mean)
            deviations = self.standard_deviation * prediction.standard_deviation
            figures |= {
                "test_rmse_mc": root_mean_square(errors),
                "mean_standard_deviation": deviations.mean().item(),
                "error_rank_correlation": rank_correlation(errors.abs(), deviations),
                "calibration": calibration(errors, deviations),
            }
        return figures

    def _predictions(
        self, samples: int, on_pieces: Callable[[int], None]
    ) -> tuple[Tensor, Prediction | None]:
        """Of the test pieces: by the dropout approximation, and by MC dropout with samples."""
        tokens = self.data.test.tokens
        approximation = predict(self.model, tokens, on_pieces=on_pieces)
        if not samples:
            return approximation, None
        settings = {"samples": samples, "seed": self.config.seed, "on_pieces": on_pieces}
        return approximation, mc_predict(self.model, tokens, **settings)

    def _errors(self, standardized: Tensor) -> Tensor:
        """Predicted minus true ratings of the test pieces, [pieces]."""
        return self.mean + self.standard_deviation * standardized - self.data.test.ratings

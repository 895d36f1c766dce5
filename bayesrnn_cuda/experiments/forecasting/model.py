"""The forecasters: configuration and model of every method that is compared."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from ..intervals import COVERAGE, FEWEST
from ..training.checkpoint import expecting, read_config
from ..training.configuration import (
    COUNT,
    NATURAL,
    POSITIVE,
    PROBABILITY,
    TRAINING,
    Range,
    RunConfig,
    options,
)
from .series import HORIZON, NOISES, Series

_data, _model = options("data"), options("model")
_training, _evaluation = options(TRAINING), options("evaluation")
_SERIES = Range(f"a whole number from {2 * FEWEST} to 2147483647", 2 * FEWEST, 2**31 - 1)
_LEVELS = Range("a whole number from 0 to 100", 0, 100)

METHODS = ("variational", "naive", "cf-rnn", "adaptive", "mq-rnn", "dp-rnn")


@dataclass(frozen=True)
class ForecastingConfig(RunConfig):
    """Everything that determines a run. The defaults are those of the published comparison."""

    experiment: ClassVar = "forecasting"

    noise: str = _data(
        "static",
        "static: of one deviation, 0.1 times the level; time: 0.1 times the level times the step",
        choices=NOISES,
    )
    level: int = _data(1, "of the noise", _LEVELS)
    series: int = _data(2000, "known ones, of which methods that calibrate train on half", _SERIES)
    test_series: int = _data(5000, "to test on", COUNT)
    method: str = _model(
        "variational",
        "variational: held masks on input, recurrence and output; naive: dropout of the last state "
        "alone; cf-rnn, adaptive, mq-rnn and dp-rnn: as published",
        choices=METHODS,
    )
    hidden: int = _model(20, "units of the LSTM", COUNT)
    dropout: float = _model(
        0.25, "probability of dropping; variational, naive and dp-rnn", PROBABILITY
    )
    epochs: int = _training(
        20,
        "each of --passes passes; adaptive learns its scale in the second half of them",
        COUNT,
        resumable=True,
    )
    passes: int = _training(50, "over the training series, of one epoch", COUNT)
    drawn_batches: int | None = _training(
        None, "N batches drawn with replacement make an epoch instead", COUNT
    )
    batch_size: int = _training(100, "series of an update", COUNT)
    lr: float = _training(0.01, "learning rate of Adam", POSITIVE)
    mc_samples: int = _evaluation(100, "mask sets of the test", COUNT, resumable=True)
    mc_samples_epoch: int = _evaluation(10, "mask sets after each epoch, 0: none", NATURAL)
    coverage: float = _evaluation(
        0.9, "with which all targets of a series shall lie inside", COVERAGE
    )

    def calibrates(self) -> bool:
        """Whether half of the known series are held out."""
        return self.method not in ("mq-rnn", "dp-rnn")

    def quantiles(self) -> tuple[float, float]:
        """Those of mq-rnn: each step at the coverage, as published."""
        return (1 - self.coverage) / 2, (1 + self.coverage) / 2

    def samples_masks(self) -> bool:
        """Whether MC dropout makes its forecasts."""
        return self.method in ("variational", "naive", "dp-rnn") and self.dropout > 0


class Forecaster(nn.Module):
    """The given steps [GIVEN, B, 1] in, the targets of all steps of the horizon out, [B, HORIZON]:
    an LSTM and a linear output of its last state.

    mq-rnn gives a lower and an upper quantile, [B, 2 * HORIZON]. `scale` of adaptive gives the log
    of the absolute error. variational and naive are standardized inside by `known`.

    Args:
        config: method and sizes.
        known: the training series; None leaves it to a state_dict.
    """

    def __init__(self, config: ForecastingConfig, known: Series | None = None) -> None:
        super().__init__()
        variational = config.method == "variational"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if variational:
                self.recurrent = brnn.BayesianLSTM(
                    1,
                    config.hidden,
                    input_dropout=config.dropout,
                    recurrent_dropout=config.dropout,
                    engine=config.engine,
                )
            else:
                self.recurrent = nn.LSTM(1, config.hidden)
            # One state a sequence: a new mask each time is a mask per sequence.
            self.output_dropout = nn.Dropout(config.dropout if config.samples_masks() else 0.0)
            self.linear = nn.Linear(config.hidden, HORIZON * (1 + (config.method == "mq-rnn")))
            self.scale = None
            if config.method == "adaptive":
                self.scale = Forecaster(_plain(config))
        self.register_buffer("moments", torch.tensor([0.0, 1.0, 0.0, 1.0]))
        if known is not None and config.method in ("variational", "naive"):
            self.moments.copy_(
                torch.stack([f(part) for part in known for f in (torch.mean, torch.std)])
            )

    def forward(self, given: Tensor) -> Tensor:
        """Forecasts in the series' own unit."""
        mean, deviation, target_mean, target_deviation = self.moments
        states, _ = self.recurrent((given - mean) / deviation)
        output = self.linear(self.output_dropout(states[-1]))
        return target_mean + target_deviation * output


def _plain(config: ForecastingConfig) -> ForecastingConfig:
    return ForecastingConfig(method="cf-rnn", hidden=config.hidden, seed=config.seed + 1)


def restore_model(content: dict[str, Any]) -> tuple[Forecaster, ForecastingConfig]:
    """Model (on the CPU) and configuration from the content of a checkpoint.

    Raises:
        CheckpointError: the content is incomplete or does not fit together.
    """
    with expecting("a complete checkpoint of a forecaster"):
        config = read_config(content, ForecastingConfig)
        model = Forecaster(config)
        model.load_state_dict(content["model"])
    return model, config

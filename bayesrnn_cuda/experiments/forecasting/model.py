"""The forecasters: configuration and model of every method that is compared."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from ..training.checkpoint import CheckpointError, read_config
from ..training.configuration import (
    COUNT,
    NATURAL,
    POSITIVE,
    PROBABILITY,
    TRAINING,
    Range,
    RunConfig,
    check_options,
    option,
)
from .series import HORIZON, NOISES, Series

_DATA, _MODEL, _EVALUATION = "data", "model", "evaluation"
_SERIES = Range("a whole number from 4 to 2147483647", 4, 2**31 - 1)
_LEVELS = Range("a whole number from 0 to 100", 0, 100)

METHODS = ("variational", "naive", "cf-rnn", "adaptive", "mq-rnn", "dp-rnn")
QUANTILES = (0.05, 0.95)  # of mq-rnn


@dataclass(frozen=True)
class ForecastingConfig(RunConfig):
    """Everything that determines a run. The defaults are those of the published comparison."""

    experiment: ClassVar = "forecasting"

    noise: str = option(
        "static",
        "static: of one deviation, 0.1 times the level; time: 0.1 times the level times the step",
        group=_DATA,
        choices=NOISES,
    )
    level: int = option(1, "of the noise", group=_DATA, within=_LEVELS)
    series: int = option(
        2000, "known ones, of which methods that calibrate train on half", group=_DATA,
        within=_SERIES,
    )  # fmt: skip
    test_series: int = option(5000, "to test on", group=_DATA, within=COUNT)

    method: str = option(
        "variational",
        "variational: held masks on input, recurrence and output; naive: dropout of the last state "
        "alone; cf-rnn, adaptive, mq-rnn and dp-rnn: as published",
        group=_MODEL,
        choices=METHODS,
    )
    hidden: int = option(20, "units of the LSTM", group=_MODEL, within=COUNT)
    dropout: float = option(
        0.25, "probability of dropping; variational, naive and dp-rnn", group=_MODEL,
        within=PROBABILITY,
    )  # fmt: skip

    epochs: int = option(
        20, "each of --passes passes; adaptive learns its scale in the second half of them",
        group=TRAINING, within=COUNT, resumable=True,
    )  # fmt: skip
    passes: int = option(50, "over the training series, of one epoch", group=TRAINING, within=COUNT)
    drawn_batches: int | None = option(
        None, "N batches drawn with replacement make an epoch instead", group=TRAINING,
        within=COUNT,
    )  # fmt: skip
    batch_size: int = option(100, "series of an update", group=TRAINING, within=COUNT)
    lr: float = option(0.01, "learning rate of Adam", group=TRAINING, within=POSITIVE)

    mc_samples: int = option(
        100, "mask sets of the test", group=_EVALUATION, within=COUNT, resumable=True
    )
    mc_samples_epoch: int = option(
        10, "mask sets after each epoch, 0: none", group=_EVALUATION, within=NATURAL
    )
    coverage: float = option(
        0.9, "with which all targets of a series shall lie inside", group=_EVALUATION,
        within=PROBABILITY,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_options(self)

    def calibrates(self) -> bool:
        """Whether half of the known series are held out."""
        return self.method not in ("mq-rnn", "dp-rnn")

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


def restore_model(content: dict[str, Any], config: ForecastingConfig) -> Forecaster:
    """The model of a checkpoint's content, on the CPU.

    Raises:
        CheckpointError: the content is incomplete or does not fit together.
    """
    try:
        read_config({**content, "config": asdict(config)}, ForecastingConfig)
        model = Forecaster(config)
        model.load_state_dict(content["model"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"expected a complete checkpoint of a forecaster, got {reason}"
        ) from error
    return model

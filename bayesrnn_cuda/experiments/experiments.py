"""Every experiment that the command line and the report know, one entry each; and their presets and
sweeps by name.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..cli import UserError
from .forecasting import presets as forecasting
from .forecasting import summary
from .forecasting.task import ForecastingTask
from .language.task import LanguageModelTask
from .sentiment.task import SentimentTask
from .training.preset import Preset, Sweep, read_presets
from .training.task import Task


class Column(NamedTuple):
    """A column of the report's tables."""

    heading: str
    key: str  # of the figure
    form: str  # format of the figure, as `format` takes it


@dataclass(frozen=True)
class Experiment:
    """One kind of run: what trains it and what the report says of it."""

    title: str  # heading in the report
    task: type[Task]  # what it brings to the trainer, with the class of its configuration
    # what `--data` must name, for the message where it is missing; None: there is no such option
    data: str | None
    test: str  # key of the test's figure; that with MC dropout has `_mc` behind it
    paper: tuple[Column, ...]  # what the paper has numbers for, in the words of its tables
    columns: tuple[Column, ...]  # of the table of a group of its runs
    uncertainty: tuple[Column, ...]  # of the table on MC dropout
    presets: tuple[Preset, ...]  # its runs of the paper
    sweeps: tuple[Sweep, ...]  # the paper's comparisons of them
    tables: Mapping[str, tuple[Preset, ...]] = field(default_factory=dict)  # title -> the rows
    # Makes sections of its own for the report, of its runs and the report's folder, instead of a
    # table and curves for each sweep.
    sections: Callable[[Any, Any], list[str]] | None = None

    @property
    def best_key(self) -> str | None:
        """Key of the figure that decides which epoch counts; None: the last epoch counts."""
        return self.task.metric if self.task.tests_best else None


def _presets(folder: str, task: type[Task]) -> dict[str, Any]:
    return read_presets(Path(__file__).parent / folder, task.config_class)._asdict()


# By the name that config.json and the presets have for it.
EXPERIMENTS: dict[str, Experiment] = {
    "language_model": Experiment(
        title="Language models",
        task=LanguageModelTask,
        data="the Penn Treebank's folder (ptb.train.txt ...) or another text's",
        test="test_perplexity",
        paper=(
            Column("valid, as the authors count", "valid_perplexity_authors", ".2f"),
            Column("test", "test_perplexity", ".2f"),
            Column("test, MC", "test_perplexity_mc", ".2f"),
        ),
        columns=(
            Column("valid", "valid_perplexity", ".2f"),
            Column("valid, as the authors count", "valid_perplexity_authors", ".2f"),
            Column("test", "test_perplexity", ".2f"),
            Column("test, MC", "test_perplexity_mc", ".2f"),
            Column("samples", "mc_samples", "d"),
            Column("seconds an epoch", "seconds", ".1f"),
            Column("tokens/s", "tokens_per_second", ",.0f"),
        ),
        uncertainty=(
            Column("entropy (nats)", "mean_entropy", ".3f"),
            Column("mutual information (nats)", "mean_mutual_information", ".4f"),
            Column(
                "standard deviation of the word's probability", "mean_standard_deviation", ".4f"
            ),
        ),
        **_presets("language", LanguageModelTask),
    ),
    "sentiment": Experiment(
        title="Sentiment analysis",
        task=SentimentTask,
        data="the folder of the Cornell scale data (reviews.tsv)",
        test="test_rmse",
        paper=(),
        columns=(
            Column("train RMSE", "train_rmse", ".4f"),
            Column("test RMSE", "test_rmse", ".4f"),
            Column("test RMSE, MC", "test_rmse_mc", ".4f"),
            Column("samples", "mc_samples", "d"),
            Column("predicting the mean", "baseline_rmse", ".4f"),
            Column("seconds an epoch", "seconds", ".1f"),
            Column("pieces/s", "pieces_per_second", ",.0f"),
        ),
        uncertainty=(
            Column("mean predicted standard deviation", "mean_standard_deviation", ".4f"),
            Column("rank correlation of error and deviation", "error_rank_correlation", ".3f"),
        ),
        **_presets("sentiment", SentimentTask),
    ),
    "forecasting": Experiment(
        title="Forecasts of synthetic series",
        task=ForecastingTask,
        data=None,
        test="test_rmse",
        paper=(
            Column("joint coverage, %", "joint", ".1f"),
            Column("mean width", "width", ".2f"),
        ),
        columns=(
            Column("test RMSE", "test_rmse", ".3f"),
            Column("oracle's", "oracle_rmse", ".3f"),
            Column("joint coverage, %", "joint", ".1f"),
            Column("mean width", "width", ".2f"),
            Column("oracle's", "oracle_width", ".2f"),
        ),
        uncertainty=(),
        presets=(),
        sweeps=forecasting.SWEEPS,
        sections=summary.sections,
    ),
}
# The values are those of the authors' scripts (repository yaringal/BayesianRNN) where there is one;
# a preset's note says where there is none.
PRESETS: dict[str, Preset] = {
    preset.name: preset for entry in EXPERIMENTS.values() for preset in entry.presets
}
SWEEPS: dict[str, Sweep] = {
    sweep.name: sweep for entry in EXPERIMENTS.values() for sweep in entry.sweeps
}


def find(name: str) -> Preset | Sweep:
    """The preset or sweep of that name; `SWEEP/LABEL` is one member.

    Raises:
        UserError: there is none; the message has the closest names.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name in SWEEPS:
        return SWEEPS[name]
    sweep, slash, label = name.partition("/")
    if slash and sweep in SWEEPS:
        members = SWEEPS[sweep].members
        if label in members:
            return members[label]
        raise UserError(
            f"argument NAME: expected one of {', '.join(members)} in '{sweep}', got '{label}'"
        )
    close = closest_names(name)
    hint = f"closest: {', '.join(close)}" if close else "'bayesrnn experiment list' shows them"
    raise UserError(f"argument NAME: expected a preset or a sweep ({hint}), got '{name}'")


def closest_names(text: str) -> list[str]:
    """Names of presets and sweeps that may have been meant, the closest first."""
    return difflib.get_close_matches(text, [*PRESETS, *SWEEPS], n=3, cutoff=0.5)

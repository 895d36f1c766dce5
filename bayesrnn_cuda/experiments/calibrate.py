"""`experiment calibrate`: whether what a run predicts holds, before and after calibration.

Ratings: intervals on one part of the test pieces, calibrated on the others. Words: how often the
likeliest word comes, against its probability, before and after one temperature fitted on the
validation text (Guo et al., 2017, "On calibration of modern neural networks").
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import bayesrnn_cuda as brnn

from ..cli import UserError, number, whole_number
from .intervals import COVERAGE, FEWEST, certain, measured, rules
from .language.task import LanguageModelTask
from .language.text import lanes, windows
from .sentiment.evaluation import mc_predict, predict
from .sentiment.task import SentimentTask
from .trained import load_trained
from .training.checkpoint import read_config
from .training.command_line import about
from .training.configuration import NATURAL, Range
from .training.evaluating import evaluating
from .training.task import Task

_BINS = 15
_LANES = 20
_TOKENS = Range(f"a whole number from {2 * _LANES} to 2147483647", 2 * _LANES, 2**31 - 1)
_TEMPERATURES = torch.logspace(-0.3, 0.3, 13)  # 0.5 to 2
# Rules of `intervals.rules` that differ where there is one step, and what they are called.
_RULES = {
    "doubt": "masks alone",
    "normal": "with noise",
    "max": "conformal",
    "max, sure": "conformal, sure",
}

Rows = list[dict[str, Any]]  # a column's name -> its value


class Settings(NamedTuple):
    """What is predicted, and how much of it."""

    samples: int  # mask sets of MC dropout
    coverage: float  # of the intervals of ratings
    tokens: int  # of validation and test text each that are read


def add_calibrate(actions: argparse._SubParsersAction) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "calibrate",
        help="whether what runs predict holds, before and after calibration",
        description=(
            "Prints a table. Sentiment: coverage and width of intervals by the deviation over "
            "masks, with the noise of ratings, and with a conformal scale, on two fifths of the "
            "test pieces that did not calibrate. Language models: expected calibration error of "
            "the likeliest next word, before and after a temperature fitted on the validation text."
        ),
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="run folders or checkpoints"
    )
    parser.add_argument(
        "--data", metavar="DIR", type=Path, help="folder of their data (default: where it was)"
    )
    for name, kind, default, words in (
        ("mc-samples", whole_number, 20, "mask sets, 0: the dropout approximation alone"),
        ("tokens", whole_number, 20_000, "tokens of validation and of test text that are read"),
        ("coverage", number, 0.9, "of the intervals of ratings"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar="N" if kind is whole_number else "X",
            type=kind,
            default=default,
            help=f"{words} (default: {default})",
        )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    for name, value, within in (
        ("--mc-samples", arguments.mc_samples, NATURAL),
        ("--tokens", arguments.tokens, _TOKENS),
        ("--coverage", arguments.coverage, COVERAGE),
    ):
        if value not in within:
            raise UserError(f"argument {name}: expected {within.words}, got {value}")
    settings = Settings(arguments.mc_samples, arguments.coverage, arguments.tokens)
    print(table(calibrate(arguments.runs, arguments.data, settings)))
    return 0


def calibrate(paths: Sequence[Path], data: Path | None, settings: Settings) -> Rows:
    """One row a run and rule.

    Args:
        paths: folders of runs or checkpoints: of the language model the best epoch counts, else the
            last.
        data: folder of their data; None: where it was.
        settings: of all of them.

    Raises:
        UserError: no run, or one of an experiment without calibration.
    """
    rows = []
    for path in paths:
        task = _restored(path, data)
        rows += [{"run": path.name, **row} for row in _KINDS[type(task)](task, settings)]
    return rows


def _restored(path: Path, data: Path | None) -> Any:
    """The task of the run in `path`, with the model that its test was of."""
    kind, content = load_trained(path, list(_KINDS))
    with about("RUN"):
        config = dataclasses.replace(read_config(content, kind.config_class), device="cpu")
        if data is not None:
            config = dataclasses.replace(config, data=str(data))
        return kind.restore(content, config, kind.load_data(config))


def ratings(task: Any, settings: Settings) -> Rows:
    """Intervals of ratings, in their unit: the test pieces are shuffled, three fifths calibrate,
    the rest is judged."""
    tokens, came = task.data.test.tokens, task.data.test.ratings.double()
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(task.config.seed))
    tokens, came = tokens[order], came[order].unsqueeze(1)
    cut = 3 * len(came) // 5
    if cut < FEWEST:
        raise UserError(
            f"argument --data: expected test pieces of which three fifths are {FEWEST} or more, "
            f"got {len(came)} pieces"
        )
    if settings.samples and task.config.samples_masks():
        drawn = {"samples": settings.samples, "seed": task.config.seed}
        mean, deviation = mc_predict(task.model, tokens, **drawn, on_pieces=_ignore)
    else:
        mean = predict(task.model, tokens, on_pieces=_ignore)
        deviation = torch.zeros_like(mean)
    mean = (task.mean + task.standard_deviation * mean).unsqueeze(1)
    deviation = (task.standard_deviation * deviation).unsqueeze(1)
    given = certain(mean, deviation)._replace(std=deviation)
    held_out, test = (
        brnn.MCPrediction(mean[part], deviation[part], None, None, given.total_std[part])
        for part in (slice(cut), slice(cut, None))
    )
    rows = []
    for name, interval in rules(held_out, came[:cut], test, settings.coverage).items():
        if name in _RULES:
            figures = measured(interval, came[cut:])
            row = {"intervals": _RULES[name], "coverage, %": figures["joint"]}
            rows.append({**row, "mean width": figures["width"]})
    return rows


def words(task: Any, settings: Settings) -> Rows:
    """Probabilities of the next word; each window from the zero state."""
    samples, tokens = settings.samples, settings.tokens
    for name, text in (("validation", task.data.valid), ("test", task.data.test)):
        if len(text) < 2 * _LANES:
            raise UserError(
                f"argument --data: expected at least {2 * _LANES} tokens of {name} text, got "
                f"{len(text)}"
            )
    rows = []
    ways = [("dropout approximation", 0)]
    if samples and task.config.samples_masks():
        ways.append((f"MC, {samples} samples", samples))
    for name, count in ways:
        temperature = _fitted_temperature(_log_p(task, task.data.valid[: tokens + 1], count))
        before, after = Scores(1.0), Scores(temperature)
        for log_p, targets in _log_p(task, task.data.test[: tokens + 1], count):
            before.add(log_p, targets)
            after.add(log_p, targets)
        rows.append({"probabilities": name, **before.figures()})
        rows.append({"probabilities": f"{name}, temperature {temperature:.2f}", **after.figures()})
    return rows


def _log_p(task: Any, tokens: Tensor, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Log probabilities [n, V] and the words that came [n], window by window."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.config.seed)
        for inputs, targets in windows(lanes(tokens, _LANES), task.config.seq_len):
            if samples:
                settings = {"samples": samples, "likelihood": "categorical", "batch_dim": 1}
                found = brnn.mc_predict(task.model, inputs, **settings, output_batch_dim=1)
                log_p = found.mean.log()
            else:
                with evaluating(task.model):
                    log_p = task.model(inputs)[0].float().log_softmax(dim=-1)
            yield log_p.flatten(0, 1), targets.flatten()


def _tempered(log_p: Tensor, temperature: float) -> Tensor:
    return log_p if temperature == 1 else (log_p / temperature).log_softmax(dim=-1)


def _fitted_temperature(parts: Iterator[tuple[Tensor, Tensor]]) -> float:
    """That of the lowest negative log-likelihood, between the points of a grid by a parabola."""
    totals = torch.zeros(len(_TEMPERATURES), dtype=torch.float64)
    for log_p, targets in parts:
        for at, temperature in enumerate(_TEMPERATURES.tolist()):
            picked = _tempered(log_p, temperature).gather(1, targets[:, None])
            totals[at] -= picked.double().sum()
    best = min(max(1, int(totals.argmin())), len(totals) - 2)
    low, middle, high = totals[best - 1 : best + 2].tolist()
    shift = (low - high) / (2 * (low - 2 * middle + high)) if low + high > 2 * middle else 0.0
    step = math.log(_TEMPERATURES[1] / _TEMPERATURES[0])
    return float(_TEMPERATURES[best]) * math.exp(step * max(-1.0, min(1.0, shift)))


class Scores:
    """Of the likeliest word of each prediction: its probability, and whether it came.

    Args:
        temperature: of the probabilities.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.nats, self.confidence, self.right = [], [], []

    def add(self, log_p: Tensor, targets: Tensor) -> None:
        """Log probabilities [n, V] and the words that came [n]."""
        log_p = _tempered(log_p, self.temperature)
        confidence, likeliest = log_p.exp().max(dim=1)
        self.nats.append(-log_p.gather(1, targets[:, None]).double())
        self.confidence.append(confidence.double())
        self.right.append(likeliest == targets)

    def figures(self) -> dict[str, float]:
        """Perplexity, expected calibration error and what it compares."""
        confidence, right = torch.cat(self.confidence), torch.cat(self.right).double()
        return {
            "perplexity": torch.cat(self.nats).mean().exp().item(),
            "calibration error, %": 100 * calibration_error(confidence, right),
            "mean probability, %": 100 * confidence.mean().item(),
            "right, %": 100 * right.mean().item(),
        }


# What an experiment that can be calibrated does here.
_KINDS: dict[type[Task], Callable[[Any, Settings], Rows]] = {
    LanguageModelTask: words,
    SentimentTask: ratings,
}


def calibration_error(confidence: Tensor, right: Tensor, bins: int = _BINS) -> float:
    """Expected calibration error: the mean over predictions of |accuracy - mean confidence| of
    their bin, bins of equal width.

    Args:
        confidence: in [0, 1], [n].
        right: 1 where the prediction was right, else 0, [n].
        bins: their number.
    """
    place = (confidence * bins).long().clamp_max(bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, (right - confidence).double())
    return (gap.abs().sum() / len(confidence)).item()


def table(rows: Rows) -> str:
    """Markdown; a table for each set of columns."""
    lines: list[str] = []
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            lines += ["", *(_line(cells) for cells in (columns, ["---"] * len(columns)))]
        lines.append(_line([_text(value) for value in row.values()]))
    return "\n".join(lines[1:])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "-" if value is None else f"{value:.4g}"


def _ignore(pieces: int) -> None:
    """Stands for who does not follow the progress."""

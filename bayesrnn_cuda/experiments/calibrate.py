"""`experiment calibrate`: whether what a run predicts holds, before and after calibration.

Ratings: intervals on one part of the test pieces, calibrated on the others. Words: how often the
likeliest word comes, against its probability, before and after one temperature fitted on the
validation text (Guo et al., 2017, "On calibration of modern neural networks").
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bayesrnn_cuda as brnn

from ..cli import UserError, number, whole_number
from .experiments import EXPERIMENTS
from .intervals import COVERAGE, certain, measured, rules
from .language.text import lanes, windows
from .sentiment.evaluation import mc_predict, predict
from .training.checkpoint import load_checkpoint, read_config
from .training.configuration import COUNT, NATURAL
from .training.evaluating import evaluating
from .training.runs import RunFolder

_BINS = 15
_LANES = 20
_TEMPERATURES = torch.logspace(-0.3, 0.3, 13)  # 0.5 to 2
# Rules of `intervals.rules` that differ where there is one step, and what they are called.
_RULES = {
    "doubt": "masks alone",
    "normal": "with noise",
    "max": "conformal",
    "max, sure": "conformal, sure",
}

Rows = list[dict[str, Any]]  # a column's name -> its value


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
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folders")
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
        ("--tokens", arguments.tokens, COUNT),
        ("--coverage", arguments.coverage, COVERAGE),
    ):
        if value not in within:
            raise UserError(f"argument {name}: expected {within.words}, got {value}")
    settings = (arguments.mc_samples, arguments.coverage, arguments.tokens)
    print(table(calibrate(arguments.runs, arguments.data, *settings)))
    return 0


def calibrate(
    paths: Sequence[Path], data: Path | None, samples: int, coverage: float, tokens: int
) -> Rows:
    """One row a run and rule.

    Args:
        paths: folders of runs: of the language model the best epoch counts, else the last.
        data: folder of their data; None: where it was.
        samples: mask sets of MC dropout.
        coverage: of the intervals of ratings.
        tokens: of validation and test text each that are read.

    Raises:
        UserError: no run, or one of an experiment without calibration.
    """
    rows = []
    for path in paths:
        task = _restored(path, data)
        if task.config.experiment == "sentiment":
            found = ratings(task, samples, coverage)
        else:
            found = words(task, samples, tokens)
        rows += [{"run": path.name, **row} for row in found]
    return rows


def _restored(path: Path, data: Path | None) -> Any:
    """The task of the run in `path`, with the model that its test was of."""
    folder = RunFolder(path)
    if not folder.exists():
        raise UserError(f"argument RUN: expected the folder of a run, got '{path}'")
    experiment = json.loads(folder.config.read_text()).get("experiment")
    if experiment not in ("sentiment", "language_model"):
        raise UserError(
            f"argument RUN: expected runs of sentiment or language_model, got '{path}' of "
            f"{experiment}"
        )
    task = EXPERIMENTS[experiment].task
    content = load_checkpoint(
        folder.best if task.tests_best else folder.last, task.config_class.kind()
    )
    config = dataclasses.replace(read_config(content, task.config_class), device="cpu")
    if data is not None:
        config = dataclasses.replace(config, data=str(data))
    return task.restore(content, config, task.load_data(config))


def ratings(task: Any, samples: int, coverage: float) -> Rows:
    """Intervals of ratings, in their unit: the test pieces are shuffled, three fifths calibrate,
    the rest is judged."""
    tokens, came = task.data.test.tokens, task.data.test.ratings.double()
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(task.config.seed))
    tokens, came = tokens[order], came[order].unsqueeze(1)
    if samples and task.config.samples_masks():
        settings = {"samples": samples, "seed": task.config.seed}
        mean, deviation = mc_predict(task.model, tokens, **settings, on_pieces=_ignore)
    else:
        mean = predict(task.model, tokens, on_pieces=_ignore)
        deviation = torch.zeros_like(mean)
    mean = (task.mean + task.standard_deviation * mean).unsqueeze(1)
    deviation = (task.standard_deviation * deviation).unsqueeze(1)
    given = certain(mean, deviation)._replace(std=deviation)
    cut = 3 * len(came) // 5
    held_out, test = (
        brnn.MCPrediction(mean[part], deviation[part], None, None, given.total_std[part])
        for part in (slice(cut), slice(cut, None))
    )
    rows = []
    for name, interval in rules(held_out, came[:cut], test, coverage).items():
        if name in _RULES:
            figures = measured(interval, came[cut:])
            row = {"intervals": _RULES[name], "coverage, %": figures["joint"]}
            rows.append({**row, "mean width": figures["width"]})
    return rows


def words(task: Any, samples: int, tokens: int) -> Rows:
    """Probabilities of the next word; each window from the zero state."""
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

"""Figures of the report, like the paper's: learning curves, sweeps, MC dropout, calibration."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..experiments import EXPERIMENTS
from ..training.plots import make_axes
from ..training.preset import Sweep, short
from .records import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Labelled = Sequence[tuple[str, Run]]  # a curve's label and its run

# Okabe and Ito's colours without yellow, which is faint on white; markers tell them apart too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#666666"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STAR = "*"  # marks a run that is not the paper's experiment from beginning to end
SYMBOLS = {
    "recurrent_dropout": "p_U",
    "embedding_dropout": "p_E",
    "seq_len": "length",
    "weight_decay": "weight decay",
}
_AXES = {
    "recurrent_dropout": "$p_U$, probability of dropping recurrent connections",
    "embedding_dropout": "$p_E$, probability of dropping a word type",
    "seq_len": "sequence length (tokens)",
    "weight_decay": "weight decay",
}


def curves_figure(title: str, runs: Labelled) -> "Figure":
    """Validation or test error of the runs by epoch, solid, and training, dashed."""
    task = EXPERIMENTS[runs[0][1].experiment].task
    solid, dashed = task.metric, next(key for key in task.curves if key.startswith("train"))
    figure, axes = _axes(title, "epoch", task.axis)
    for index, (label, run) in enumerate(runs):
        _curve(axes, run, solid, index, label=label)
        _curve(axes, run, dashed, index, dashed=True)
    _line_legend(axes, runs, task.curves[solid], task.curves[dashed])
    return figure


def approximation_figure(title: str, runs: Labelled) -> "Figure":
    """Test error by epoch with the dropout approximation, solid, and with MC dropout, dashed."""
    experiment = EXPERIMENTS[runs[0][1].experiment]
    figure, axes = _axes(title, "epoch", f"test {experiment.task.axis}")
    for index, (label, run) in enumerate(runs):  # a run keeps its colour of the other figures
        if has_mc_curve(run):
            _curve(axes, run, experiment.test, index, label=label)
            _curve(axes, run, f"{experiment.test}_mc", index, dashed=True)
    drawn = [item for item in runs if has_mc_curve(item[1])]
    _line_legend(axes, drawn, "dropout approximation", "MC dropout")
    return figure


def sweep_figure(title: str, sweep: Sweep, runs: Labelled) -> "Figure":
    """Final test error against the value that the sweep varies, one colour a series."""
    field, series = sweep.field, sweep.series
    experiment = EXPERIMENTS[sweep.experiment]
    figure, axes = _axes(title, _AXES[field], f"final test {experiment.task.axis}")
    names = sorted({run.config.get(series) for _, run in runs}) if series else [None]
    for index, name in enumerate(names):
        chosen = [run for _, run in runs if name is None or run.config.get(series) == name]
        chosen.sort(key=lambda run: run.config[field])
        label = f"{SYMBOLS[series]} = {short(name)}" if series else ""
        for key, dashed in ((experiment.test, False), (f"{experiment.test}_mc", True)):
            points = [(run.config[field], run.figure(key)) for run in chosen]
            points = [point for point in points if point[1] is not None]
            if points:
                words = ", MC dropout" if dashed else ", dropout approximation"
                text = (label + words).removeprefix(", ")
                axes.plot(*zip(*points, strict=True), label=text, **_style(index, dashed, points))
    _note_star(axes, runs)
    values = sorted({run.config[field] for _, run in runs})
    if field == "weight_decay":
        axes.set_xscale("log")
    else:
        axes.set_xscale("log" if field == "seq_len" else "linear")
        axes.set_xticks(values, [short(value) for value in values])
        axes.minorticks_off()
    _outside_legend(axes)
    return figure


def calibration_figure(title: str, runs: Labelled) -> "Figure":
    """Error against the standard deviation that MC dropout predicts, over bins of equal count."""
    figure, axes = _axes(
        title,
        "predicted standard deviation, mean of the bin",
        "error (RMSE) of the bin",
    )
    limit = 0.0
    for index, (label, run) in enumerate(runs):
        points = [(part["predicted"], part["rmse"]) for part in run.figure("calibration") or ()]
        if points:
            limit = max(limit, *(max(point) for point in points))
            axes.plot(*zip(*points, strict=True), label=label, **_style(index, False, points[:1]))
    limit *= 1.05
    axes.plot([0, limit], [0, limit], color=_GREY, linestyle=":", label="error as predicted")
    _note_star(axes, [item for item in runs if item[1].figure("calibration")])
    axes.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    _outside_legend(axes)
    return figure


def has_mc_curve(run: Run) -> bool:
    """Whether MC dropout was evaluated after each epoch."""
    key = f"{EXPERIMENTS[run.experiment].test}_mc"
    return bool(run.history) and run.history[-1].get(key) is not None


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    return make_axes(x, y, title=title, size=(6.9, 4.7))


def _curve(
    axes: Any, run: Run, key: str, index: int, *, dashed: bool = False, label: str | None = None
) -> None:
    """The finite values of `key` by epoch."""
    values = [(record["epoch"], record.get(key)) for record in run.history]
    points = [(epoch, y) for epoch, y in values if y is not None and math.isfinite(y)]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **_style(index, dashed, points))


def _style(index: int, dashed: bool, points: Sequence[Any]) -> dict[str, Any]:
    """One colour and marker a run; about eight markers a curve, which would hide each other."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": "--" if dashed else "-",
        "linewidth": 1.2 if dashed else 1.8,
        "alpha": 0.75 if dashed else 1.0,
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 4 if dashed else 6,
        "markerfacecolor": "white" if dashed else None,
        "markevery": max(1, len(points) // 8),
    }


def _line_legend(axes: Any, runs: Labelled, solid: str, dashed: str) -> None:
    """The runs, and in grey what solid and dashed lines are."""
    axes.plot([], [], color=_GREY, linestyle="-", label=solid)
    axes.plot([], [], color=_GREY, linestyle="--", label=dashed)
    _note_star(axes, runs)
    _outside_legend(axes)


def _note_star(axes: Any, runs: Labelled) -> None:
    if not all(run.as_paper() for _, run in runs):
        axes.plot([], [], linestyle="", label=f"{STAR} reduced, changed or\n   unfinished")


def _outside_legend(axes: Any) -> None:
    """Beside the axes, where it hides nothing."""
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

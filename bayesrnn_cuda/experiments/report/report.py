"""The report on a set of runs: figures like the paper's, its tables beside ours, as markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..experiments import EXPERIMENTS, SWEEPS, Experiment
from ..training.checkpoint import write_text
from ..training.plots import save_figure
from ..training.preset import Preset, Sweep, short
from ..training.runs import RunFolder
from .figures import (
    STAR,
    SYMBOLS,
    Labelled,
    approximation_figure,
    calibration_figure,
    curves_figure,
    has_mc_curve,
    sweep_figure,
)
from .records import Run, read_runs


@dataclass(frozen=True)
class Group:
    """Runs that one section shows side by side."""

    key: str  # file names of its figures begin with it
    title: str
    sweep: Sweep | None  # the paper's comparison that they belong to; None: what is left over
    runs: Labelled


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Writes OUT/report.md and its figures; returns the former.

    Args:
        folders: each a run, or with runs below it.
        out: made if missing; files of an earlier report are replaced.

    Raises:
        UserError: no run, one that cannot be read, or a folder that cannot be made.
    """
    runs = read_runs(folders)
    RunFolder(out).create()
    lines = ["# Experiments of the paper", "", *_introduction(runs)]
    for experiment in EXPERIMENTS.values():
        for title, presets in experiment.tables.items():
            lines += _paper_table(title, experiment, presets, runs)
        if experiment.sections is not None:
            lines += experiment.sections(runs, out)
    runs = [run for run in runs if EXPERIMENTS[run.experiment].sections is None]
    missing = []
    for group in _groups(runs):
        lines += _section(group)
        for name, caption, draw, arguments in _figures(group):
            if save_figure(out / name, draw, *arguments):
                lines += [f"![{caption}]({name})", ""]
            else:
                missing.append(name)
    lines += _uncertainty(runs)
    if missing:
        lines += [f"Not drawn (the command said why): {', '.join(missing)}.", ""]
    report = out / "report.md"
    write_text(report, "\n".join(lines))
    return report


def _introduction(runs: Sequence[Run]) -> list[str]:
    finished = sum(run.final is not None for run in runs)
    whole = sum(run.as_paper() for run in runs)
    return [
        f"{_count(len(runs), 'run')}, {finished} finished, {whole} with the paper's settings from "
        f"beginning to end. {STAR} marks the others: what differs is in the last column.",
        "",
        "Perplexities are of the epoch with the best validation; the authors test after the last "
        "one. Their validation code divides by too many words: that figure is too low, and the "
        "corrected one counts the predictions really made. Sentiment's errors are the RMSE of the "
        "rating, which lies in 0 to 1, after the last epoch. MC is MC dropout, test without MC the "
        "dropout approximation. A difference is ours minus the paper's.",
        "",
    ]


def _paper_table(
    title: str, experiment: Experiment, presets: Sequence[Preset], runs: Sequence[Run]
) -> list[str]:
    """One row a run of these presets: the paper's number, ours, the difference."""
    rows = []
    matching = [(preset, _runs_of(preset, runs)) for preset in presets]
    if not any(found for _, found in matching):
        return []
    for preset, found in matching:
        rows += [_paper_row(experiment, preset, run) for run in found or [None]]
    notes: dict[str, list[str]] = {}
    for preset, found in matching:
        if found and preset.note:
            notes.setdefault(preset.note, []).append(preset.name)
    headings = ["model", "run"]
    for name, _, _ in experiment.paper:
        headings += [f"{name}: paper", "ours", "difference"]
    headings += ["valid, corrected", "valid, last epoch", "differs"]
    return [
        f"## {title}",
        "",
        *_table(headings, rows),
        "",
        *(f"- {', '.join(names)}: {note}" for note, names in notes.items()),
        "",
    ]


def _paper_row(experiment: Experiment, preset: Preset, run: Run | None) -> list[str]:
    row = [preset.name, "-" if run is None else run.name + _star(run)]
    for _, key, form in experiment.paper:
        paper, ours = preset.expected.get(key), None if run is None else run.figure(key)
        difference = None if paper is None or ours is None else ours - paper
        row += [
            "-" if paper is None else str(paper),
            _text(ours, form),
            _text(difference, f"+{form}"),
        ]
    if run is None:
        return [*row, "-", "-", "not run"]
    key = experiment.task.metric
    last = run.history[-1].get(key) if run.history else None
    return [*row, _text(run.figure(key), ".2f"), _text(last, ".2f"), run.status()]


def _runs_of(preset: Preset, runs: Sequence[Run]) -> list[Run]:
    """The runs of the preset itself, or else those of others with its values."""
    own = [run for run in runs if run.preset is not None and run.preset.name == preset.name]
    return own or [run for run in runs if run.preset and run.preset.values == preset.values]


def _groups(runs: Sequence[Run]) -> Iterator[Group]:
    """The paper's comparisons that these runs were made for, then what is left over."""
    shown: set[int] = set()
    for sweep in SWEEPS.values():
        found = [(label, _runs_of(preset, runs)) for label, preset in sweep.members.items()]
        members = {preset.name for preset in sweep.members.values()}
        if not any(run.preset.name in members for _, many in found for run in many):
            continue
        labelled = [
            (_label(sweep, label, run, alone=len(many) == 1), run)
            for label, many in found
            for run in many
        ]
        shown |= {id(run) for _, run in labelled}
        yield Group(sweep.name, f"{sweep.name}: {sweep.summary}", sweep, labelled)
    for name, experiment in EXPERIMENTS.items():
        rest = [
            (run.name + _star(run), run)
            for run in runs
            if run.experiment == name and id(run) not in shown
        ]
        if rest:
            yield Group(f"other-{name.replace('_', '-')}", f"Other: {experiment.title}", None, rest)


def _label(sweep: Sweep, label: str, run: Run, *, alone: bool) -> str:
    if sweep.field is not None:
        names = [name for name in (sweep.field, sweep.series) if name is not None]
        label = ", ".join(f"{SYMBOLS[name]} = {short(run.config[name])}" for name in names)
    return label + ("" if alone else f" ({run.name})") + _star(run)


def _section(group: Group) -> list[str]:
    lines = [f"## {group.title}", ""]
    if group.sweep is not None:
        words = [f"Source: {group.sweep.source}.", f"The paper: {group.sweep.outcome}."]
        lines += [" ".join([*words, group.sweep.note]).strip(), ""]
    columns = EXPERIMENTS[group.runs[0][1].experiment].columns
    headings = ["model", "run", "epochs", *(heading for heading, _, _ in columns), "differs"]
    rows = [
        [
            label,
            run.name,
            str(len(run.history)),
            *(_text(run.figure(key), form) for _, key, form in columns),
            run.status(),
        ]
        for label, run in group.runs
    ]
    return [*lines, *_table(headings, rows), ""]


def _figures(group: Group) -> Iterator[tuple[str, str, Any, tuple[Any, ...]]]:
    """File name, caption, function and arguments of each figure that the group has data for."""
    title, runs = group.title, [item for item in group.runs if item[1].history]
    sweep = group.sweep
    if runs:
        name = f"{group.key}-curves.png"
        yield name, f"Learning curves of {group.key}", curves_figure, (title, runs)
    if sweep is not None and sweep.field is not None:
        if runs:
            name = f"{group.key}-sweep.png"
            yield name, f"Final error of {group.key}", sweep_figure, (title, sweep, runs)
        return
    if any(has_mc_curve(run) for _, run in runs):
        name = f"{group.key}-mc.png"
        yield name, f"MC dropout of {group.key}", approximation_figure, (title, runs)
    if any(run.figure("calibration") for _, run in runs):
        name = f"{group.key}-calibration.png"
        yield name, f"Calibration of {group.key}", calibration_figure, (title, runs)


def _uncertainty(runs: Sequence[Run]) -> list[str]:
    """What MC dropout says of its own predictions, for the runs that have it."""
    lines = []
    for name, experiment in EXPERIMENTS.items():
        columns = experiment.uncertainty
        rows = [
            [
                run.name + _star(run),
                _text(run.figure("mc_samples"), "d"),
                *(_text(run.figure(key), form) for _, key, form in columns),
            ]
            for run in runs
            if run.experiment == name and any(run.figure(key) is not None for _, key, _ in columns)
        ]
        if rows:
            headings = ["run", "samples", *(heading for heading, _, _ in columns)]
            lines += [f"### {experiment.title}", "", *_table(headings, rows), ""]
    return ["## Predictive uncertainty (MC dropout, test)", "", *lines] if lines else []


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in lines]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _text(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _star(run: Run) -> str:
    return "" if run.as_paper() else STAR


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

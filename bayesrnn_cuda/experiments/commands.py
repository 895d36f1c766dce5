"""The verb `experiment`: the paper's experiments by name."""

import argparse
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli import Parser, UserError, whole_number
from .averaging import averaging, table
from .calibrate import add_calibrate
from .experiments import EXPERIMENTS, PRESETS, SWEEPS, closest_names, find
from .report.report import write_report
from .run_queue import run_queue
from .training.checkpoint import write_text
from .training.command_line import command, open_run
from .training.configuration import (
    add_options,
    given_options,
    option_arguments,
    resumable_flags,
    resumed_config,
)
from .training.distributed import Workers, run_stoppable
from .training.preset import Preset, Sweep, differences_line
from .training.runs import RunFolder, deadline_after, json_objects
from .training.trainer import RunResult

_SWEEP_FILE = "sweep.json"  # the sweep of a folder and the options given to it


def add_experiment(verbs: argparse._SubParsersAction, arguments: Sequence[str]) -> None:
    """Adds the verb.

    Args:
        verbs: of the program.
        arguments: its command line: which options `experiment run` has depends on the experiment.

    Raises:
        UserError: `experiment run` of an unknown name.
    """
    experiment = verbs.add_parser(
        "experiment",
        help="the paper's experiments by name: list, run, report, calibrate, averaging",
        description="The paper's experiments by name.",
    )
    experiment.set_defaults(run=lambda _: experiment.print_help() or 0)
    actions = experiment.add_subparsers(title="actions", metavar="ACTION", parser_class=Parser)
    listing = actions.add_parser(
        "list", help="names, sources, the paper's numbers", description="Lists the experiments."
    )
    listing.add_argument(
        "pattern", metavar="PATTERN", nargs="?", default="", help="show those with this text"
    )
    listing.set_defaults(run=_list)
    _add_run(actions, arguments)
    report = actions.add_parser(
        "report",
        help="figures and tables of runs, beside the paper's",
        description=(
            "Writes OUT/report.md and figures from run folders, finished or not: learning curves, "
            "sweeps, MC dropout, calibration, and the paper's tables beside these runs."
        ),
    )
    report.add_argument(
        "runs", metavar="RUNS", nargs="+", type=Path, help="run folders, or folders of them"
    )
    report.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    report.set_defaults(run=_report)
    ways = actions.add_parser(
        "averaging",
        help="MC dropout beside the dropout approximation, cause by cause",
        description=(
            "Predicts with one trained Bayesian model in several ways: by the dropout "
            "approximation, by arithmetic and geometric means over S mask sets, by one sample "
            "alone, with a fitted temperature or scale, with smaller dropout probabilities. Prints "
            "perplexities or RMSEs as a Markdown table."
        ),
    )
    ways.add_argument("path", metavar="RUN", type=Path, help="run folder or checkpoint")
    ways.add_argument(
        "--samples",
        metavar="S",
        type=whole_number,
        nargs="+",
        default=[1, 2, 5, 10, 20, 50],
        help="numbers of mask sets (default: 1 2 5 10 20 50)",
    )
    ways.add_argument(
        "--items",
        metavar="N",
        type=whole_number,
        default=10_000,
        help="words of the validation and test texts each, or pieces of the training and test data "
        "(default: 10000)",
    )
    ways.set_defaults(run=_averaging)
    add_calibrate(actions)


def _add_run(actions: argparse._SubParsersAction, arguments: Sequence[str]) -> None:
    given = arguments[2:] if list(arguments[:2]) == ["experiment", "run"] else []
    names = list(itertools.takewhile(lambda text: not text.startswith("-"), given))
    if given and not names and given[0] not in ("-h", "--help"):
        raise UserError(
            f"argument NAME: expected a preset or a sweep before the options, got '{given[0]}'"
        )
    found = [find(name) for name in names]
    if len({entry.experiment for entry in found}) > 1:
        raise UserError(
            "argument NAME: expected names of one experiment, whose data are in one folder, got "
            + ", ".join(f"{entry.name} of {entry.experiment}" for entry in found)
        )
    run = actions.add_parser(
        "run",
        usage=f"bayesrnn experiment run {' '.join(names) or 'NAME [NAME ...]'} [OPTION ...]",
        help="train and test one of them, a whole sweep, or several side by side",
        description=(
            "Trains and tests a preset, with its values but for the options given; of a sweep, all "
            "members one after another, each in its folder under OUT. Ctrl-C and --max-minutes, "
            "which bounds a sweep as a whole, save the run; --resume goes on. Several names, or "
            "--jobs, make a queue: see there. 'experiment run NAME --help' lists the options of "
            "NAME. Exit status as of 'train'."
            if not found
            else " ".join(f"{e.summary} ({e.source}). {e.note}".strip() for e in found)
        ).replace("%", "%%"),
    )
    run.add_argument(
        "names",
        metavar="NAME",
        nargs="+",
        help="preset, sweep or SWEEP/MEMBER; before options; of several the most important first",
    )
    run.set_defaults(run=_run)
    if found:
        _add_run_options(run, names[0], found)


def _add_run_options(run: Parser, name: str, found: Sequence[Preset | Sweep]) -> None:
    config_class = found[0].config_class
    group = run.add_argument_group("run")
    group.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help=f"run folder, new or empty (default: runs/{name}); of a queue the folder that "
        "holds those of its runs (default: runs)",
    )
    group.add_argument(
        "--jobs",
        metavar="N",
        type=whole_number,
        help="a queue: the members of all names in this order, N processes side by side, each at "
        "one thread and the lowest priority, its output in a .log beside its folder. The same "
        "command again goes on where it was stopped, by Ctrl-C, --max-minutes or kill -9, and "
        "runs no finished member again. A member that fails stops no other; it is named at the "
        "end, with exit status 1. To pause, stop the process group (Ctrl-Z, or kill -STOP as the "
        "queue prints it)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue what is in --out with its own options; only "
        f"{', '.join(resumable_flags(config_class))} may change",
    )
    add_options(run, config_class, _preset_values(found))


def _preset_values(found: Sequence[Preset | Sweep]) -> dict[str, Any]:
    """Field -> what `--help` shows as its value: of the fields that some preset sets."""
    presets = [
        preset
        for entry in found
        for preset in ([entry] if isinstance(entry, Preset) else entry.members.values())
    ]
    configs = [preset.config() for preset in presets]
    names = dict.fromkeys(name for preset in presets for name in preset.values)
    values = {name: {getattr(config, name) for config in configs} for name in names}
    return {name: "varied" if len(own) > 1 else own.pop() for name, own in values.items()}


def _list(arguments: argparse.Namespace) -> int:
    pattern = arguments.pattern.lower()
    shown = [
        entry
        for entry in (*PRESETS.values(), *SWEEPS.values())
        if pattern in f"{entry.name} {entry.summary} {entry.source}".lower()
    ]
    if not shown:
        close = closest_names(arguments.pattern)
        hint = f" (closest: {', '.join(close)})" if close else ""
        raise UserError(
            f"argument PATTERN: expected text in a name, a summary or a source{hint}, got "
            f"'{arguments.pattern}'"
        )
    for heading, kind in (("PRESET", Preset), ("SWEEP", Sweep)):
        entries = [entry for entry in shown if isinstance(entry, kind)]
        if entries:
            print(f"{heading:<32}WHAT, SOURCE, THE PAPER'S FIGURES")
        for entry in entries:
            print("\n".join(_listed(entry)))
    return 0


def _listed(entry: Preset | Sweep) -> list[str]:
    margin = " " * 32
    lines = [f"{entry.name:<31} {entry.summary}", margin + entry.source]
    if isinstance(entry, Sweep):
        lines.append(f"{margin}members: {', '.join(entry.members)}")
    numbers = {} if isinstance(entry, Sweep) else entry.expected
    words = {key: heading for heading, key, _ in EXPERIMENTS[entry.experiment].paper}
    paper = [f"{words[key]} {value}" for key, value in numbers.items()]
    if paper or entry.outcome:
        lines.append(f"{margin}paper: {'; '.join(filter(None, (*paper, entry.outcome)))}")
    return lines


def _run(arguments: argparse.Namespace) -> int:
    found = find(arguments.names[0])
    queue = arguments.jobs is not None or len(arguments.names) > 1
    if queue:
        _check_queue(arguments)
    given = given_options(arguments, found.config_class)
    if "data" not in given and not arguments.resume and EXPERIMENTS[found.experiment].data:
        raise UserError(f"argument --data: expected {EXPERIMENTS[found.experiment].data}, got none")
    if queue:
        out, jobs = arguments.out or Path("runs"), arguments.jobs or 1
        words = ["experiment", "run", *arguments.names, "--jobs", str(jobs), "--out", str(out)]
        again = command(*words, *option_arguments(given))
        return run_stoppable(lambda _: run_queue(arguments.names, out, given, jobs), again)
    out = arguments.out or Path("runs") / found.name
    run = _run_preset if isinstance(found, Preset) else _run_sweep
    again = ["experiment", "run", arguments.names[0], "--resume", "--out", str(out)]
    return run_stoppable(
        lambda workers: run(found, out, given, arguments.resume, workers), command(*again)
    )


def _check_queue(arguments: argparse.Namespace) -> None:
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"argument --jobs: expected a whole number from 1, got {arguments.jobs}")
    if arguments.resume:
        raise UserError("argument --resume: expected none, a queue goes on by itself")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("argument --jobs: expected none under torchrun, whose processes share runs")


def _run_preset(
    preset: Preset,
    out: Path,
    given: Mapping[str, Any],
    resume: bool,
    workers: Workers,
    deadline: float | None = None,
) -> None:
    """One run, new or continued, and its figures beside the paper's."""
    if resume:
        RunFolder(out).check_resumable()
        _check_same(preset.name, _stored(out / "config.json").get("preset"), out)
    trainer = open_run(
        EXPERIMENTS[preset.experiment].task,
        lambda: preset.config(given),
        out,
        workers,
        resumed=given if resume else None,
    )
    if workers.main:
        _print_preset(preset, vars(trainer.config))
    result = trainer.run(deadline)
    if workers.main:
        _print_figures(preset, result)
        print(f"run folder: {out}", flush=True)


def _run_sweep(
    sweep: Sweep, out: Path, given: Mapping[str, Any], resume: bool, workers: Workers
) -> None:
    """The members one after another; with `resume`, those that are not finished."""
    sweep.check_free(given)
    options = dict(given)
    if resume:
        stored = _stored(out / _SWEEP_FILE)
        _check_same(sweep.name, stored.get("sweep"), out)
        if not isinstance(stored.get("given"), dict):
            raise UserError(
                f"argument --resume: expected the options given in '{out / _SWEEP_FILE}', got none"
            )
        options = {**stored["given"], **given}
    else:
        RunFolder(out).check_new(resumable=(out / _SWEEP_FILE).is_file())
    for preset in sweep.members.values():  # a mistake must not show when some are trained
        config = preset.config(stored["given"] if resume else given)
        resumed_config(config, given)
    workers.barrier()  # all have seen the folder as it was
    if workers.main:
        RunFolder(out).create()
        content = {"sweep": sweep.name, "given": options}
        write_text(out / _SWEEP_FILE, json.dumps(content, indent=2) + "\n")
    deadline = deadline_after(options.get("max_minutes"))
    for number, (label, preset) in enumerate(sweep.members.items(), start=1):
        path = out / label
        begun = RunFolder(path).exists()
        if workers.main:
            print(f"\n{sweep.name}, {number} of {len(sweep.members)}: {label}", flush=True)
        if RunFolder(path).finished(options):
            if workers.main:
                print("finished before", flush=True)
            continue
        _run_preset(preset, path, given if begun else options, begun, workers, deadline)


def _stored(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the folder to resume. Raises UserError if there is none."""
    if not path.is_file():
        raise UserError(
            f"argument --resume: expected {path.name} of an experiment in '{path.parent}', got none"
        )
    return json_objects("--resume", path, [path.read_text()])[0]


def _check_same(name: str, stored: str | None, out: Path) -> None:
    if stored != name:
        held = stored or "no preset, as 'train' leaves it,"
        raise UserError(f"argument NAME: expected {held} as in '{out}', got {name}")


def _print_preset(preset: Preset, config: Mapping[str, Any]) -> None:
    print(f"preset: {preset.name}: {preset.summary} ({preset.source})")
    if differences := preset.differences(config):
        print(f"reduced or changed: {differences_line(differences)}")
    if preset.note:
        print(f"note: {preset.note}")
    print(end="", flush=True)


def _print_figures(preset: Preset, result: RunResult) -> None:
    """The run's last line and what the paper has numbers for, one figure a line."""
    best = result.history[result.best_epoch - 1]
    figures = {key: best.get(key) for key in preset.expected} | result.final
    for key, value in figures.items():
        if isinstance(value, float):
            paper = f" (paper {preset.expected[key]})" if key in preset.expected else ""
            print(f"{key.replace('_', ' ')}: {value:.5g}{paper}")
        elif key in EXPERIMENTS[preset.experiment].task.none_if_infinite:
            print(f"{key.replace('_', ' ')}: infinite")


def _averaging(arguments: argparse.Namespace) -> int:
    for name, values in (("--samples", arguments.samples), ("--items", [arguments.items])):
        if min(values) < 1:
            raise UserError(f"argument {name}: expected whole numbers from 1, got {min(values)}")
    ways = averaging(arguments.path, sorted(set(arguments.samples)), arguments.items)
    for line in table(ways):
        print(line, flush=True)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    print(write_report(arguments.runs, arguments.out))
    return 0

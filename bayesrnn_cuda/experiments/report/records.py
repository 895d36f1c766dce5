"""Run folders as the report reads them: configuration, records, and how they differ from the
paper's preset.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cli import UserError
from ..experiments import EXPERIMENTS, find
from ..training.preset import Preset, differences_line
from ..training.runs import RunFolder, json_objects


@dataclass(frozen=True)
class Run:
    """One run folder, finished or not."""

    name: str  # folder, relative to the one that was searched
    config: dict[str, Any]  # config.json, and the preset's values for what it lacks
    history: list[dict[str, Any]]  # records of the epochs
    final: dict[str, Any] | None  # the last line of metrics.jsonl if the run is finished
    preset: Preset | None  # that it was made from

    @property
    def experiment(self) -> str:
        """ "language_model" or "sentiment"."""
        return self.config["experiment"]

    def best(self) -> dict[str, Any]:
        """The record of the epoch whose figures count; empty before the first."""
        if not self.history:
            return {}
        key = EXPERIMENTS[self.experiment].best_key
        if key is None:
            return self.history[-1]
        infinite = float("inf")  # as a figure that is null is
        return min(self.history, key=lambda r: infinite if r.get(key) is None else r[key])

    def figure(self, key: str) -> Any:
        """The figure of that name: of the finished run, else of the epoch that counts, or None."""
        if self.final is not None and key in self.final:
            return self.final[key]
        return self.best().get(key)

    def status(self) -> str:
        """What a reader must know before comparing: unfinished, reduced; empty if nothing."""
        words = []
        if self.final is None:
            words.append(f"unfinished: {len(self.history)} of {self.config['epochs']} epochs")
        elif self.final.get("ended") == "patience":
            epochs = f"{len(self.history)} of {self.config['epochs']} epochs"
            words.append(f"ended by patience: {epochs}, the best is {self.final['best_epoch']}")
        if self.preset is None:
            words.append("no preset")
        elif differences := self.preset.differences(self.config):
            words.append(f"reduced or changed: {differences_line(differences)}")
        return "; ".join(words)

    def as_paper(self) -> bool:
        """Whether it is the paper's experiment from beginning to end."""
        return not self.status()


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in and below `folders`, by name.

    Raises:
        UserError: no such folder, no run in it, or a run that cannot be read.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"argument RUNS: expected a folder with runs, got '{folder}'")
        found = [path.parent for path in sorted(folder.rglob(RunFolder(folder).config.name))]
        found = [path for path in found if RunFolder(path).metrics.is_file()]
        if not found:
            raise UserError(
                f"argument RUNS: expected a run with config.json and metrics.jsonl in '{folder}', "
                "got none"
            )
        for path in found:
            within = path.relative_to(folder)
            # One folder's name says nothing, several tell their runs apart.
            bare = len(folders) == 1 and path != folder
            name = within if bare else folder.resolve().name / within
            runs.setdefault(path.resolve(), _read_run(path, name.as_posix()))
    return list(runs.values())


def _read_run(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    (config,) = json_objects("RUNS", folder.config, [folder.config.read_text(errors="replace")])
    experiment = config.get("experiment")
    if experiment not in EXPERIMENTS:
        raise UserError(
            f"argument RUNS: expected one of the experiments {', '.join(EXPERIMENTS)} in "
            f"'{folder.config}', got {experiment!r}"
        )
    if not isinstance(config.get("epochs"), int):
        raise UserError(
            f"argument RUNS: expected the number of epochs in '{folder.config}', got "
            f"{config.get('epochs')!r}"
        )
    lines = folder.metrics.read_text(errors="replace").splitlines()
    records = json_objects("RUNS", folder.metrics, lines)
    history = [record for record in records if not record.get("final")]
    for number, record in enumerate(history, start=1):
        if record.get("epoch") != number:
            raise UserError(
                f"argument RUNS: expected the record of epoch {number} in line {number} of "
                f"'{folder.metrics}', got that of {record.get('epoch')!r}"
            )
        for key, value in record.items():
            if value is not None and not isinstance(value, int | float):
                raise UserError(
                    f"argument RUNS: expected a number for {key} in line {number} of "
                    f"'{folder.metrics}', got {value!r}"
                )
    final = next((record for record in records if record.get("final")), None)
    if final is not None:
        _check_final(final, experiment, folder.metrics)
    preset = _preset(config)
    return Run(name, {**(preset.values if preset else {}), **config}, history, final, preset)


def _check_final(final: dict[str, Any], experiment: str, path: Path) -> None:
    """Raises UserError where a figure of the last record is not what the report can show."""
    entry = EXPERIMENTS[experiment]
    figures = (*entry.paper, *entry.columns, *entry.uncertainty)
    forms = {"best_epoch": "d", **{column.key: column.form for column in figures}}
    for key, form in forms.items():
        value = final.get(key)
        if value is None and key != "best_epoch":
            continue
        whole = form == "d"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            kind = "a whole number" if whole else "a number"
            raise UserError(
                f"argument RUNS: expected {kind} for {key} in the last line of '{path}', got "
                f"{value!r}"
            )


def _preset(config: dict[str, Any]) -> Preset | None:
    """The preset named in the configuration, if this version knows it."""
    try:
        found = find(str(config.get("preset")))
    except UserError:
        return None
    return found if isinstance(found, Preset) else None

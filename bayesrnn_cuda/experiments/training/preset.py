"""What a preset and a sweep are; the paper's own are tables in the rooms of the experiments."""

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...cli import UserError
from .configuration import RunConfig, flag

# Say where and how a run is made, not what it computes.
_INCIDENTAL = {"data", "seed", "device", "engine", "max_minutes", "tensorboard", "preset"}
# That they ended a run is in its record.
_INCIDENTAL |= {"patience", "patience_factor"}


@dataclass(frozen=True)
class Preset:
    """One run of the paper."""

    name: str  # on the command line; a member of a sweep is `SWEEP/LABEL`
    config_class: type[RunConfig]  # class of its configuration, which names its experiment
    summary: str  # what it is, in a few words
    source: str  # section, figures and tables of the paper, or the authors' script
    values: Mapping[str, Any]  # fields of the experiment's configuration
    expected: Mapping[str, float] = field(default_factory=dict)  # the paper's, by key of a record
    outcome: str = ""  # what the paper shows, in a few words
    note: str = ""  # what a reader must know of the values or the numbers

    @property
    def experiment(self) -> str:
        """Name of its experiment."""
        return self.config_class.experiment

    def config(self, given: Mapping[str, Any] | None = None) -> RunConfig:
        """Its configuration, with the options `given` instead of its own values."""
        values = {**self.values, **(given or {}), "preset": self.name}
        return self.config_class(**values)

    def differences(self, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Fields of a run's configuration that differ from the preset: (value, preset's value).

        Where and how the run is made (data, device, seed ...) does not count.
        """
        own = dataclasses.asdict(self.config())
        names = (name for name in own if name in values and name not in _INCIDENTAL)
        return {n: (values[n], own[n]) for n in names if values[n] != own[n]}


@dataclass(frozen=True)
class Sweep:
    """Runs that one figure or table of the paper compares. The texts are as of a preset."""

    name: str
    summary: str
    source: str
    members: Mapping[str, Preset]  # by label, which is the name of the run's folder too
    field: str | None = None  # of the configuration, that the members vary; None if they are models
    series: str | None = None  # a second one: one curve for each of its values
    fixed: tuple[str, ...] = ()  # fields that its name tells
    outcome: str = ""
    note: str = ""

    @property
    def config_class(self) -> type[RunConfig]:
        """That of the members."""
        return next(iter(self.members.values())).config_class

    @property
    def experiment(self) -> str:
        """Name of the members' experiment."""
        return self.config_class.experiment

    def check_free(self, given: Mapping[str, Any]) -> None:
        """Raises UserError if an option is given that the members vary or that is in the sweep's
        name.

        How long a run is may be given all the same, as it may to a resumed one.
        """
        configs = [vars(preset.config()) for preset in self.members.values()]
        for each in dataclasses.fields(self.config_class):
            name = each.name
            if name not in given or each.metadata["resumable"]:
                continue
            if name in self.fixed:
                verb = "fixes"
            elif any(config[name] != configs[0][name] for config in configs):
                verb = "varies"
            else:
                continue
            raise UserError(f"argument {flag(name)}: expected none, '{self.name}' {verb} it")


def differences_line(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """`epochs 5 (preset 180), hidden 20 (preset 200)`."""
    return ", ".join(f"{name} {now} (preset {own})" for name, (now, own) in differences.items())


class Presets(NamedTuple):
    """The paper's runs of one experiment."""

    presets: tuple[Preset, ...]
    sweeps: tuple[Sweep, ...]
    tables: dict[str, tuple[Preset, ...]]  # of the paper: title -> the rows


def read_presets(folder: Path, config_class: type[RunConfig]) -> Presets:
    """The runs in presets.tsv and sweeps.tsv of an experiment's folder.

    A column of presets.tsv is a field of Preset, a field of `config_class`, the paper's table that
    has the run in a row, or else a figure that the paper has a number for. A sweep's members are
    its base with the changes given, by label, or without a base all presets whose names begin with
    its own.
    """
    options = {field.name for field in dataclasses.fields(config_class)}
    texts = ("name", "summary", "source", "outcome", "note")
    presets, tables = {}, {}
    for row in _rows(folder / "presets.tsv"):
        values = {key: _value(text) for key, text in row.items() if key in options}
        known = {*options, *texts, "table"}
        expected = {k: _value(text) for k, text in row.items() if k not in known and text}
        about = {key: row[key] for key in texts}
        preset = Preset(**about, config_class=config_class, values=values, expected=expected)
        presets[preset.name] = preset
        if row.get("table"):
            tables[row["table"]] = (*tables.get(row["table"], ()), preset)
    sweeps = []
    for row in _rows(folder / "sweeps.tsv"):
        name, base = row["name"], row.pop("base")
        if base:
            changes = json.loads(row["members"])
            members = {k: member(name, k, presets[base], new) for k, new in changes.items()}
        else:
            own = [preset for preset in presets.values() if preset.name.startswith(f"{name}-")]
            members = {preset.name.removeprefix(f"{name}-"): preset for preset in own}
        fields = {key: row[key] or None for key in ("field", "series")}
        sweeps.append(Sweep(**{**row, **fields, "members": members}))
    return Presets(tuple(presets.values()), tuple(sweeps), tables)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE, restval="")


def _value(text: str) -> Any:
    """A number, true or false, or a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def member(sweep: str, label: str, base: Preset, values: Mapping[str, Any]) -> Preset:
    """`base` with other `values`, as a member of the sweep of that name."""
    words = ", ".join(f"{name} {value}" for name, value in values.items())
    summary = f"{base.summary}: {words}"
    merged = {**base.values, **values}
    return Preset(f"{sweep}/{label}", base.config_class, summary, f"sweep {sweep}", merged)


def short(value: float) -> str:
    """0.5, 200, 1e-6."""
    return f"{value:g}" if value == 0 or value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")

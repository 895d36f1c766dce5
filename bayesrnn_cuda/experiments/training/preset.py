"""What a preset and a sweep are; the paper's own are in the rooms of the experiments."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...cli import UserError
from .configuration import RunConfig, flag

# Say where and how a run is made, not what it computes.
_INCIDENTAL = {"data", "seed", "device", "engine", "max_minutes", "tensorboard", "preset"}
# That they ended a run is in its record.
_INCIDENTAL |= {"patience", "patience_factor"}


@dataclass(frozen=True)
class Preset:
    """One run of the paper.

    Args:
        name: on the command line; a member of a sweep is `SWEEP/LABEL`.
        config_class: class of its configuration, which names its experiment.
        summary: what it is, in a few words.
        source: section, figures and tables of the paper, or the authors' script.
        values: fields of the experiment's configuration.
        expected: the paper's numbers, by key of the records.
        outcome: what the paper shows, in a few words.
        note: what a reader must know of the values or the numbers.
    """

    name: str
    config_class: type[RunConfig]
    summary: str
    source: str
    values: Mapping[str, Any]
    expected: Mapping[str, float] = field(default_factory=dict)
    outcome: str = ""
    note: str = ""

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
    """Runs that one figure or table of the paper compares.

    Args:
        name, summary, source, outcome, note: as of a preset.
        members: the runs, by label; the label is the run's folder too.
        field: field of the configuration that the members vary; None if they are models.
        series: a second field that they vary: one curve for each of its values.
    """

    name: str
    summary: str
    source: str
    members: Mapping[str, Preset]
    field: str | None = None
    series: str | None = None
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
        """Raises UserError if an option is given that the members vary."""
        for name in (self.field, self.series):
            if name in given:
                raise UserError(f"argument {flag(name)}: expected none, '{self.name}' varies it")


def differences_line(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """`epochs 5 (preset 180), hidden 20 (preset 200)`."""
    return ", ".join(f"{name} {now} (preset {own})" for name, (now, own) in differences.items())


def models(
    name: str, summary: str, source: str, members: tuple[Preset, ...], outcome: str
) -> Sweep:
    """The models of one experiment side by side; their names begin with the sweep's."""
    labels = {member.name.removeprefix(f"{name}-"): member for member in members}
    return Sweep(name, summary, source, labels, outcome=outcome)


def member(sweep: str, label: str, base: Preset, values: Mapping[str, Any]) -> Preset:
    """`base` with other `values`, as a member of the sweep of that name."""
    words = ", ".join(f"{name} {value}" for name, value in values.items())
    summary = f"{base.summary}: {words}"
    merged = {**base.values, **values}
    return Preset(f"{sweep}/{label}", base.config_class, summary, f"sweep {sweep}", merged)


def dropout(
    kind: str, x: float = 0.0, i: float = 0.0, h: float = 0.0, o: float = 0.0
) -> dict[str, Any]:
    """The dropout fields of both experiments.

    Args:
        kind: "bayesian", "naive" or "none".
        x: p_x or p_E, of word types.
        i: p_i or p_W, of the inputs.
        h: p_h or p_U, of the recurrent connections.
        o: p_o or p_dense, of the last layer's inputs.
    """
    return {
        "dropout_kind": kind,
        "embedding_dropout": x,
        "input_dropout": i,
        "recurrent_dropout": h,
        "output_dropout": o,
    }


def short(value: float) -> str:
    """0.5, 200, 1e-6."""
    return f"{value:g}" if value == 0 or value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")

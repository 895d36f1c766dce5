"""One frozen dataclass per experiment is its whole configuration: every field is also a command-
line option, checked in one place.
"""

import argparse
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from bayesrnn_cuda.cli import UserError, number, whole_number
from bayesrnn_cuda.engines import ENGINES


@dataclasses.dataclass(frozen=True)
class Range:
    """The values a number may take, low <= value <= high, or low < value if `above` is set."""

    words: str
    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        if value == math.inf or (self.above and value == self.low):
            return False
        return self.low <= value <= self.high


COUNT = Range("a whole number from 1 to 2147483647", 1, 2**31 - 1)
NATURAL = Range("a whole number from 0 to 2147483647", 0, 2**31 - 1)
PROBABILITY = Range("a probability in [0, 1]", 0, 1)
POSITIVE = Range("a number above 0", 0, above=True)
AT_LEAST_ONE = Range("a number of at least 1", 1)
FRACTION = Range("a number in [0, 1]", 0, 1)

Config = TypeVar("Config")


def option(
    default: Any,
    help: str,
    within: Range | None = None,
    *,
    group: str | None,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    resumable: bool = False,
) -> Any:
    """A configuration field that is also a command-line option.

    Args:
        default: value when the option is not given.
        help: one line for `--help`.
        within: values allowed, for numbers.
        group: heading under which `--help` lists it; None: not a command-line option.
        choices: values allowed, for words.
        metavar: how `--help` shows the value; None takes a word for its type.
        resumable: whether a resumed run may be given another value.
    """
    names = ("help", "within", "group", "choices", "metavar", "resumable")
    values = (help, within, group, choices, metavar, resumable)
    return dataclasses.field(default=default, metadata=dict(zip(names, values, strict=True)))


def options(group: str) -> Callable[..., Any]:
    """`option` for the fields of one group."""
    return functools.partial(option, group=group)


TRAINING, MACHINE = "training", "machine"
# As `--help` lists them; an experiment's own come first.
_GROUPS = ("model", "dropout", TRAINING, "evaluation", MACHINE)
_training, _machine = options(TRAINING), options(MACHINE)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever the experiment. Configurations of experiments derive from it.

    Attributes:
        experiment: name of the experiment, as presets and config.json have it.
    """

    experiment: typing.ClassVar[str]

    @classmethod
    def kind(cls) -> str:
        """What its checkpoints are of, in words: "language model"."""
        return cls.experiment.replace("_", " ")

    epochs: int = _training(12, "passes over the training data", COUNT, resumable=True)
    patience: int | None = _training(
        None,
        "end the run N epochs after the best one (default: never); the language model's best is "
        "that of the validation text, sentiment's that of the test pieces",
        COUNT,
        resumable=True,
    )
    patience_factor: float | None = _training(
        None,
        "likewise X times as many epochs after the best one as it took; with both rules the later "
        "end counts",
        POSITIVE,
        resumable=True,
    )
    precision: str = _training(
        "float32",
        "of the training loss: bfloat16 computes it under autocast; parameters and evaluation "
        "stay float32",
        choices=("float32", "bfloat16"),
    )
    seed: int = _machine(1, "of initial parameters, masks and order of the data", NATURAL)
    device: str = _machine("auto", "auto, cpu, cuda or cuda:N", metavar="DEVICE", resumable=True)
    engine: str = _machine("auto", "engine of the layers", choices=ENGINES, resumable=True)
    max_minutes: float | None = _machine(
        None,
        "stop after X minutes of each call, saved so that --resume goes on (default: no limit)",
        POSITIVE,
        resumable=True,
    )
    tensorboard: bool = _machine(False, "write the metrics for TensorBoard too", resumable=True)
    preset: str | None = option(None, "the preset that it was made from", group=None)

    def __post_init__(self) -> None:
        check_options(self)

    def resolved_device(self) -> torch.device:
        """The device to run on. Raises UserError if this machine does not have it."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise UserError(f"argument --device: expected cpu, cuda or cuda:N, got '{self.device}'")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"argument --device: expected one of {torch.cuda.device_count()} CUDA devices, got "
                f"'{self.device}'"
            )
        return device


def flag(name: str) -> str:
    """Command-line spelling of the field `name`: `seq_len` is `--seq-len`."""
    return "--" + name.replace("_", "-")


def check_options(config: Any) -> None:
    """Raises UserError for the first field of `config` with a value that is not allowed."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), flag(field.name)
        within, choices = field.metadata["within"], field.metadata["choices"]
        if value is not None and within is not None and value not in within:
            raise UserError(f"argument {name}: expected {within.words}, got {value}")
        if value is not None and choices is not None and value not in choices:
            raise UserError(f"argument {name}: expected one of {', '.join(choices)}, got '{value}'")


def add_options(
    parser: argparse.ArgumentParser, config_class: type, preset: Mapping[str, Any] | None = None
) -> None:
    """Adds one option per field of `config_class`; one that is not given leaves no attribute.

    Args:
        parser: gets a group for each heading.
        config_class: a RunConfig.
        preset: values that `--help` shows instead of the defaults.
    """
    hints = typing.get_type_hints(config_class)
    fields = _option_fields(config_class)
    headings = dict.fromkeys(field.metadata["group"] for field in fields)
    groups = {heading: parser.add_argument_group(heading) for heading in headings}
    for field in fields:
        kind = _plain_type(hints[field.name])
        text = field.metadata["help"]
        if preset is not None and field.name in preset:
            text += f" (preset: {preset[field.name]})"
        elif field.default is not None:
            text += f" (default: {field.default})"
        settings: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS, "dest": field.name}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif field.metadata["choices"] is not None:
            settings["metavar"] = "|".join(field.metadata["choices"])
        else:
            settings["type"] = _PARSERS[kind]
            settings["metavar"] = field.metadata["metavar"] or _METAVARS[kind]
        groups[field.metadata["group"]].add_argument(flag(field.name), **settings)


def _option_fields(config_class: type) -> list[dataclasses.Field]:
    """The fields that are options, group by group; in each those of every run come last."""
    common = {field.name for field in dataclasses.fields(RunConfig)}

    def place(field: dataclasses.Field) -> tuple[int, bool]:
        group = field.metadata["group"]
        return _GROUPS.index(group) if group in _GROUPS else -1, field.name in common

    fields = (f for f in dataclasses.fields(config_class) if f.metadata["group"] is not None)
    return sorted(fields, key=place)


def given_options(arguments: argparse.Namespace, config_class: type) -> dict[str, Any]:
    """The fields of `config_class` that were given on the command line; the data by full path."""
    names = [field.name for field in _option_fields(config_class)]
    given = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    if "data" in given:
        given["data"] = str(Path(given["data"]).resolve())
    return given


def option_arguments(given: Mapping[str, Any]) -> list[str]:
    """The command-line arguments that give these fields."""
    arguments = []
    for name, value in given.items():
        if isinstance(value, bool):
            arguments.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
        else:
            arguments += [flag(name), str(value)]
    return arguments


def resumable_flags(config_class: type) -> list[str]:
    """The options of `config_class` that a resumed run may be given anew."""
    fields = _option_fields(config_class)
    return [flag(field.name) for field in fields if field.metadata["resumable"]]


def resumed_config(config: Config, given: Mapping[str, Any]) -> Config:
    """`config` of an earlier run with the options `given` now.

    Raises:
        UserError: an option differs that a resumed run must keep.
    """
    for field in dataclasses.fields(config):
        if field.name not in given or field.metadata["resumable"]:
            continue
        before, now = getattr(config, field.name), given[field.name]
        if before != now:
            raise UserError(
                f"argument {flag(field.name)}: expected {before} as in the run to resume, got {now}"
            )
    return dataclasses.replace(config, **given)


_PARSERS = {int: whole_number, float: number, str: str}
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _plain_type(hint: Any) -> type:
    """`int` for `int` and for `int | None`."""
    if isinstance(hint, types.UnionType):
        return next(part for part in hint.__args__ if part is not type(None))
    return hint

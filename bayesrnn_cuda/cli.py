"""The parser of the command line, and the verbs that need no experiment: `plan` and `info`."""

import argparse
import difflib
from collections.abc import Iterable
from typing import Any

import torch

import bayesrnn_cuda as brnn

from .cells import CELLS
from .checks import dtype_name
from .engines import CUDA_DTYPES

USER_ERROR = 2
_DTYPES = tuple(map(dtype_name, CUDA_DTYPES))


class UserError(ValueError):
    """A mistake that the user can correct: one line with what was expected and what was found."""


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line and takes no shortened options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> None:  # type: ignore[override]
        """Ends the program with status 2."""
        self.exit(USER_ERROR, f"bayesrnn: error: {message}\n")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        """A verb's parser is the one that knows the option that was meant."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            hint = _closest(unknown[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Of verbs and actions, which alone have choices here."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _closest(value, action.choices or ())
            raise


def _closest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that was probably meant; empty if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (closest: {close[0]})" if close else ""


def whole_number(text: str) -> int:
    """argparse type: a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got '{text}'") from None


def number(text: str) -> float:
    """argparse type: a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got '{text}'") from None


def add_plan(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb `plan`."""
    plan = verbs.add_parser(
        "plan",
        help="which engine runs a layer of given sizes, and why",
        description="Says which engine runs one layer of these sizes, and why. Needs no GPU.",
    )
    plan.add_argument("cell", metavar="|".join(CELLS), help="cell")
    for name, text in (
        ("T", "time steps"),
        ("B", "batch"),
        ("I", "input size"),
        ("H", "hidden size"),
    ):
        plan.add_argument(name, type=whole_number, help=text)
    plan.add_argument(
        "--dtype", metavar="|".join(_DTYPES), default="float32", help="(default: float32)"
    )
    plan.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:N or a GPU's name (default: cpu)"
    )
    plan.set_defaults(run=_plan)


def add_info(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb `info`."""
    info = verbs.add_parser("info", help="versions, compiled architectures, engines usable here")
    info.set_defaults(run=_info)


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.dtype not in _DTYPES:
        raise UserError(
            f"argument --dtype: expected one of {', '.join(_DTYPES)}, got '{arguments.dtype}'"
        )
    sizes = (arguments.T, arguments.B, arguments.I, arguments.H)
    try:
        plan = brnn.plan(arguments.cell, *sizes, getattr(torch, arguments.dtype), arguments.device)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error).splitlines()[0]) from error
    print(plan)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    for name, value in brnn.info().items():
        print(f"{name}: {value}")
    return 0

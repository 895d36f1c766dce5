"""The verbs that need no experiment: `plan` and `info`."""

import argparse

import torch

import bayesrnn_cuda as brnn

from .experiments.training.configuration import UserError, whole_number

_DTYPES = ("float32", "float64", "bfloat16", "float16")


def add_plan(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb `plan`."""
    plan = verbs.add_parser(
        "plan",
        help="which engine runs a layer of given sizes, and why",
        description="Says which engine runs one layer of these sizes, and why. Needs no GPU.",
    )
    plan.add_argument("cell", metavar="lstm|gru", help="cell")
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

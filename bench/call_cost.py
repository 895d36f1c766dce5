"""What a call costs beside the computing: a layer so small that Python and torch are all of it.

python -m bench.call_cost [--cell gru] [--shape 1,1,8,8] [--out FILE]

Microseconds of processor time on one thread, of this process alone, so that a machine at other work
tells the same. "the op" is torch.ops.bayesrnn by itself: what is above it is Python's. A ratio is
the median of those of the rounds, in which all take turns: what slows one down slows them all.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bayesrnn_cuda as brnn

from . import harness
from .layers import LAYERS
from .options import OneLineParser, count, shape

CALLS = 30  # of one kind, one after another: far above the clock's step
WAYS = ("no grad", "grad", "grad, backward")
UNMEASURED = {("the op", way) for way in WAYS[1:]}  # a layer never calls it so


def calls(case: harness.Case) -> dict[str, Callable[[], Tensor]]:
    """What is called, by name; each gives y. The first is what the others are compared with."""
    layers = LAYERS[case.cell]
    x = case.input(torch.device("cpu"))
    plain = layers.ours(case.I, case.H)
    masked = layers.ours(case.I, case.H, input_dropout=case.p, recurrent_dropout=case.p)
    theirs = layers.theirs(case.I, case.H)
    weights = plain.layer_weights("l0")
    states = [x.new_zeros(case.B, case.H)] * layers.cell.states
    given = masked.sample_masks(case.B)
    functional = getattr(brnn.functional, layers.cell.name)
    op = getattr(torch.ops.bayesrnn, layers.cell.name).default
    return {
        f"torch.nn.{case.cell.upper()}": lambda: theirs(x)[0],
        "bayesrnn none": lambda: plain(x)[0],
        "bayesrnn untied": lambda: masked(x)[0],
        "bayesrnn untied, masks given": lambda: masked(x, masks=given)[0],
        "functional": lambda: functional(x, *states, weights)[0],
        "functional, masks given": lambda: functional(x, *states, weights, given[0])[0],
        "the op": lambda: op(x, *states, *weights, None, None, None, None)[0],
    }


def measure(case: harness.Case, runs: int) -> list[dict[str, Any]]:
    """Of each name and way the microseconds of a call and their ratio to the first name's."""
    dy = case.cotangent(torch.device("cpu"))
    functions = calls(case)
    pairs = [(name, way) for way in WAYS for name in functions if (name, way) not in UNMEASURED]
    rounds = [
        {(name, way): _time(functions[name], way, dy) * 1e6 for name, way in pairs}
        for _ in range(1 + runs)
    ][1:]  # the first one finds nothing in the caches
    first = next(iter(functions))
    return [
        {
            "name": name,
            "way": way,
            "microseconds": statistics.median(took[name, way] for took in rounds),
            "ratio": statistics.median(took[name, way] / took[first, way] for took in rounds),
        }
        for name, way in pairs
    ]


def _time(function: Callable[[], Tensor], way: str, dy: Tensor) -> float:
    gc.collect()
    gc.disable()
    try:
        with torch.set_grad_enabled(way != "no grad"):
            began = time.process_time()
            for _ in range(CALLS):
                y = function()
                if way == "grad, backward":
                    y.backward(dy)
            return (time.process_time() - began) / CALLS
    finally:
        gc.enable()


def table(case: harness.Case, results: list[dict[str, Any]]) -> str:
    """A line per name, a column per way."""
    lines = {result["name"]: f"  {result['name']:30}" for result in results}
    for result in results:
        lines[result["name"]] += f"{result['microseconds']:12.1f} us{result['ratio']:6.2f}"
    head = f"{case!s:32}" + "".join(f"{way:>21}" for way in WAYS)
    return "\n".join([head, *lines.values()])


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--cell", action="append", choices=tuple(LAYERS))
    parser.add_argument("--shape", type=shape, default=(1, 1, 8, 8), metavar="T,B,I,H")
    parser.add_argument("--runs", type=count, default=31)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write JSON there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for cell in arguments.cell or ("lstm",):
        case = harness.Case(cell, *arguments.shape)
        results = measure(case, arguments.runs)
        print(table(case, results), flush=True)
        records.append({**asdict(case), "calls": results})
    if arguments.out:
        harness.save(arguments.out, torch.device("cpu"), records)


if __name__ == "__main__":
    main()

"""This build against another one, in processes that take turns call by call.

python -m bench.vs_build OTHER [--shape 35,20,650,650] [--seconds 20]

OTHER is a checkout with its library built in place. Neighbours on a shared machine change speeds
from one second to the next; the median of the ratios of calls side by side hardly moves. With
--threads 1 it is the processor's time that is compared, which runs on only while a call does.
"""

import json
import statistics
import subprocess
import sys
import time
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import torch

from . import harness
from .layers import LAYERS
from .options import DTYPES, OneLineParser, count, shape

WHAT = ("sample_masks", "forward", "forward_backward")
HERE = Path(__file__).resolve().parent.parent

# Prints where the package comes from and a sum without masks, then the seconds of each of WHAT for
# each line it reads.
WORKER = """
import json, sys, time, torch, bayesrnn_cuda as brnn
case, threads = json.loads(sys.argv[1]), int(sys.argv[2])
clock = time.process_time if threads == 1 else time.perf_counter
torch.set_num_threads(threads)
torch.manual_seed(0)
dtype = getattr(torch, case["dtype"])
kind = getattr(brnn, f"Bayesian{case['cell'].upper()}")
layer = kind(case["I"], case["H"], input_dropout=0.25, recurrent_dropout=0.25, dtype=dtype)
x = torch.randn(case["T"], case["B"], case["I"], dtype=dtype).requires_grad_()
dy = torch.randn(case["T"], case["B"], case["H"], dtype=dtype)
with torch.no_grad():
    print(json.dumps([brnn.__file__, layer.eval()(x)[0].double().abs().sum().item()]), flush=True)
layer.train()
def forward():
    with torch.no_grad():
        layer(x)
what = (lambda: layer.sample_masks(case["B"])), forward, (lambda: layer(x)[0].backward(dy))
for _ in sys.stdin:
    times = []
    for call in what:
        start = clock()
        call()
        times.append(clock() - start)
    print(json.dumps(times), flush=True)
"""


def _checkout(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "bayesrnn_cuda" / "__init__.py").is_file():
        raise ArgumentTypeError(f"expected a checkout with bayesrnn_cuda/, got '{text}'")
    return path


class Worker:
    """A process that has the package of one checkout."""

    def __init__(self, checkout: Path, case: harness.Case, threads: int) -> None:
        sizes = {name: getattr(case, name) for name in ("cell", "T", "B", "I", "H", "dtype")}
        command = [sys.executable, "-c", WORKER, json.dumps(sizes), str(threads)]
        self._process = subprocess.Popen(
            command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        origin, self.total = self._read()
        if not Path(origin).is_relative_to(checkout):
            raise SystemExit(f"vs_build: expected the package of {checkout}, got {origin}")

    def turn(self) -> list[float]:
        """Seconds of each of WHAT."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> list:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("vs_build: a build failed: see above")
        return json.loads(line)


def compare(case: harness.Case, other: Path, arguments: Namespace) -> dict[str, float]:
    """Median of this build's time over the other's, for each of WHAT."""
    workers = [Worker(path, case, arguments.threads) for path in (HERE, other)]
    totals = [worker.total for worker in workers]
    if abs(totals[0] - totals[1]) > 1e-2 * abs(totals[1]):
        raise SystemExit(f"vs_build: {case}: outputs differ, sums {totals[0]} and {totals[1]}")
    for _ in range(3):
        for worker in workers:
            worker.turn()
    pairs = []
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end or len(pairs) < arguments.runs:
        pairs.append([worker.turn() for worker in workers])
    for worker in workers:
        worker.close()
    return {
        what: statistics.median(here[i] / there[i] for here, there in pairs)
        for i, what in enumerate(WHAT)
    }


def main() -> None:
    harness.with_retained_heap()
    parser = OneLineParser(prog="vs_build.py", description=__doc__.split("\n")[0])
    parser.add_argument("other", type=_checkout, metavar="OTHER")
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--cell", action="append", choices=tuple(LAYERS))
    parser.add_argument("--shape", action="append", type=shape, metavar="T,B,I,H")
    parser.add_argument("--runs", type=count, default=7, help="turns at least")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each case")
    parser.add_argument("--threads", type=count, default=torch.get_num_threads())
    parser.set_defaults(device=torch.device("cpu"), loss="all")  # of harness.cases
    arguments = parser.parse_args()
    print(f"{'':34}" + "".join(f"{what:>18}" for what in WHAT), flush=True)
    for case in harness.cases(arguments):
        ratios = compare(case, arguments.other, arguments)
        print(f"{case!s:34}" + "".join(f"{ratios[what]:18.3f}" for what in WHAT), flush=True)


if __name__ == "__main__":
    main()

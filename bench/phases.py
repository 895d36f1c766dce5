"""Where a layer's time goes in the CPU engine, phase by phase.

python -m bench.phases [--shape 200,128,128,128] [--threads 1]

Milliseconds of a call that all threads together spend in each phase of csrc/cpu/phases.h, as a part
of what the threads had, and of the products how near they come to the FMA peak. The rest is waiting
for other threads, and what torch does around the engine.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import harness
from .ceiling import ceiling
from .options import options

REST = "the rest"


@dataclass
class Split:
    """Seconds of one direction: of a call, and of each phase, all threads together."""

    wall: float
    phases: dict[str, float]


def split(calls: dict[str, Callable[[], None]], runs: int) -> dict[str, Split]:
    """Medians of `runs` rounds of the calls in turn; each begins where the last one ended."""
    rounds: dict[str, list[Split]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            torch.ops.bayesrnn.cpu_phases(True)
            start = time.perf_counter()
            call()
            wall = time.perf_counter() - start
            phases = json.loads(torch.ops.bayesrnn.cpu_phases(False))
            rounds[name].append(Split(wall, phases))
    return {
        name: Split(
            statistics.median(one.wall for one in many),
            {k: statistics.median(one.phases[k] for one in many) for k in many[0].phases},
        )
        for name, many in rounds.items()
    }


def measure(case: harness.Case, device: torch.device, runs: int) -> dict[str, Split]:
    """Forward that saves, and backward, of a layer with untied masks that has been checked."""
    layer = harness.ours(case, device, "untied")
    assert layer.check
    layer.check()
    x, dy = case.input(device), case.cotangent(device)
    made = []

    def forward() -> None:
        made.append(layer.layer(x)[0])

    def backward() -> None:
        made.pop().backward(dy)

    for _ in range(2):
        forward()
        backward()
    return split({"forward": forward, "backward": backward}, runs)


def products(case: harness.Case, backward: bool) -> dict[str, float]:
    """Floating-point operations of the phases that multiply."""
    flop = case.flop(backward=False)
    of_x, of_h = (flop * size / (case.I + case.H) for size in (case.I, case.H))
    return {
        "input product": of_x,
        "recurrent product": of_h,
        **({"weight products": flop} if backward else {}),
    }


def report(case: harness.Case, splits: dict[str, Split], threads: int, peak: float | None) -> str:
    """A line for each phase that took time. `peak`: flop a second of all threads."""
    lines = [str(case)]
    for name, one in splits.items():
        lines.append(f"  {name:26}{one.wall * 1e3:9.2f} ms")
        flop, had = products(case, name == "backward"), one.wall * threads
        rest = {REST: had - sum(one.phases.values())}
        for phase, seconds in (one.phases | rest).items():
            if seconds == 0:
                continue
            line = f"    {phase:24}{seconds * 1e3:9.2f} ms {seconds / had:7.1%}"
            if peak and phase in flop:
                line += f"{flop[phase] / seconds / (peak / threads):8.2f} of peak"
            lines.append(line)
    return "\n".join(lines)


def peak_rate(case: harness.Case, device: torch.device) -> float | None:
    """Floating-point operations a second that the processor makes at most: median of five."""
    best = ceiling(case.torch_dtype, device)
    if best is None:
        return None
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        done = best.run()
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates)


def main() -> None:
    parser = options(__doc__.split("\n")[0])
    arguments = parser.parse_args()
    if arguments.device.type != "cpu":
        parser.error(f"argument --device: expected cpu, got '{arguments.device}'")
    if not arguments.default_heap:
        harness.with_retained_heap()
    torch.set_num_threads(arguments.threads)
    for case in harness.cases(arguments):
        splits = measure(case, arguments.device, arguments.runs)
        peak = peak_rate(case, arguments.device)
        print(report(case, splits, arguments.threads, peak), flush=True)


if __name__ == "__main__":
    main()

"""Random cases by the thousand: `make fuzz`. A few hundred of them run in test_properties.py.

    make fuzz                                    12,000 cases, in about five minutes on two cores
    make fuzz ARGS='--cases 100000 --seed 7'     others, or the same again
    python tests/fuzz.py --case 'Layer(...)'     one, as a failure prints it

Each share of the cases runs in a process of its own, which notes a case before it runs: a crash and
a hang are reported with their case like any other failure.
"""

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

SHARE = 1000  # cases of one process
PATIENCE_S = 900.0  # for one process; a hang is a failure too


class Property(NamedTuple):
    """What must hold of every case of a strategy."""

    strategy: Any
    check: Callable[[Any], list[str] | str | None]  # what is wrong, if anything
    part: float  # of all cases


def properties() -> dict[str, Property]:
    import property_cases as p
    import wrong_calls as w

    return {
        "layers": Property(p.layers(), p.disagreements, 0.4),
        "unseen": Property(p.layers(), p.sees_the_unseen, 0.1),
        "stacks": Property(p.stacks(), p.stack_disagreements, 0.2),
        "wrong calls": Property(w.wrong_calls(), w.complaint, 0.3),
    }


def examine(
    name: str,
    cases: int,
    seed: int,
    note: Callable[[Any], None] = lambda case: None,
    *,
    shrink: bool = True,
) -> int:
    """Puts a property to random cases, the same for the same seed. Returns how many.

    Raises:
        AssertionError: with the failing case, the simplest if `shrink`, as a note.
    """
    import hypothesis

    strategy, check, _ = properties()[name]
    phases = [hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * shrink
    count = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def holds(case):
        nonlocal count
        count += 1
        note(case)
        wrong = check(case)
        assert not wrong, wrong

    holds()
    return count


def examine_all_wrong_calls(note: Callable[[Any], None]) -> int:
    """Every wrong value of every argument, one at a time."""
    import wrong_calls

    calls = wrong_calls.every_wrong_call()
    for call in calls:
        note(call)
        wrong = wrong_calls.complaint(call)
        assert not wrong, wrong
    return len(calls)


# ---- Processes


class Outcome(NamedTuple):
    cases: int
    problem: str | None
    case: str | None  # that failed


def watch(command: list[str], journal: Path, patience_s: float = PATIENCE_S) -> Outcome:
    """Runs a process that notes its cases in `journal` and prints their number last."""
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=patience_s
        )
    except subprocess.TimeoutExpired:
        return Outcome(0, f"did not end in {patience_s:.0f} s", _last(journal))
    if done.returncode == 0:
        return Outcome(int(done.stdout.split()[-1]), None, None)
    if done.returncode < 0:
        crash = f"crash, {signal.Signals(-done.returncode).name}"
        return Outcome(0, f"{crash}\n{done.stderr[-2000:]}", _last(journal))
    return Outcome(0, done.stderr[-2000:], _last(journal))


def _last(journal: Path) -> str | None:
    return journal.read_text() if journal.exists() else None


def _work(name: str, cases: int, seed: int, journal: Path) -> None:
    """One share, in its own process."""
    import torch

    torch.set_num_threads(1)

    def note(case) -> None:
        journal.write_text(repr(case))

    every = name == "every wrong call"
    print(examine_all_wrong_calls(note) if every else examine(name, cases, seed, note))


def command_of(name: str, cases: int, seed: int, journal: Path) -> list[str]:
    share = json.dumps([name, cases, seed, str(journal)])
    return [sys.executable, __file__, "--share", share]


def shares(cases: int, seed: int) -> Iterable[tuple[str, int, int]]:
    """(property, cases, seed) of each process."""
    yield "every wrong call", 0, 0
    rng = random.Random(seed)
    for name, property in properties().items():
        left = round(cases * property.part)
        while left > 0:
            yield name, min(SHARE, left), rng.randrange(2**32)
            left -= SHARE


def reproduction(case: str | None) -> str:
    isa = os.environ.get("BAYESRNN_CPU_ISA")
    words = ["python", "tests/fuzz.py", "--case", case or ""]
    return ("" if isa is None else f"BAYESRNN_CPU_ISA={isa} ") + shlex.join(words)


def fuzz(cases: int, seed: int, workers: int) -> int:
    """Prints what fails and returns the exit status."""
    start = time.monotonic()
    print(f"fuzz: --cases {cases} --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:

        def run(index: int, share: tuple[str, int, int]) -> tuple[str, Outcome]:
            journal = Path(folder) / str(index)
            return share[0], watch(command_of(*share, journal), journal)

        runs = [pool.submit(run, i, share) for i, share in enumerate(shares(cases, seed))]
        total, failures = 0, 0
        for name, outcome in (future.result() for future in runs):
            total += outcome.cases
            if outcome.problem:
                failures += 1
                print(f"\n{name}: {outcome.problem}\n{reproduction(outcome.case)}", flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"fuzz: {total} cases held, {failures} shares failed, {minutes:.1f} minutes")
    return 1 if failures else 0


def again(text: str) -> int:
    """Runs the one case whose repr is `text`, in this process."""
    import property_cases
    import wrong_calls

    case = eval(text, vars(property_cases) | vars(wrong_calls))
    names = {"Layer": ("layers", "unseen"), "Stack": ("stacks",), "WrongCall": ("wrong calls",)}
    wrong = [properties()[name].check(case) for name in names[type(case).__name__]]
    print(*[w for w in wrong if w] or ["holds"], sep="\n")
    return 1 if any(wrong) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=12_000, help="(default: 12000)")
    parser.add_argument("--seed", type=int, default=None, help="(default: random)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="(default: cores)")
    parser.add_argument("--case", help="one case, as a failure prints it")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.share:
        name, cases, seed, journal = json.loads(arguments.share)
        _work(name, cases, seed, Path(journal))
        return 0
    if arguments.case:
        return again(arguments.case)
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    return fuzz(arguments.cases, seed, arguments.workers)


if __name__ == "__main__":
    sys.exit(main())

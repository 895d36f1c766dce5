"""Everything that needs a GPU, in at most eight minutes: tests, compute-sanitizer, benchmarks.

python -m bench.gpu [--out DIR] [--only STAGE ...]     or     make gpu

Each stage is a process with a time limit of its own; one that fails or hangs leaves the others
alone. DIR gets the output of the tests and a JSON file a benchmark; the summary comes last.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import bayesrnn_cuda as brnn

ROOT = Path(__file__).resolve().parent.parent
_SANITIZER = ("compute-sanitizer", "--target-processes", "all", "--error-exitcode", "9")
_SMALLEST = ("python", "tests/gpu/smallest.py")
_PYTEST = ("python", "-m", "pytest", "tests/gpu", "-vv", "--tb=short", "-p", "no:cacheprovider")
_LONG, _WORD, _BIG = "1024,16,768,768", "35,20,650,650", "35,20,1500,1500"


@dataclass(frozen=True)
class Stage:
    """A command, the seconds it may take, and the file of DIR that its output goes to."""

    name: str
    seconds: int
    command: tuple[str, ...]
    log: str | None = None

    @property
    def json(self) -> str:
        return f"{self.name}.json"


def benchmark(name: str, seconds: int, *options: str) -> Stage:
    return Stage(
        name, seconds, ("python", "-m", f"bench.{name}", "--out", f"{name}.json", *options)
    )


def timed(name: str, seconds: int, *options: str) -> Stage:
    """A benchmark of layers: begins no case in its last quarter, so that it ends by itself."""
    limit = str(seconds * 3 // 4)
    return benchmark(name, seconds, "--device", "cuda", "--no-figure", "--seconds", limit, *options)


STAGES = (
    Stage("tests", 150, _PYTEST, "tests.txt"),
    Stage("memcheck", 60, (*_SANITIZER, "--tool", "memcheck", *_SMALLEST), "memcheck.txt"),
    Stage("racecheck", 60, (*_SANITIZER, "--tool", "racecheck", *_SMALLEST), "racecheck.txt"),
    benchmark("roofline", 20),
    timed("vs_cudnn", 120, "--runs", "5"),
    timed("vs_loop", 50, "--runs", "3", "--shape", _LONG, "--shape", _WORD, "--shape", _BIG),
    timed("vs_peers", 20, "--runs", "5"),
)


@dataclass
class Outcome:
    stage: str
    verdict: str  # passed, failed, timed out, skipped
    seconds: float
    tail: str  # of the output

    def __str__(self) -> str:
        return f"{self.stage:10} {self.verdict:10} {self.seconds:5.0f} s  {self.note()}"

    def note(self) -> str:
        """The last line that says something."""
        lines = [line.strip("= \n") for line in self.tail.splitlines() if line.strip("= \n")]
        return lines[-1][:100] if lines else ""


def run(stage: Stage, out: Path) -> Outcome:
    """Runs a stage to its end or its limit, in a process group that can be killed as a whole."""
    if shutil.which(stage.command[0]) is None and stage.command[0] != "python":
        return Outcome(stage.name, "skipped", 0.0, f"{stage.command[0]} is not there")
    print(f"---- {stage.name}, at most {stage.seconds} s", flush=True)
    command = [sys.executable if part == "python" else part for part in stage.command]
    command = [str(out / part) if part == stage.json else part for part in command]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/gpu")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    if stage.name == "memcheck":
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # each tensor has bounds of its own
    log = out / (stage.log or f".{stage.name}.txt")
    began = time.monotonic()
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            verdict = "failed" if process.wait(stage.seconds) else "passed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            verdict = "timed out"
    text = log.read_text(errors="replace")
    if stage.log is None:
        print(text, end="")
        log.unlink()
    return Outcome(stage.name, verdict, time.monotonic() - began, told(stage, text)[-4000:])


def told(stage: Stage, text: str) -> str:
    """The output; of tests what failed, how many, and where they were if they did not end."""
    if stage.name != "tests":
        return text
    failed = re.findall(r"^(tests/\S.*) (?:FAILED|ERROR)", text, re.MULTILINE)
    passed = len(re.findall(r" PASSED\b", text))
    last = text.strip().splitlines()[-1] if text.strip() else ""
    where = "" if last.startswith("=") else f"; last: {last}"
    shown = "".join(f"{line}\n" for line in failed[:20])
    return f"{shown}{passed} passed, {len(failed)} failed{where}"


def shortened(out: Path) -> Iterator[str]:
    """Time of the layer with untied masks by that of the first variant, and per step."""
    for name in ("vs_cudnn", "vs_loop", "vs_peers"):
        path = out / f"{name}.json"
        if not path.exists():
            continue
        yield f"{name}: bayesrnn untied / first variant, forward and forward+backward; us a step"
        for case in json.loads(path.read_text())["results"]:
            title = "{cell} {T}/{B}/{I}/{H} {dtype}".format(**case)
            for row in case.get("rows", ()):
                if row["variant"] == "bayesrnn untied":
                    times = [row["forward_ms"], row["forward_backward_ms"]]
                    steps = "".join(f"{ms * 1e3 / case['T']:9.2f}" for ms in times)
                    ratios = "".join(
                        f"{row['ratio'][what]:7.2f}" for what in ("forward", "forward_backward")
                    )
                    yield f"  {title:34}{ratios}{steps}"
            if "rows" not in case:
                yield f"  {title:34}  {case.get('error', case.get('skipped'))}"[:110]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/gpu", metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in STAGES], metavar="STAGE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench.gpu: expected a GPU, got none (torch.cuda.is_available() is false)")
    if not brnn.info()["cuda_architectures"]:
        sys.exit("bench.gpu: expected a build with CUDA, got one without (bayesrnn info)")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for stage in STAGES:
        if not arguments.only or stage.name in arguments.only:
            outcomes.append(run(stage, out))
            print(outcomes[-1], flush=True)
            summary = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
            (out / "summary.json").write_text(summary + "\n")
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, results in {out}")
    print("\n".join([*shortened(out), "", *map(str, outcomes)]))
    sys.exit(any(outcome.verdict in ("failed", "timed out") for outcome in outcomes))


if __name__ == "__main__":
    main()

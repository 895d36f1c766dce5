"""What each part does, in order, and the seconds that each stage may take."""

import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from . import names
from .pool import Pool, Row, python

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {1: 330.0, 2: 300.0}
ENGINES = "tests/gpu/test_gpu_engines.py"
PROFILER = f"{ENGINES}::test_profiler"
KERNELS = "tests/gpu/test_gpu_kernels.py"
LIBRARY = ROOT / "bayesrnn_cuda" / "_C.abi3.so"
_CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Stage:
    """A pool of jobs, or one command.

    `settings` makes environment variables of all rows so far; `lacks` names what its own rows
    should have shown. Where all of an `essential` stage was skipped, nothing follows: there is no
    GPU, or no build for one.
    """

    name: str
    seconds: float
    work: Pool | tuple[str, ...]
    lacks: Callable[[list[Row]], list[str]] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    essential: bool = False
    settings: Callable[[list[Row]], dict[str, str]] | None = None


def tests(*arguments: str, workers: int = 12, **options: float | bool) -> Pool:
    """Tests of pytest as jobs."""
    command = python("-m", "bench.gpu.items", *arguments)
    return Pool(command, workers=max(2, min(workers, _CORES)), **options)


def sanitizer(tool: str, seconds: float) -> Stage:
    """Every engine once more, at small sizes, under compute-sanitizer."""
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *python(
        "tests/gpu/smallest.py"))  # fmt: skip
    # Without a cache every tensor is an allocation of its own, whose bounds are checked.
    caching = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),) if tool == "memcheck" else ()
    return Stage(tool, seconds, command, environment=caching)


def kernels_that_did_not_run(rows: list[Row]) -> list[str]:
    """By the profiler's word; one line for each kernel of the library."""
    if not LIBRARY.exists():
        return [f"no {LIBRARY.name} beside the package: which kernels it has is not known"]
    ran = {kernel for row in rows for kernel in row.get("kernels", ())}
    wanted = names.kernels(LIBRARY)
    if not wanted & ran:
        return [f"the profiler saw none of {len(wanted)} kernels"]
    capability = next((row["capability"] for row in rows if "capability" in row), None)
    if capability and capability[0] < 9:
        wanted = frozenset(name for name in wanted if "SharedExchange" not in name)
    return [f"did not run: {names.short(name)}" for name in sorted(wanted - ran)]


def without_a_broken_profiler(rows: list[Row]) -> dict[str, str]:
    """It may end the process; then the kernels are tested all the same, and are not named."""
    works = any(
        row.get("job") == PROFILER and row.get("outcome") == "passed" and "error" not in row
        for row in rows
    )
    return {} if works else {"BAYESRNN_PROFILER": "0"}


def part_1() -> list[Stage]:
    """Is it right, what are the rates, how fast is it: in 330 seconds."""
    facts = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    card = ("nvidia-smi", f"--query-gpu={facts}", "--format=csv,noheader")
    engines = tests(ENGINES, workers=10, silence=30.0, fresh=True)
    return [
        Stage("card", 10, card),
        Stage("engines", 60, engines, essential=True),
        Stage(
            "kernels",
            75,
            tests(KERNELS, silence=20.0),
            kernels_that_did_not_run,
            settings=without_a_broken_profiler,
        ),
        Stage("probes", 25, Pool(python("-m", "bench.gpu.probes"), silence=10.0)),
        Stage("speed", 150, Pool(python("-m", "bench.gpu.speed"), silence=20.0)),
        sanitizer("memcheck", 90),
    ]


def part_2(failed: dict[str, list[str]]) -> list[Stage]:
    """What failed before; then what part 1 leaves out. `failed`: jobs by the stages of part 1."""
    again = [
        replace(stage, name=f"{stage.name} again", lacks=None,
                work=replace(stage.work, only=tuple(failed[stage.name])))
        for stage in part_1()
        if stage.name in failed and isinstance(stage.work, Pool)
    ]  # fmt: skip
    compiled = ("-k", "compile")
    rest = ("-k", "not compile")
    whole = ("tests/gpu/test_gpu_runtime.py", "tests/gpu/test_gpu_integration.py")
    loop = python("-m", "bench.vs_loop", "--device", "cuda", "--no-figure", "--seconds", "40",
                  "--runs", "3", "--shape", "1024,16,768,768", "--shape", "35,20,650,650",
                  "--out", "{out}/vs_loop.json")  # fmt: skip
    return [
        *again,
        sanitizer("racecheck", 60),
        Stage("runtime", 75, tests(*whole, *rest, silence=60.0)),
        Stage("parity", 60, tests("tests/gpu/test_gpu_parity.py", silence=30.0)),
        Stage("vs_loop", 60, loop),
        Stage("compile", 60, tests(*whole, *compiled, workers=4, silence=60.0)),
    ]


def environment() -> dict[str, str]:
    """Of every stage: the package and the tests can be imported, and nothing is held back."""
    folders = [ROOT, ROOT / "tests", ROOT / "tests/gpu"]
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    scripts = sysconfig.get_path("scripts")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*map(str, folders), *before]),
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
    }

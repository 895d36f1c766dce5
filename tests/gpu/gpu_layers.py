"""Runs the sample layers of cases.py on a GPU, by every engine that takes them."""

import contextlib
import functools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cases
import torch
from cases import CELLS, Case, product

from bayesrnn_cuda import engines, ops

sys.path.append(str(Path(__file__).resolve().parents[2]))
from bench.gpu import names


class Precision(NamedTuple):
    """How numbers are stored, and whether float32 may go through TF32 on the way."""

    dtype: torch.dtype
    tf32: bool = False

    @property
    def rounding(self) -> torch.dtype:
        """The dtype of torch that rounds as coarsely: TF32 has the mantissa of float16."""
        return torch.float16 if self.tf32 else self.dtype

    def __str__(self) -> str:
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")


BFLOAT16, FLOAT16 = Precision(torch.bfloat16), Precision(torch.float16)
TF32, FLOAT32 = Precision(torch.float32, tf32=True), Precision(torch.float32)
FLOAT64 = Precision(torch.float64)
PRECISIONS = (BFLOAT16, FLOAT16, TF32, FLOAT32, FLOAT64)

# B, I, H of real layers: several blocks, k slices and batch tiles, sizes that fill no tile.
REAL_SIZES = (
    (20, 100, 200), (16, 768, 768), (20, 650, 650), (20, 1500, 1500), (128, 128, 128),
    (33, 65, 391), (1, 300, 300), (70, 30, 64), (16, 40, 1024),
)  # fmt: skip


def real() -> list[Case]:
    """Layers of the sizes that people use, with and without masks, lengths and reversal."""
    plain = product(cell=CELLS, T=(3,), masks=("untied", "tied", "none"))
    turned = product(cell=CELLS, T=(4,), masks=("untied",), lengths=(True,), reverse=(True,))
    return [
        replace(case, B=B, I=I, H=H)
        for case in [*plain, *turned]
        for B, I, H in REAL_SIZES  # noqa: E741
    ]


@contextlib.contextmanager
def tf32(on: bool):
    """torch's setting for float32 in recurrent layers."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if on else "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


def refusal(case: Case, precision: Precision, engine: str) -> str | None:
    """Why the engine does not take the case on this GPU; None if it does."""
    untied = case.masks in ("untied", "only_h", "tied_x_untied_h", "all_dropped")
    dtype = str(precision.dtype).removeprefix("torch.")
    sizes = (case.T, max(case.B, 1), case.I, case.H)
    try:
        torch.ops.bayesrnn.cuda_plan(
            case.cell, *sizes, dtype, "", precision.tf32, untied, True, engine
        )
    except RuntimeError as error:
        return str(error)
    return None


def takers(case: Case, precision: Precision) -> list[str]:
    return [e for e in engines.ON_CUDA if refusal(case, precision, e) is None]


def run(case: Case, precision: Precision, engine: str, seed: int = 0) -> dict:
    """cases.run on the GPU."""
    inputs = cases.sample(case, precision.dtype, seed, "cuda")
    with tf32(precision.tf32):
        return cases.run(case, inputs, engine)


@functools.lru_cache(maxsize=1)  # every engine of a case is compared with the same
def _references(case: Case, precision: Precision) -> tuple[list, list]:
    """(in float64, in the precision's own rounding) for every draw, on the GPU too: in float64 its
    products are as good as a CPU's, and wide layers are there in milliseconds."""
    inputs = [cases.sample(case, precision.dtype, seed, "cuda") for seed in seeds(case, precision)]
    exact = [cases.run(case, i.to(torch.float64), "reference") for i in inputs]
    if precision.rounding not in cases.EPS:
        return exact, []
    return exact, [cases.run(case, i.to(precision.rounding), "reference") for i in inputs]


def by_name(name: str) -> Precision:
    return next(p for p in PRECISIONS if str(p) == name)


@contextlib.contextmanager
def kernels_run(into: set[str]):
    """Collects the kernels of the package that run meanwhile, by the names in the library.

    With BAYESRNN_PROFILER=0 none: where CUPTI is broken, it may end the process.
    """
    if os.environ.get("BAYESRNN_PROFILER") == "0":
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profile:
            yield
            torch.cuda.synchronize()
    finally:
        shown = {event.name for event in profile.events() or ()}
        known = names.kernels(Path(ops.LIBRARY_PATH))
        into |= set(names.mangled(shown, known)) & known


def seeds(case: Case, precision: Precision) -> range:
    return cases.draws(case) if precision.rounding in cases.EPS else range(1)


def parity(case: Case, precision: Precision, engine: str) -> list[str]:
    """As cases.parity: where the engine disagrees with the float64 reference."""
    exact, own = _references(case, precision)
    actual = [run(case, precision, engine, seed) for seed in seeds(case, precision)]
    wrong = [f"{k}: dtype {t.dtype}" for k, t in actual[0].items() if t.dtype != precision.dtype]
    if wrong or not own:
        return wrong or cases.differences(actual[0], exact[0])
    return cases.low_precision_differences(actual, own, exact, precision.rounding)

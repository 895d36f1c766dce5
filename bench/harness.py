"""What every benchmark here shares: cases, a correctness check, interleaved medians, JSON, table.

A figure is a ratio of medians of interleaved runs in one process. Nothing is timed before its
results have been compared with the reference.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import benchmark

import bayesrnn_cuda as brnn

from .ceiling import Ceiling
from .layers import LAYERS
from .options import options
from .report import Row, draw, table

# Relative to the largest value; the reference runs in float64.
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9, torch.bfloat16: 0.1, torch.float16: 0.02}
# glibc keeps what it got instead of returning it to the system and faulting it in at the next call.
RETAINED_HEAP = {
    "MALLOC_TOP_PAD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


@dataclass(frozen=True)
class Case:
    """One layer: cell (a key of LAYERS), sizes, dtype, dropout probability of both masks, and
    whether "all" steps or the "last" alone have a gradient.
    """

    cell: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    dtype: str = "float32"
    p: float = 0.25
    loss: str = "all"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def input(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.torch_dtype
        return torch.randn(self.T, self.B, self.I, device=device, dtype=dtype).requires_grad_()

    def cotangent(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        dy = torch.randn(self.T, self.B, self.H, device=device, dtype=dtype or self.torch_dtype)
        if self.loss == "last":
            dy[:-1] = 0
        return dy

    def flop(self, backward: bool) -> float:
        """Of the products of forward, or of forward and backward."""
        gates = LAYERS[self.cell].cell.gates
        return 2.0 * self.T * self.B * gates * self.H * (self.I + self.H) * (3 if backward else 1)

    def __str__(self) -> str:
        last = " loss on the last step" if self.loss == "last" else ""
        return f"{self.cell} {self.T}/{self.B}/{self.I}/{self.H} {self.dtype}{last}"


# Shapes of language models that fit a CPU, and odd ones: H no multiple of 16, B of 1 and 7, I != H.
PAPER_SHAPES = ((200, 128, 128, 128), (35, 20, 200, 200), (35, 20, 650, 650), (35, 20, 1500, 1500))
ODD_SHAPES = ((50, 7, 100, 147), (100, 1, 300, 300), (30, 33, 47, 391))
# A GPU's: cuDNN's best cases, the Penn Treebank models, sentiment, Monte Carlo.
GPU_SHAPES = (
    (1024, 16, 768, 768), (1024, 16, 1024, 1024), (35, 20, 200, 200), (35, 20, 650, 650),
    (35, 20, 1500, 1500), (200, 128, 128, 128), (35, 2000, 650, 650),
)  # fmt: skip


@dataclass
class Variant:
    """Something to time: `layer(x)` gives (output, state). `check` compares it before that.

    `skipped` says why a variant is named and not measured.
    """

    name: str
    layer: Callable[[Tensor], Any]
    parameters: list[Tensor]
    check: Callable[[], None] | None = None
    dtype: torch.dtype | None = None  # if not the case's
    skipped: str | None = None


def ours(case: Case, device: torch.device, masks: str) -> Variant:
    """This package's layer with `masks` untied, tied or none."""
    p = 0.0 if masks == "none" else case.p
    layer = LAYERS[case.cell].ours(
        case.I, case.H, input_dropout=p, recurrent_dropout=p, tie_gates=masks == "tied",
        device=device, dtype=case.torch_dtype,
    )  # fmt: skip
    return Variant(
        f"bayesrnn {masks}",
        layer,
        list(layer.parameters()),
        lambda: _check_against_reference(case, layer, device),
    )


def torch_layer(case: Case, device: torch.device, dtype: torch.dtype | None = None) -> Variant:
    """torch's own layer, without masks: cuDNN on a GPU, oneDNN or ATen on a CPU."""
    layer = LAYERS[case.cell].theirs(case.I, case.H, device=device, dtype=dtype or case.torch_dtype)
    name = f"torch.nn.{case.cell.upper()}" + (f" {str(dtype)[6:]}" if dtype else "")
    return Variant(name, layer, list(layer.parameters()), dtype=dtype)


def eager_loop(case: Case, device: torch.device) -> Variant:
    """The masked layer as a Python loop over time steps: the reference."""
    layer = LAYERS[case.cell].ours(
        case.I, case.H, input_dropout=case.p, recurrent_dropout=case.p, engine="reference",
        device=device, dtype=case.torch_dtype,
    )  # fmt: skip
    return Variant("eager masked loop", layer, list(layer.parameters()))


def measure(
    case: Case,
    variants: Sequence[Variant],
    device: torch.device,
    runs: int,
    backward: bool = True,
    ceiling: Ceiling | None = None,
) -> list[Row]:
    """Checks, then times all variants in turn, `runs` rounds; ratios are to the first variant.

    Without `backward` forward alone. A `ceiling` has its turn among them.
    """
    rows, variants, every = checked(variants)
    dtypes = {variant.dtype for variant in variants}
    data = {dtype: (case.input(device, dtype), case.cotangent(device, dtype)) for dtype in dtypes}

    def forward(variant: Variant) -> None:
        with torch.no_grad():
            variant.layer(data[variant.dtype][0])

    def forward_backward(variant: Variant) -> None:
        x, dy = data[variant.dtype]
        x.grad = None
        for parameter in variant.parameters:
            parameter.grad = None
        variant.layer(x)[0].backward(dy)

    functions = {"forward": forward, **({"forward_backward": forward_backward} if backward else {})}
    for what, function in functions.items():
        calls: list[Callable] = [partial(function, variant) for variant in variants]
        samples = _interleaved(calls + ([ceiling.run] if ceiling else []), runs)
        first = statistics.median(samples[0])
        best = ceiling.run() / statistics.median(samples.pop()) if ceiling else None
        for row, times in zip(rows, samples, strict=True):
            setattr(row, f"{what}_ms", statistics.median(times) * 1e3)
            if runs > 1:
                quartiles = statistics.quantiles(times, n=4)
                setattr(row, f"{what}_spread", (quartiles[2] - quartiles[0]) * 1e3)
            row.ratio[what] = statistics.median(times) / first
        for row, variant, times in zip(rows, variants, samples, strict=True):
            if best and variant.dtype is None:
                rate = case.flop(what == "forward_backward") / statistics.median(times)
                row.gflops[what], row.of_peak[what] = rate / 1e9, rate / best
    if device.type == "cuda" and backward:
        _peaks(case, rows, variants, device, 1)
    return every


def measure_memory(
    case: Case, variants: Sequence[Variant], device: torch.device, runs: int
) -> list[Row]:
    """Checks, then the peak of forward and backward: medians of `runs`."""
    rows, variants, every = checked(variants)
    _peaks(case, rows, variants, device, runs)
    return every


def checked(variants: Sequence[Variant]) -> tuple[list[Row], list[Variant], list[Row]]:
    """After their checks: rows and variants to measure, and all rows, also those skipped."""
    every = [Row(variant.name, skipped=variant.skipped) for variant in variants]
    run = [variant for variant in variants if variant.skipped is None]
    for variant in run:
        if variant.check is not None:
            variant.check()
    return [row for row in every if row.skipped is None], run, every


def _interleaved(functions: Sequence[Callable[[], Any]], runs: int) -> list[list[float]]:
    """Seconds a call: one list per function, `runs` long."""
    timers = [
        benchmark.Timer("call()", globals={"call": function}, num_threads=torch.get_num_threads())
        for function in functions
    ]
    # Enough calls for 50 ms, so that a short case is not the clock's noise.
    calls = [max(1, int(0.05 / max(1e-6, timer.timeit(1).mean))) for timer in timers]
    times: list[list[float]] = [[] for _ in timers]
    for _ in range(runs):
        for timer, number, into in zip(timers, calls, times, strict=True):
            into.append(timer.timeit(number).mean)
    return times


def _check_against_reference(case: Case, layer: nn.Module, device: torch.device) -> None:
    """Output and every gradient with the same masks, in float64; on a CPU of a short sequence.

    On a GPU the engine depends on T: what is timed must be what is checked.
    """
    short = case if device.type == "cuda" else replace(case, T=min(case.T, 8))
    x, dy = short.input(device).detach(), short.cotangent(device)
    masks = layer.sample_masks(case.B)
    cls = type(layer)
    exact = cls(case.I, case.H, engine="reference", device=device, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    results = []
    for module, dtype in ((layer, case.torch_dtype), (exact, torch.float64)):
        inputs = [x.to(dtype).requires_grad_(), *module.parameters()]
        y = module(inputs[0], masks=masks)[0]
        results.append([y, *torch.autograd.grad(y, inputs, dy.to(dtype))])
    for name, got, want in zip(("y", "x", "w_ih", "w_hh", "b_ih", "b_hh"), *results, strict=True):
        error = (got.double() - want).abs().max()
        if error != 0:  # all of w_hh's gradient is zero where T = 1
            error /= want.abs().max()
        if not error <= tolerance(case.torch_dtype, device):
            raise AssertionError(f"{case}: {name} is off by {error:.1e} of its largest value")


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """Relative to the largest value. TF32, which a GPU takes by default, rounds as float16 does."""
    tf32 = device.type == "cuda" and torch.backends.cudnn.rnn.fp32_precision == "tf32"
    return TOLERANCE[torch.float16 if dtype == torch.float32 and tf32 else dtype]


def peak_memory(variant: Variant, case: Case, device: torch.device) -> int:
    """Bytes that one forward and backward takes beyond what is there before it."""
    x, dy = case.input(device, variant.dtype), case.cotangent(device, variant.dtype)
    variant.layer(x)[0].backward(dy)  # first call: what libraries keep for good
    x.grad = None
    for parameter in variant.parameters:
        parameter.grad = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        variant.layer(x)[0].backward(dy)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what lies free must be faulted in again to count
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    variant.layer(x)[0].backward(dy)
    return _resident("VmHWM") - before


def _peaks(
    case: Case, rows: list[Row], variants: list[Variant], device: torch.device, runs: int
) -> None:
    for row, variant in zip(rows, variants, strict=True):
        row.peak_bytes = int(
            statistics.median(peak_memory(variant, case, device) for _ in range(runs))
        )
        row.ratio["peak"] = row.peak_bytes / max(1 << 12, rows[0].peak_bytes)  # a page: not 0


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status: expected a line {name}, got none")


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on: processor, threads, versions, heap."""
    processor = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    facts = {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "retained_heap": "MALLOC_TOP_PAD_" in os.environ,
        **brnn.info(),
    }
    facts.pop("library")
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["cuda"] = torch.version.cuda
        facts["float32"] = torch.backends.cudnn.rnn.fp32_precision
    return facts


def with_retained_heap() -> None:
    """Starts this program again with RETAINED_HEAP unless it is set: malloc reads it at start."""
    if not set(RETAINED_HEAP) <= set(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | RETAINED_HEAP)


def as_record(case: Case, rows: Sequence[Row]) -> dict[str, Any]:
    """A result as plain values, for `save`."""
    return {**asdict(case), "rows": [asdict(row) for row in rows]}


def save(path: Path, device: torch.device, records: list[dict[str, Any]]) -> None:
    """JSON with machine and versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(device), "results": records}
    path.write_text(json.dumps(document, indent=1) + "\n")


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """The cases that the options name; without any, all shapes in the device's usual dtype."""
    gpu = arguments.device.type == "cuda"
    shapes = arguments.shape or (GPU_SHAPES if gpu else PAPER_SHAPES + ODD_SHAPES)
    for dtype in arguments.dtype or ("bfloat16" if gpu else "float32",):
        for cell in arguments.cell or ("lstm", "gru"):
            for shape in shapes:
                yield Case(cell, *shape, dtype=dtype, loss=arguments.loss)


def compare(
    description: str,
    variants: Callable[[Case, torch.device], Sequence[Variant]],
    arguments: argparse.Namespace | None = None,
    measure: Callable[..., list[Row]] = measure,
) -> None:
    """The command line of a benchmark: measures `variants` in every case, prints, saves, draws.

    A case that fails is recorded with its error and leaves the others alone; the exit status tells.
    """
    arguments = arguments or options(description).parse_args()
    device = arguments.device
    if device.type == "cpu" and not arguments.default_heap:
        with_retained_heap()
    torch.set_num_threads(arguments.threads)
    results, records, began = [], [], time.monotonic()
    for case in cases(arguments):
        if arguments.seconds and time.monotonic() - began > arguments.seconds:
            records.append({**asdict(case), "skipped": f"not begun in {arguments.seconds:.0f} s"})
        else:
            try:
                rows = measure(case, variants(case, device), device, arguments.runs)
                results.append((case, rows))
                records.append(as_record(case, rows))
                print(table(results[-1:], head=len(results) == 1), flush=True)
            except (AssertionError, RuntimeError, ValueError) as error:
                records.append({**asdict(case), "error": f"{type(error).__name__}: {error}"})
        for what in records[-1].keys() & {"error", "skipped"}:
            print(f"{case}: {what}: {records[-1][what]}", flush=True)
        if arguments.out:
            save(arguments.out, device, records)  # after every case: what is there survives a stop
    if arguments.out:
        print(f"results: {arguments.out}")
        if results and not arguments.no_figure:
            draw(arguments.out)
    sys.exit(any("error" in record for record in records))

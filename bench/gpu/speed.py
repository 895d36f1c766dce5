"""A worker whose jobs are layers to time: python -m bench.gpu.speed [--device cpu]

A job is a cell, a shape and a dtype: this package's layer with masks, and torch's own without, in
that dtype and in float16, where cuDNN is at its best. Every variant is checked first, against one
float64 reference of the shape; its error is told with its times. Then all are timed in turns by the
wall clock, then as CUDA graphs. What fails is left out by name, and the others go on.
"""

import argparse
import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn
from bayesrnn_cuda.masks import LayerMasks

from ..layers import LAYERS, Layers
from .device import Device, device_of
from .worker import Send, one_line, serve

P = 0.25
ROUNDS = 5
TURN = 0.01  # seconds of one variant's calls in one round, about
PIECE = 256  # sequences of the reference at a time: its graph holds every step
SHAPES = (
    (1024, 16, 768, 768), (35, 20, 650, 650), (200, 128, 128, 128), (1024, 16, 1024, 1024),
    (35, 20, 1500, 1500), (35, 20, 200, 200), (35, 2000, 650, 650), (128, 256, 32, 512),
)  # fmt: skip
RESETS = {(128, 256, 32, 512): 0.02}  # the share of steps that begin a segment, as in recurrent PPO
FORCED = (128, 768)  # H at which every engine is timed beside what the plan takes
# What the plan would rather have measured, in the environment: docs/cuda_engines.md. It is asked at
# one long layer in bfloat16, beside the plan's own choice.
SETTINGS = {
    "ahead 3": {"BAYESRNN_BACKWARD_AHEAD": "3"},
    "steps 256": {"BAYESRNN_GRID_STEPS": "256"},
    "steps 128": {"BAYESRNN_GRID_STEPS": "128"},
}
SET = (1024, 16, 768, 768)
# How float32 is multiplied: torch's defaults (TF32 in recurrent layers), and TF32 everywhere.
DTYPES = {"bfloat16": "ieee", "float16": "ieee", "float32": "ieee", "float32+tf32": "tf32"}
# Of the norm; the tests of the kernels are the strict ones.
LIMIT = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-2}


@dataclass(frozen=True)
class Layer:
    """One cell and shape, in float64 numbers that every dtype here holds exactly."""

    cell: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int

    @property
    def layers(self) -> Layers:
        return LAYERS[self.cell]

    def __str__(self) -> str:
        return f"{self.cell} {self.T}/{self.B}/{self.I}/{self.H}"


@dataclass
class Numbers:
    """What a layer is given, and what comes of it."""

    x: Tensor
    dy: Tensor
    weights: list[Tensor]  # weight_ih, weight_hh, bias_ih, bias_hh
    masks: LayerMasks
    resets: dict[str, Tensor]  # the argument, if there are any
    results: list[Tensor] = field(default_factory=list)  # y, and the gradients of x and weights


@functools.cache
def numbers(layer: Layer, device: str) -> Numbers:
    """Drawn once for all dtypes, with the results in float64."""
    generator = torch.Generator(device).manual_seed(layer.T * layer.H)
    T, B, I, H, rows = layer.T, layer.B, layer.I, layer.H, layer.layers.cell.gates * layer.H  # noqa: E741

    def rounded(t: Tensor) -> Tensor:  # to what bfloat16 and float16 both hold
        return t.to(torch.bfloat16).to(torch.float16).double()

    def normal(*shape: int) -> Tensor:
        return rounded(torch.randn(shape, generator=generator, device=device))

    def uniform(*shape: int) -> Tensor:
        return rounded((2 * torch.rand(shape, generator=generator, device=device) - 1) / H**0.5)

    def keep(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device) >= P

    weights = [uniform(rows, I), uniform(rows, H), uniform(rows), uniform(rows)]
    masks = LayerMasks(
        keep(layer.layers.cell.gates, B, I),
        keep(layer.layers.cell.gates, B, H),
        1 / (1 - P),
        1 / (1 - P),
    )
    resets = {}
    if rate := RESETS.get((T, B, I, H)):
        resets["resets"] = torch.rand(T, B, generator=generator, device=device) < rate
    given = Numbers(normal(T, B, I), normal(T, B, H), weights, masks, resets)
    given.results = exact(layer, given)
    return given


def exact(layer: Layer, given: Numbers) -> list[Tensor]:
    """y and all gradients in float64, by pieces of the batch."""
    weights = [w.clone().requires_grad_() for w in given.weights]
    y, dx = torch.empty_like(given.dy), torch.empty_like(given.x)
    for begin in range(0, layer.B, PIECE):
        part = slice(begin, begin + PIECE)
        x = given.x[:, part].clone().requires_grad_()
        masks = given.masks._replace(
            keep_x=given.masks.keep_x[:, part], keep_h=given.masks.keep_h[:, part]
        )
        zero = x.new_zeros(x.shape[1], layer.H)
        states = (zero,) * layer.layers.cell.states
        resets = {name: t[:, part] for name, t in given.resets.items()}
        out = layer.layers.reference(x, *states, brnn.LayerWeights(*weights), masks, **resets)[0]
        out.backward(given.dy[:, part])
        y[:, part], dx[:, part] = out.detach(), x.grad
    return [y, dx, *(w.grad for w in weights)]


# ---- variants


@dataclass
class Variant:
    """A layer to time. `facts` are told with its times."""

    name: str
    module: nn.Module
    dtype: torch.dtype
    checked: bool
    facts: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def set(self) -> Iterator[None]:
        """The environment in which it runs."""
        values = SETTINGS.get(self.name, {})
        before = {name: os.environ[name] for name in values if name in os.environ}
        os.environ.update(values)
        try:
            yield
        finally:
            for name in values:
                del os.environ[name]
            os.environ.update(before)


def variants(layer: Layer, dtype: torch.dtype, device: str) -> Iterator[Callable[[], Variant]]:
    """The names, and what makes each: an engine may refuse."""
    names = ["torch", *(["torch float16"] if dtype != torch.float16 else []), "auto"]
    if layer.H in FORCED and device == "cuda":
        names += [engine for engine in brnn.engines.ON_CUDA if takes(engine, layer, dtype)]
    if (layer.T, layer.B, layer.I, layer.H) == SET and dtype == torch.bfloat16 and device == "cuda":
        names += SETTINGS
    for name in names:
        yield functools.partial(made, name, layer, dtype, device)


def takes(engine: str, layer: Layer, dtype: torch.dtype) -> bool:
    """Whether the engine has a plan for the layer on this GPU."""
    sizes = (layer.T, layer.B, layer.I, layer.H, str(dtype).removeprefix("torch."))
    tf32 = torch.backends.cudnn.rnn.fp32_precision == "tf32"
    try:
        torch.ops.bayesrnn.cuda_plan(layer.cell, *sizes, "", tf32, True, True, engine)
    except RuntimeError:
        return False
    return True


def made(name: str, layer: Layer, dtype: torch.dtype, device: str) -> Variant:
    own = torch.float16 if name == "torch float16" else dtype
    sizes, options = (layer.I, layer.H), {"device": device, "dtype": own}
    facts: dict[str, Any] = {}
    if name.startswith("torch"):
        module = layer.layers.theirs(*sizes, **options)
    else:
        dropout = {"input_dropout": P, "recurrent_dropout": P}
        engine = "auto" if name in SETTINGS else name
        module = layer.layers.ours(*sizes, engine=engine, **dropout, **options)
        facts = planned(name, layer, dtype, device)
    weights = numbers(layer, device).weights
    with torch.no_grad():
        for parameter, weight in zip(module.parameters(), weights, strict=True):
            parameter.copy_(weight)
    return Variant(name, module, own, not name.startswith("torch"), facts)


def planned(name: str, layer: Layer, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The engines forward and backward, and the model's time of a step."""
    sizes = (layer.cell, layer.T, layer.B, layer.I, layer.H, dtype, torch.device(device))
    plan = brnn.plan(*sizes)
    if name != "auto" or device == "cpu":
        return {"engine": name}
    forward, backward = (plan.details[pass_] for pass_ in ("forward", "backward"))
    first, second = plan.engine, backward["engine"]
    return {
        "engine": first if first == second else f"{first}/{second}",
        "model_us": [forward["microseconds_per_step"], backward["microseconds_per_step"]],
    }


def norm_error(variant: Variant, layer: Layer, device: str) -> float:
    """The largest of ||result - exact|| / ||exact|| over output and gradients, masks given."""
    given = numbers(layer, device)
    x = given.x.to(variant.dtype).requires_grad_()
    parameters = list(variant.module.parameters())
    y = variant.module(x, masks=[given.masks], **given.resets)[0]
    results = [y, *torch.autograd.grad(y, [x, *parameters], given.dy.to(variant.dtype))]
    errors = [
        ((got.double() - want).norm() / want.norm()).item()
        for got, want in zip(results, given.results, strict=True)
    ]
    return max(errors, key=lambda e: e if e == e else float("inf"))  # NaN is the largest


# ---- times


def calls_of(variant: Variant, layer: Layer, device: str) -> dict[str, Callable[[], object]]:
    """What is timed: forward alone, and forward with every gradient."""
    given = numbers(layer, device)
    x, dy = given.x.to(variant.dtype), given.dy.to(variant.dtype)
    with_gradient = x.clone().requires_grad_()
    wanted = [with_gradient, *variant.module.parameters()]
    resets = given.resets if variant.checked else {}  # torch's layers have none

    def forward() -> object:
        with torch.no_grad():
            return variant.module(x, **resets)[0]

    def forward_backward() -> object:
        return torch.autograd.grad(variant.module(with_gradient, **resets)[0], wanted, dy)

    return {"forward": forward, "forward_backward": forward_backward}


class Case:
    """A job at work. `doing` tells the pool what to leave out if it never returns."""

    def __init__(self, layer: Layer, dtype: torch.dtype, device: Device, skip: Collection[str],
                 send: Send):  # fmt: skip
        self.layer, self.dtype, self.device, self.skip, self.send = layer, dtype, device, skip, send

    def run(self) -> None:
        ready = [v for make in variants(self.layer, self.dtype, self.device.name)
                 if (v := self.prepared(make))]  # fmt: skip
        functions = {v.name: calls_of(v, self.layer, self.device.name) for v in ready}
        self.time(ready, functions, "")
        graphs: dict[str, dict[str, Callable[[], object]]] = {}
        for variant in ready:
            with self.attempt(f"graph {variant.name}") as begun:
                if begun:
                    with variant.set():
                        graphs[variant.name] = {
                            what: self.device.captured(f)
                            for what, f in functions[variant.name].items()
                        }
        self.time([v for v in ready if v.name in graphs], graphs, "graph_")

    def prepared(self, make: functools.partial) -> Variant | None:
        """A variant that is there, is right, and is warm; else a row says why not."""
        name = make.args[0]
        with self.attempt(name) as begun:
            if not begun:
                return None
            variant = make()
            with variant.set():
                self.check(variant)
                calls = calls_of(variant, self.layer, self.device.name)
                variant.facts["peak_bytes"] = self.device.peak(calls["forward_backward"])
            return variant
        return None

    def check(self, variant: Variant) -> None:
        if not variant.checked:
            return
        error = variant.facts["norm_error"] = norm_error(variant, self.layer, self.device.name)
        if not error <= LIMIT[variant.dtype]:
            raise AssertionError(f"off by {error:.1e} of the reference's norm")

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[bool]:
        """False where the name is to be left out; an error becomes a row."""
        if name in self.skip:
            yield False
            return
        self.send(doing=name)
        try:
            yield True
            self.device.synchronize()
        except (RuntimeError, AssertionError, ValueError) as error:
            self.send(row={"variant": name, "error": one_line(error)})
            self.device.synchronize()  # raises where CUDA is of no more use: that ends the job

    def time(self, ready: Sequence[Variant], functions: dict, prefix: str) -> None:
        """A row for each variant, after rounds in which all take turns."""
        times: dict[tuple[str, str], list[float]] = {}
        for what in ("forward", "forward_backward"):
            counts = {}
            for v in ready:
                with v.set():
                    counts[v.name] = self.count(functions[v.name][what])
            for _ in range(ROUNDS):
                for v in ready:
                    self.send(doing=f"graph {v.name}" if prefix else v.name)
                    with v.set():
                        turn = self.turn(functions[v.name][what], counts[v.name])
                    times.setdefault((v.name, what), []).append(turn)
        for v in ready:
            row: dict[str, Any] = {"variant": v.name, "T": self.layer.T, **v.facts}
            for what in ("forward", "forward_backward"):
                sample = times[v.name, what]
                row[f"{prefix}{what}_ms"] = statistics.median(sample) * 1e3
                row[f"{prefix}{what}_spread"] = (max(sample) - min(sample)) * 1e3
            self.send(row=row)

    def count(self, function: Callable[[], object]) -> int:
        """Calls of a turn."""
        self.turn(function, 1)
        return max(1, int(TURN / max(self.turn(function, 1), 1e-6)))

    def turn(self, function: Callable[[], object], calls: int) -> float:
        """Seconds a call."""
        self.device.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            function()
        self.device.synchronize()
        return (time.perf_counter() - began) / calls


# ---- jobs


def jobs(shapes: Sequence[tuple[int, int, int, int]] = SHAPES) -> dict[str, tuple[Layer, str]]:
    """By name, what matters most first."""
    return {
        f"{layer} {dtype}": (layer, dtype)
        for dtype in DTYPES
        for shape in shapes
        for cell in ("lstm", "gru")
        for layer in [Layer(cell, *shape)]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", action="append", help="T,B,I,H in place of all")
    arguments = parser.parse_args()
    device = device_of(arguments.device)
    given = [tuple(map(int, text.split(","))) for text in arguments.shape or ()]
    table = jobs(given or SHAPES)

    def run(job: str, skip: Collection[str], send: Send) -> None:
        layer, setting = table[job]
        torch.backends.cuda.matmul.fp32_precision = DTYPES[setting]
        dtype = getattr(torch, setting.split("+")[0])
        Case(layer, dtype, device, skip, send).run()

    serve(list(table), run)


if __name__ == "__main__":
    main()

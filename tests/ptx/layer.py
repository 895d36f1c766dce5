"""Runs a case of tests/cases.py through the host code and the kernels of the CUDA engines.

Memory is what a GPU might give: 16-byte aligned and no more, every number NaN. Everything that the
layer must write is NaN before, and NaN stands past the lengths, so a missing write or a read past a
length shows in the results; an access outside of what was given is a report of the machine.
"""

import contextlib
import ctypes
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import cases
import pytest
import torch
from cases import Case, Inputs
from kernel_cases import environment
from machine import Machine
from torch import Tensor

from bayesrnn_cuda import reference
from bayesrnn_cuda.masks import LayerMasks

PRECISIONS = ("bfloat16", "float16", "tf32", "float32", "float64")
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
}
# Cells and the precisions in which they have persistent kernels.
KERNELS = [(c, p) for c in ("lstm", "gru") for p in PRECISIONS[:3]] + [("rnn", "bfloat16")]
NUMBERS = ("cell", "precision", "T", "B", "I", "H", "reverse", "gate_stride_x", "gate_stride_h")
POINTERS = (
    *("lengths", "resets", "keep_x", "keep_h", "x", "h0", "c0"),
    *("weight_ih", "weight_hh", "bias_ih", "bias_hh", "y", "h_n", "c_n", "gates", "saved"),
    *("dy", "dh_n", "dc_n", "dx", "dh0", "dc0"),
    *("dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh"),
)


class Call(ctypes.Structure):  # machine/driver.cpp
    _fields_ = (
        [(k, ctypes.c_int64) for k in (*NUMBERS, "save")]
        + [("scale_x", ctypes.c_double), ("scale_h", ctypes.c_double)]
        + [(k, ctypes.c_void_p) for k in POINTERS]
    )


class CutStruct(ctypes.Structure):
    _fields_ = [("engine", ctypes.c_char_p)] + [
        (k, ctypes.c_int64)
        for k in ("multiprocessors", "chunks", "k_warps", "unit_tiles", "looped", "groups", "fused")
    ]


@dataclass(frozen=True)
class How:
    """The engine, and how it is cut where the plan would do it otherwise. Tilings: chunks of k,
    k warps, unit tiles of a block, looped."""

    engine: str = "auto"
    multiprocessors: int = 0  # of the device; 0: as many as it has
    forward: tuple[int, int, int, bool] | None = None
    backward: tuple[int, int, int, bool] | None = None
    groups: int = 1  # of batch tiles
    fused: bool = False
    ahead: int = 0  # of backward; 0: as the plan does it
    grid_steps: int = 0  # of a launch; 0 likewise

    def of(self, backward: bool) -> CutStruct:
        cut = self.backward if backward else self.forward
        numbers = (*cut, self.groups, self.fused and not backward) if cut else (0,) * 6
        return CutStruct(self.engine.encode(), self.multiprocessors, *numbers)


@contextlib.contextmanager
def environment_of(how: How) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(how.ahead, how.grid_steps).items():
            patch.setenv(name, value)
        yield


@dataclass
class Run:
    """What a layer gave: the results of cases.run, the plans, the kernels that ran."""

    results: dict[str, Tensor] = field(default_factory=dict)
    plans: list[dict] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    scratch: list[int] = field(default_factory=list)  # bytes


class Memory:
    def __init__(self, machine: Machine, dtype: torch.dtype):
        self.machine, self.dtype = machine, dtype
        self.blocks: list[Tensor] = []
        machine.clear_memory()

    def new(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of NaN."""
        dtype = dtype or self.dtype
        size = prod(shape) * dtype.itemsize
        block = torch.full((size + 96,), 0xFF, dtype=torch.uint8)
        self.blocks.append(block)
        start = -block.data_ptr() % 64 + 16
        t = block[start : start + size].view(dtype).view(shape)
        self.machine.add_memory(name, t)
        return t

    def copy(self, name: str, values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return self.new(name, *values.shape, dtype=values.dtype).copy_(values)


def run(
    machine: Machine, case: Case, precision: str, inputs: Inputs, how: How, *, save: bool = True
) -> Run:
    """Without `save` only forward runs and keeps nothing."""
    T, B, H, G = case.T, case.B, case.H, case.gates
    memory = Memory(machine, DTYPES[precision])
    fields = read_fields(case, inputs, memory)
    given = {k: t.clone() for k, t in fields.items() if isinstance(t, Tensor)}
    outputs = {"y": memory.new("y", T, B, H), "h_n": memory.new("h_n", B, H)}
    if "c_n" in case.outputs:
        outputs["c_n"] = memory.new("c_n", B, H)
    saved = {}
    if save:
        saved["gates"] = memory.new("gates", T, B, G * H)
        if case.kind.saved and all(case.flags.values()):
            saved["saved"] = memory.new("saved", T, B, H)
    made = Run(outputs)
    call(machine, case, precision, how, fields | outputs | saved, made, save=save, backward=False)
    if save:
        check_zero_outside(saved, inputs.lengths)
        made.results |= backward(machine, case, precision, inputs, how, memory,
                                 fields | saved | {"y": outputs["y"]}, made)  # fmt: skip
    for name, before in given.items():
        now = fields[name]
        assert torch.equal(now.view(torch.uint8), before.view(torch.uint8)), f"{name}: was written"
    return made


def backward(
    machine: Machine, case: Case, precision: str, inputs: Inputs, how: How, memory: Memory,
    fields: dict, made: Run,
) -> dict[str, Tensor]:  # fmt: skip
    names = {"y": "dy", "h_n": "dh_n", "c_n": "dc_n"}
    given = {v: memory.copy(v, inputs.cotangents.get(k)) for k, v in names.items()}
    poison_outside(given["dy"], inputs.lengths)
    wanted = [k for k in inputs.differentiable() if k not in case.frozen or k != "x"]
    gradients = {f"d{k}": memory.new(f"d{k}", *inputs.differentiable()[k].shape) for k in wanted}
    call(machine, case, precision, how, fields | given | gradients, made, save=True, backward=True)
    return {f"d_{k}": gradients[f"d{k}"] for k in wanted if k not in case.frozen}


def read_fields(case: Case, inputs: Inputs, memory: Memory) -> dict:
    """What forward and backward read alike."""
    masks = inputs.masks or LayerMasks()

    def keep(name: str, mask: Tensor | None) -> Tensor | None:  # the op layer makes them dense
        return None if mask is None else memory.copy(name, mask.contiguous())

    def stride(mask: Tensor | None) -> int:
        return 0 if mask is None or mask.shape[0] == 1 else mask[0].numel()

    x = memory.copy("x", inputs.x)
    poison_outside(x, inputs.lengths)
    states = {"h0": inputs.h0, "c0": inputs.c0}
    lengths = (
        None if inputs.lengths is None else memory.copy("lengths", inputs.lengths.contiguous())
    )
    return {
        "lengths": memory.copy("lengths", lengths), "x": x,
        "resets": memory.copy("resets", resets_of(case, inputs)),
        "keep_x": keep("keep_x", masks.keep_x), "gate_stride_x": stride(masks.keep_x),
        "keep_h": keep("keep_h", masks.keep_h), "gate_stride_h": stride(masks.keep_h),
        "scale_x": float(masks.scale_x), "scale_h": float(masks.scale_h),
        **{k: memory.copy(k, t) for k, t in (states | inputs.weights._asdict()).items()},
    }  # fmt: skip


def resets_of(case: Case, inputs: Inputs) -> Tensor | None:
    """Where zero enters a step. Past a length they say nothing: they are all set there."""
    resets = reference.entering(inputs.resets, inputs.lengths, case.reverse)
    if resets is not None and inputs.lengths is not None:
        resets = resets | outside(case.T, inputs.lengths)
    return resets


def call_of(case: Case, precision: str, fields: dict, *, save: bool = True) -> Call:
    """The argument of a call: numbers, and tensors by address."""
    sizes = {k: getattr(case, k) for k in ("T", "B", "I", "H", "reverse")}
    plain = {k: v for k, v in fields.items() if not isinstance(v, Tensor) and k not in POINTERS}
    c = Call(cell=cases.CELLS.index(case.cell), precision=PRECISIONS.index(precision), save=save,
             **sizes, **plain)  # fmt: skip
    for name in POINTERS:
        value = fields.get(name)
        setattr(c, name, value.data_ptr() if isinstance(value, Tensor) else None)
    return c


def call(
    machine: Machine, case: Case, precision: str, how: How, fields: dict, made: Run, *,
    save: bool, backward: bool,
) -> None:  # fmt: skip
    c = call_of(case, precision, fields, save=save)
    library = machine.library
    library.set_loader(machine.loader)
    with environment_of(how):
        code = library.run_layer(ctypes.byref(c), ctypes.byref(how.of(backward)), int(backward))
    made.kernels += machine.launched()
    machine.check(code)
    made.plans.append(json.loads(library.last_plan().decode()))
    made.scratch.append(library.last_scratch())


def products(
    machine: Machine, case: Case, precision: str, fields: dict, dz: Tensor | None = None
) -> None:
    """The products over all time steps alone: the input part, or the gradients from dz."""
    c = call_of(case, precision, fields)
    machine.library.set_loader(machine.loader)
    address = ctypes.c_void_p(None if dz is None else dz.data_ptr())
    machine.check(machine.library.run_products(ctypes.byref(c), dz is not None, address))


def dry(machine: Machine, case: Case, precision: str, how: How, *, backward: bool) -> list[str]:
    """The kernels of a pass on a machine whose device is dry: no memory is touched."""
    untied = case.masks == "untied" and case.gates > 1  # else one set of masks
    strides = {f"gate_stride_{k}": untied * case.B * n for k, n in (("x", case.I), ("h", case.H))}
    c = call_of(case, precision, {"scale_x": 1.0, "scale_h": 1.0} | strides)
    for name in POINTERS:
        is_mask = name.startswith("keep") and case.masks == "none"
        is_reset = name == "resets" and case.resets == "none"
        setattr(c, name, None if name == "lengths" or is_mask or is_reset else 4096)
    machine.library.set_loader(machine.loader)
    with environment_of(how):
        code = machine.library.run_layer(ctypes.byref(c), ctypes.byref(how.of(backward)), backward)
    kernels = machine.launched()
    machine.check(code)
    return kernels


def outside(T: int, lengths: Tensor) -> Tensor:
    """[T, B]: past the length."""
    return torch.arange(T).unsqueeze(1) >= lengths


def poison_outside(t: Tensor | None, lengths: Tensor | None) -> None:
    if t is not None and lengths is not None:
        t[outside(t.shape[0], lengths)] = torch.nan


def check_zero_outside(saved: dict[str, Tensor], lengths: Tensor | None) -> None:
    for name, t in saved.items():
        if lengths is not None:
            assert (t[outside(t.shape[0], lengths)] == 0).all(), f"{name}: not 0 past a length"


def own_dtype(precision: str) -> torch.dtype:
    """In which the reference shows how far rounding goes: TF32 has float16's mantissa."""
    return torch.float16 if precision == "tf32" else DTYPES[precision]


def differences(
    machine: Machine, case: Case, precision: str, how: How, made: list[Run] | None = None
) -> list[str]:
    """A line for each result whose error against the float64 reference exceeds twice what the
    reference itself has in that dtype. `made` collects the runs."""
    dtype = own_dtype(precision)
    made = [] if made is None else made
    if dtype not in cases.EPS:
        inputs = cases.sample(case, dtype)
        made.append(run(machine, case, precision, inputs, how))
        expected = cases.run(case, inputs.to(torch.float64), "reference")
        return cases.differences(made[-1].results, expected)
    samples = [cases.sample(case, dtype, seed) for seed in cases.draws(case)]
    made += [run(machine, case, precision, i.to(DTYPES[precision]), how) for i in samples]
    return cases.low_precision_differences(
        [m.results for m in made[-len(samples) :]],
        [cases.run(case, inputs, "reference") for inputs in samples],
        [cases.run(case, inputs.to(torch.float64), "reference") for inputs in samples],
        dtype,
    )

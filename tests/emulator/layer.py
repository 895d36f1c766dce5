"""Runs a case of tests/cases.py through a binding of the CUDA engines in the emulator.

A binding gives two functions (cell, dtype, fields): forward and backward of one layer. `fields`
holds the members of Forward and Backward in csrc/layer.h by name: numbers, and tensors by address
(C++ side: bind_layer.h). Everything that the layer must write is NaN before, and NaN stands around
every tensor and past the lengths, so a stray read or a missing write shows in the results.
"""

from collections.abc import Callable
from math import prod

import cases
import torch
from cases import Case, Inputs
from torch import Tensor

from bayesrnn_cuda.masks import LayerMasks

Binding = Callable[[str, str, dict], object]

GUARD = 64  # numbers before and after each tensor


class Memory:
    """Dense tensors with NaN on both sides."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.blocks: dict[str, Tensor] = {}

    def new(self, name: str, *shape: int) -> Tensor:
        """A tensor of NaN."""
        self.blocks[name] = torch.full((prod(shape) + 2 * GUARD,), torch.nan, dtype=self.dtype)
        return self.blocks[name][GUARD:-GUARD].view(shape)

    def copy(self, name: str, values: Tensor | None) -> Tensor | None:
        return None if values is None else self.new(name, *values.shape).copy_(values)

    def check(self) -> None:
        for name, block in self.blocks.items():
            edges = torch.cat([block[:GUARD], block[-GUARD:]])
            assert edges.isnan().all(), f"a write beside {name}"


def run(
    case: Case, inputs: Inputs, forward: Binding, backward: Binding, *, save: bool = True
) -> dict[str, Tensor]:
    """The results of cases.run. Without `save` only forward runs and keeps nothing."""
    T, B, H, G = case.T, case.B, case.H, case.gates
    dtype = inputs.x.dtype
    memory = Memory(dtype)
    lstm = case.cell == "lstm"
    fields = read_fields(case, inputs, memory)
    outputs = {"y": memory.new("y", T, B, H), "h_n": memory.new("h_n", B, H)}
    if lstm:
        outputs["c_n"] = memory.new("c_n", B, H)
    has_saved = case.cell != "gru_reset_before"
    saved = {
        "gates": memory.new("gates", T, B, G * H) if save else None,
        "saved": memory.new("saved", T, B, H) if save and has_saved else None,
    }
    call(case, dtype, forward, fields | {"c_n": None} | outputs | saved)
    if not save:
        memory.check()
        return outputs
    check_zero_outside(saved, inputs.lengths)

    names = {"y": "dy", "h_n": "dh_n", "c_n": "dc_n"}
    given = {v: memory.copy(v, inputs.cotangents.get(k)) for k, v in names.items()}
    poison_outside(given["dy"], inputs.lengths)
    wanted = [k for k in inputs.differentiable() if k not in case.frozen or k != "x"]
    gradients = {f"d{k}": memory.new(f"d{k}", *inputs.differentiable()[k].shape) for k in wanted}
    none = dict.fromkeys(("dx", "dc0", "dbias_ih", "dbias_hh"))
    call(case, dtype, backward, fields | {"y": outputs["y"]} | saved | given | none | gradients)
    memory.check()
    asked = {f"d_{k}": gradients[f"d{k}"] for k in wanted if k not in case.frozen}
    return outputs | asked


def read_fields(case: Case, inputs: Inputs, memory: Memory) -> dict:
    """What forward and backward read alike."""
    masks = inputs.masks or LayerMasks()

    def keep(mask: Tensor | None) -> Tensor | None:  # the op layer makes them dense
        return None if mask is None else mask.contiguous()

    def stride(mask: Tensor | None) -> int:
        return 0 if mask is None or mask.shape[0] == 1 else mask[0].numel()

    x = memory.copy("x", inputs.x)
    poison_outside(x, inputs.lengths)
    states = {"h0": inputs.h0, "c0": inputs.c0}
    return {
        **{"T": case.T, "B": case.B, "I": case.I, "H": case.H, "G": case.gates},
        "reverse": int(case.reverse),
        "lengths": None if inputs.lengths is None else inputs.lengths.contiguous(),
        **{"keep_x": keep(masks.keep_x), "gate_stride_x": stride(masks.keep_x)},
        **{"keep_h": keep(masks.keep_h), "gate_stride_h": stride(masks.keep_h)},
        **{"scale_x": float(masks.scale_x), "scale_h": float(masks.scale_h)},
        "x": x,
        **{k: memory.copy(k, t) for k, t in (states | inputs.weights._asdict()).items()},
    }


def call(case: Case, dtype: torch.dtype, binding: Binding, fields: dict) -> None:
    addresses = {k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in fields.items()}
    binding(case.cell, str(dtype).removeprefix("torch."), addresses)


def outside(T: int, lengths: Tensor) -> Tensor:
    """[T, B]: past the length."""
    return torch.arange(T).unsqueeze(1) >= lengths


def poison_outside(t: Tensor | None, lengths: Tensor | None) -> None:
    if t is not None and lengths is not None:
        t[outside(t.shape[0], lengths)] = torch.nan


def check_zero_outside(saved: dict[str, Tensor | None], lengths: Tensor | None) -> None:
    for name, t in saved.items():
        if t is not None and lengths is not None:
            assert (t[outside(t.shape[0], lengths)] == 0).all(), f"{name}: not 0 past a length"


def parity(case: Case, dtype: torch.dtype, forward: Binding, backward: Binding) -> list[str]:
    """As cases.parity: where a binding, in dtype, disagrees with the reference in float64."""
    if dtype not in cases.EPS:
        inputs = cases.sample(case, dtype)
        expected = cases.run(case, inputs.to(torch.float64), "reference")
        return cases.differences(run(case, inputs, forward, backward), expected)
    draws = max(1, min(16, 500 // (case.T * case.B * case.H)))  # few numbers are right by luck
    samples = [cases.sample(case, dtype, seed) for seed in range(draws)]
    return cases.low_precision_differences(
        [run(case, inputs, forward, backward) for inputs in samples],
        [cases.run(case, inputs, "reference") for inputs in samples],
        [cases.run(case, inputs.to(torch.float64), "reference") for inputs in samples],
        dtype,
    )

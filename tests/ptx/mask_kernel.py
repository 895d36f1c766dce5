"""Draws masks through the host code and the kernel of csrc/cuda/masks."""

import ctypes
from math import prod

import torch
from kernel_cases import MaskCase
from machine import Machine
from torch import Tensor

SEEDS = torch.tensor([0x123456789ABCDEF, -(2**63)])


class Draw(ctypes.Structure):  # csrc/masks.h
    _fields_ = [
        ("keep", ctypes.c_void_p), ("count", ctypes.c_int64), ("seed", ctypes.c_void_p),
        ("p", ctypes.c_double),
    ]  # fmt: skip


def launch(machine: Machine, first: Draw, second: Draw) -> None:
    machine.library.set_loader(machine.loader)
    machine.check(machine.library.run_masks(ctypes.byref(first), ctypes.byref(second)))


def sample(machine: Machine, case: MaskCase, seeds: Tensor = SEEDS) -> list[Tensor]:
    """Both masks as bytes; those that nobody writes are 0xFF."""
    machine.clear_memory()
    machine.add_memory("seeds", seeds)
    draws, keeps = [], []
    for number, (size, p) in enumerate(((case.I, case.p_x), (case.H, case.p_h))):
        shape = (case.sets, case.B, size) if p else (0,)
        block = torch.full((prod(shape) + 32,), 0xFF, dtype=torch.uint8)
        start = -block.data_ptr() % 16
        keep = block[start : start + prod(shape)].view(shape)
        machine.add_memory(f"keep {number}", keep)
        seed = seeds[number:].data_ptr() if p else None
        draws.append(Draw(keep.data_ptr(), keep.numel(), seed, p))
        keeps.append(keep)
    launch(machine, *draws)
    return keeps


def agrees(machine: Machine, case: MaskCase, seeds: Tensor = SEEDS) -> bool:
    """Whether the bits are those that the CPU draws."""
    expected = torch.ops.bayesrnn.sample_layer_keep(
        seeds, case.sets, case.B, case.I, case.H, case.p_x, case.p_h
    )
    pairs = zip(sample(machine, case, seeds), expected, strict=True)
    return all(torch.equal(got, want.view(torch.uint8)) for got, want in pairs)


def kernels(machine: Machine) -> set[str]:
    """What a draw launches on a device that is dry: no memory is touched."""
    machine.launched()
    launch(machine, *(Draw(4096, 100, 4096, 0.5),) * 2)
    return set(machine.launched())

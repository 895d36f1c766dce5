"""How tests call the kernels of test_kernels.cu and find their lines."""

import ctypes

import build
import machine
import numpy as np
import torch
from machine import Machine

SOURCES = [build.HERE / name for name in ("test_kernels.cu", "test_primitives.cuh")]
SCHEDULES = machine.schedules(seeds=2)


def kernel_lines(bug: str) -> list[str]:
    """Every line of a bug's kernel."""
    lines = SOURCES[0].read_text().splitlines()
    first = next(i for i, text in enumerate(lines, 1) if text.startswith(f"BUG({bug})"))
    last = next(i for i in range(first, len(lines)) if lines[i - 1] == "}")
    return [f"tests/ptx/{SOURCES[0].name}:{i} " for i in range(first, last + 1)]


def params(kernels: Machine, **values: np.ndarray | int) -> ctypes.Structure:
    """The argument of a kernel: numbers, and arrays by address."""
    fields = []
    for name, value in values.items():
        is_array = isinstance(value, np.ndarray)
        fields.append((name, ctypes.c_void_p if is_array else ctypes.c_int))
        if is_array:
            kernels.add_memory(name, torch.from_numpy(value.view(np.uint8).reshape(-1)))
    struct = type("Params", (ctypes.Structure,), {"_fields_": fields})
    return struct(*(v.ctypes.data if isinstance(v, np.ndarray) else v for v in values.values()))


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy that begins at 16 bytes."""
    block = np.zeros(values.nbytes + 16, np.uint8)
    start = -block.ctypes.data % 16
    copy = block[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def line(marker: str) -> str:
    """Where the kernels say `marker`."""
    found = [
        f"tests/ptx/{source.name}:{i}"
        for source in SOURCES
        for i, text in enumerate(source.read_text().splitlines(), 1)
        if text.endswith(f"// {marker}")
    ]
    assert len(found) == 1, f"{marker}: {found}"
    return found[0]

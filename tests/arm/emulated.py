"""The CPU engine of 64-bit ARM beneath torch.ops.bayesrnn, cross-compiled and run by qemu.

`Emulated.installed()` puts a process of driver.cpp where the ops' CPU kernels are, so that the
engine's own tests run as they stand: autograd, checks and the reference are this machine's, the
numbers those of the other processor. On an ARM machine the driver runs natively.
"""

import contextlib
import functools
import os
import platform
import runpy
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from bayesrnn_cuda import ops
from bayesrnn_cuda.cells import CELLS, Cell

ROOT = Path(__file__).resolve().parents[2]
NATIVE = platform.machine() == "aarch64"
COMPILER = "g++" if NATIVE else "aarch64-linux-gnu-g++"
DISASSEMBLER = "objdump" if NATIVE else "aarch64-linux-gnu-objdump"
# The first server of this kind: what a newer processor adds would be an illegal instruction.
EMULATOR = [] if NATIVE else ["qemu-aarch64", "-cpu", "cortex-a72"]
MISSING = [tool for tool in (COMPILER, DISASSEMBLER, *EMULATOR[:1]) if not shutil.which(tool)]

# As csrc/dtypes.h and csrc/cells.h number them.
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
KINDS = ("lstm", "gru", "gru_reset_before", "rnn")


@functools.cache
def setup() -> dict:
    """What setup.py defines."""
    with mock.patch("setuptools.setup"), mock.patch.object(sys, "argv", ["setup.py"]):
        return runpy.run_path(str(ROOT / "setup.py"))


def sources() -> list[Path]:
    """What a build without CUDA compiles on an ARM machine."""
    with mock.patch("platform.machine", lambda: "aarch64"):
        return setup()["cxx_sources"](False)


def compile_one(source: Path, folder: Path, *more: str, csrc: Path = ROOT / "csrc") -> Path:
    """An object of `source` with the flags of a build, and `more`, headers from `csrc`."""
    isa = setup()["ISA_FLAGS"] if source.parent.name == "isa" else {}
    flags = [*setup()["CXX_FLAGS"], *isa.get(source.stem, []), f"-I{csrc}", *more]
    target = folder / f"{source.stem}.o"
    subprocess.run([COMPILER, *flags, "-c", str(source), "-o", str(target)], check=True)
    return target


def link(objects: Sequence[Path], folder: Path) -> Path:
    """The driver. Static: there is no library of the other processor here to be found."""
    program = folder / "driver"
    subprocess.run([COMPILER, "-static", *map(str, objects), "-o", str(program)], check=True)
    return program


class Emulated:
    """A driver, and the instruction set that it is told to take; None leaves it the choice."""

    def __init__(self, program: Path, isa: str | None = None) -> None:
        self.program = program
        self.calls = 0
        chosen = {"BAYESRNN_CPU_ISA": isa} if isa else {}
        self._environment = {k: v for k, v in os.environ.items() if k != "BAYESRNN_CPU_ISA"}
        self._environment |= chosen

    def run(self, *arguments: str) -> str:
        """The instruction set that ran. Raises RuntimeError with what the driver says."""
        result = subprocess.run(
            [*EMULATOR, str(self.program), *arguments],
            env=self._environment, capture_output=True, text=True,
        )  # fmt: skip
        if result.returncode:
            raise RuntimeError(f"exit status {result.returncode}: {result.stderr}")
        self.calls += 1
        return result.stdout.strip()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Within it torch.ops.bayesrnn computes layers by this driver."""
        library = torch.library.Library("bayesrnn", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*other operators may also be overridden")
            for cell in CELLS.values():
                self._install(library, cell)
        try:
            yield
        finally:
            library._destroy()

    def _install(self, library: torch.library.Library, cell: Cell) -> None:
        for name, kernel in ((cell.name, self._forward), (f"{cell.name}_backward", self._back)):
            schema = getattr(torch.ops.bayesrnn, name).default._schema
            library.impl(name, functools.partial(kernel, cell, schema), "CPU")

    def sample_keep(self, seed: int, count: int, p: float) -> Tensor:
        """As torch.ops.bayesrnn.sample_keep."""
        keep = torch.empty(count, dtype=torch.bool)
        numbers = (2, 0, 0, count, seed, 0, 0, 0, 1, 0, 0)
        self._call(struct.pack("<11q2d", *numbers, p, 0.0), [], [keep])
        return keep

    def _forward(self, cell: Cell, schema: torch.FunctionSchema, *args, **kwargs):
        given = ops._arguments(schema, args, kwargs)
        results = ops._forward_fake(cell, schema, *args, **kwargs)
        y, h_n, *c_n = results[: 1 + cell.states]
        gates, *saved = results[1 + cell.states :]
        if y.shape[1]:
            self._call(
                self._head(0, cell, given),
                [*self._layer(given), given["bias_ih"], given["bias_hh"]],
                [y, h_n, *(c_n or [None]), gates, *(saved or [None])],
            )
        return results

    def _back(self, cell: Cell, schema: torch.FunctionSchema, *args, **kwargs):
        given = ops._arguments(schema, args, kwargs)
        results = ops._backward_fake(cell, schema, *args, **kwargs)
        dx, dh0, *dc0 = results[: 1 + cell.states]
        saved = [given.get(name) for name in ("cells", "hidden_n") if name in given] or [None]
        if not dh0.shape[0]:
            return tuple(t.zero_() for t in results)
        self._call(
            self._head(1, cell, given),
            [*self._layer(given), given["y"], given["gates"], *saved,
             given["dy"], given["dh_n"], given.get("dc_n")],
            [dx, dh0, *(dc0 or [None]), *results[1 + cell.states :]],
        )  # fmt: skip
        return results

    @staticmethod
    def _layer(given: dict) -> list[Tensor | None]:
        names = ("lengths", "resets", "keep_x", "keep_h", "x", "h0", "c0")
        return [given.get(name) for name in (*names, "weight_ih", "weight_hh")]

    @staticmethod
    def _head(what: int, cell: Cell, given: dict) -> bytes:
        x = given["x"]
        kind = cell.name if all(given[flag] for flag in cell.flags) else f"{cell.name}_reset_before"

        def stride(mask: Tensor | None) -> int:
            return 0 if mask is None or mask.shape[0] == 1 else mask[0].numel()

        numbers = (
            what, DTYPES.index(x.dtype), KINDS.index(kind), *x.shape, given["h0"].shape[1],
            given["reverse"], torch.get_num_threads(),
            stride(given["keep_x"]), stride(given["keep_h"]),
        )  # fmt: skip
        return struct.pack("<11q2d", *numbers, given["scale_x"], given["scale_h"])

    def _call(
        self, head: bytes, given: Sequence[Tensor | None], results: Sequence[Tensor | None]
    ) -> None:
        """Writes what the driver reads, runs it, fills the results."""
        blocks = [b"" if t is None else _bytes(t) for t in given]
        wanted = [0 if t is None else t.numel() * t.element_size() for t in results]
        parts = [head]
        for block in blocks:
            parts += [struct.pack("<q", len(block)), block]
        parts += [struct.pack("<q", size) for size in wanted]
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in", Path(folder) / "out"
            source.write_bytes(b"".join(parts))
            self.run(str(source), str(target))
            made = bytearray(target.read_bytes())
        assert len(made) == sum(wanted)
        at = 0
        for result, size in zip(results, wanted, strict=True):
            if result is not None and size:
                block = torch.frombuffer(made, dtype=result.dtype, offset=at, count=result.numel())
                result.copy_(block.view(result.shape))
            at += size


def _bytes(t: Tensor) -> bytes:
    return t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()

"""Which engine runs a layer, and why: `plan` and `info`."""

import json
import platform
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import ops

ENGINES = ("auto", "cpu", "reference")
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def check_name(engine: str) -> str:
    """`engine` itself; ValueError unless it is one of ENGINES."""
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    return engine


def resolve(engine: str, x: Tensor) -> str:
    """The engine that runs for input x: "auto" takes the fused one where there is one."""
    on_cpu = x.device.type == "cpu"
    if check_name(engine) == "cpu" and not on_cpu:
        raise ValueError(f"engine: expected x on the CPU for 'cpu', got x on {x.device}")
    if engine != "auto":
        return engine
    return "cpu" if on_cpu and x.dtype in _CPU_DTYPES else "reference"


def check(cell: str, *tensors: Tensor | None) -> None:
    """The checks of csrc/checks.h, for the reference engine. RuntimeError if one fails."""
    if not torch.compiler.is_compiling():
        torch.ops.bayesrnn.check_layer(cell, *tensors)


@dataclass(frozen=True)
class Plan:
    """What runs for one layer and direction, and why. `print` it."""

    engine: str
    reason: str
    cell: str
    T: int
    B: int
    I: int  # noqa: E741  (DESIGN's letter for the input size)
    H: int
    dtype: torch.dtype
    device: torch.device
    details: dict[str, Any] = field(default_factory=dict)  # tiles, threads, bytes; by engine

    def __str__(self) -> str:
        head = (
            f"{self.cell} T={self.T} B={self.B} I={self.I} H={self.H} "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}: engine {self.engine}"
        )
        lines = [head, f"  reason: {self.reason}"]
        lines += [f"  {key.replace('_', ' ')}: {value}" for key, value in self.details.items()]
        return "\n".join(lines)


def plan(
    cell: str,
    T: int,
    B: int,
    I: int,  # noqa: E741
    H: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Plan:
    """Which engine "auto" takes for one layer and direction, with its reason; needs no device.

    Args:
        cell: "lstm" or "gru".
        T, B, I, H: time steps, batch, input size, hidden size; each >= 1.
        dtype, device: of input and weights.

    Raises:
        ValueError: unknown cell, a size below 1, or a dtype that is not torch's.
    """
    if cell not in ("lstm", "gru"):
        raise ValueError(f"cell: expected lstm or gru, got {cell!r}")
    for name, size in (("T", T), ("B", B), ("I", I), ("H", H)):
        if not hasattr(size, "__index__") or size < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {size!r}")
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype: expected a torch.dtype, got {dtype!r}")
    device = torch.device(device)
    sizes = (cell, T, B, I, H, dtype, device)
    if device.type != "cpu":
        reason = f"no fused engine for {device.type} in this build"
        return Plan("reference", reason, *sizes)
    if dtype not in _CPU_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in _CPU_DTYPES)
        return Plan("reference", f"the CPU engine has {names}", *sizes)
    details = json.loads(
        torch.ops.bayesrnn.cpu_plan(cell, T, B, I, H, str(dtype).removeprefix("torch."))
    )
    return Plan("cpu", "fused over all time steps on the CPU", *sizes, details)


def info() -> dict[str, Any]:
    """Versions, what the library was compiled for, and the engines usable on this machine."""
    from . import __version__

    return {
        "bayesrnn_cuda": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "library": ops.LIBRARY_PATH,
        "engines": list(ENGINES),
        "cuda_architectures": [],
        "cuda_available": torch.cuda.is_available(),
        **json.loads(torch.ops.bayesrnn.build_info()),
    }

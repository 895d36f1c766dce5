"""Which engine runs a layer, and why: `plan` and `info`."""

import contextlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import ops
from .cells import CELLS
from .checks import check_size, dtype_name

ON_CUDA = tuple(torch.ops.bayesrnn.cuda_engines().split(", ")[1:])  # without auto
ENGINES = ("auto", "cpu", *ON_CUDA, "reference")
CUDA_BUILT = bool(ops.CUDA_ARCHITECTURES)
CPU_DTYPES, CUDA_DTYPES = (
    tuple(getattr(torch, name) for name in torch.ops.bayesrnn.fused_dtypes(on_cpu).split(", "))
    for on_cpu in (True, False)
)
_ASSUMED_GPU = "H100"


def check_name(engine: str) -> str:
    """`engine` itself; TypeError unless a string, ValueError unless it is one of ENGINES."""
    if not isinstance(engine, str):
        raise TypeError(f"engine: expected a name, as 'auto', got {engine!r}")
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    return engine


def resolve(engine: str, x: Tensor) -> str:
    """The engine that runs for input x: "auto" takes the fused one where there is one.

    On CUDA "auto" stays: which of the engines there, the op decides by its plan.
    """
    device = x.device.type
    if check_name(engine) == "cpu" and device != "cpu":
        raise ValueError(f"engine: expected x on the CPU for 'cpu', got x on {x.device}")
    if engine in ON_CUDA:
        if device != "cuda":
            raise ValueError(f"engine: expected x on CUDA for {engine!r}, got x on {x.device}")
        if not CUDA_BUILT:
            raise ValueError(f"engine: expected a build with CUDA for {engine!r}, got one without")
    if engine != "auto":
        return engine
    if device == "cuda" and CUDA_BUILT and x.dtype in CUDA_DTYPES:
        return "auto"
    return "cpu" if device == "cpu" and x.dtype in CPU_DTYPES else "reference"


def allow_tf32(x: Tensor) -> bool:
    """Whether products of float32 may round to TF32: on CUDA, where cuDNN's layers would."""
    return x.device.type == "cuda" and _cudnn_allows_tf32()


def _cudnn_allows_tf32() -> bool:
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]


def check(cell: str, x: Tensor, states: Sequence[Tensor], *tensors: Tensor | None) -> None:
    """The checks of csrc/checks.h, for the reference engine. ArgumentError if one fails."""
    if not torch.compiler.is_compiling():
        h0, c0 = states if len(states) > 1 else (states[0], None)
        ops.call(torch.ops.bayesrnn.check_layer, cell, x, h0, c0, *tensors)


@dataclass(frozen=True)
class Plan:
    """What runs for one layer and direction, and why. `print` it."""

    engine: str
    reason: str
    cell: str
    T: int
    B: int
    I: int  # noqa: E741  (the project's letter for the input size)
    H: int
    dtype: torch.dtype
    device: torch.device | str  # or the name of a GPU
    details: dict[str, Any] = field(default_factory=dict)  # tiles, threads, bytes; by engine

    def __str__(self) -> str:
        head = (
            f"{self.cell} T={self.T} B={self.B} I={self.I} H={self.H} "
            f"{dtype_name(self.dtype)} on {self.device}: engine {self.engine}"
        )
        lines = [head, f"  reason: {self.reason}"]
        lines += [
            f"  {key.replace('_', ' ')}: {_text(value)}" for key, value in self.details.items()
        ]
        return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_text(v)}" for key, v in value.items())
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


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

    Planned for training with a mask per gate, the method's own case.

    Args:
        cell: the name of one, "lstm" say.
        T, B, I, H: time steps, batch, input size, hidden size; each >= 1.
        dtype: of input and weights.
        device: a torch.device, or the name of a GPU that need not be here, as "H100".

    Raises:
        ValueError: unknown cell or device, a size below 1, or more steps and sequences than the
            CUDA engines can count (T * B from 2^29).
        TypeError: a size that is no integer, or a dtype that is not torch's.
    """
    if cell not in tuple(CELLS):  # which takes what has no hash, too
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
    for name, size in (("T", T), ("B", B), ("I", I), ("H", H)):
        check_size(name, size)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype, got {dtype!r}")
    device = _device(device)
    sizes = (cell, T, B, I, H, dtype, device)
    kind = "cuda" if isinstance(device, str) else device.type
    dtypes = {"cpu": CPU_DTYPES, "cuda": CUDA_DTYPES}.get(kind)
    if dtypes is None:
        return Plan("reference", f"no fused engine for {kind}", *sizes)
    if dtype not in dtypes:
        names = ", ".join(dtype_name(d) for d in dtypes)
        return Plan("reference", f"the fused engines for {kind} have {names}", *sizes)
    if kind == "cuda":
        return _plan_cuda(*sizes)
    details = json.loads(torch.ops.bayesrnn.cpu_plan(cell, T, B, I, H, dtype_name(dtype)))
    return Plan("cpu", "fused over all time steps on the CPU", *sizes, details)


def _plan_cuda(cell, T, B, I, H, dtype, device) -> Plan:  # noqa: E741
    gpu, index = (device, None) if isinstance(device, str) else ("", device.index)
    details: dict[str, Any] = {"gpu": gpu}
    if not gpu and CUDA_BUILT and torch.cuda.is_available():
        details["gpu"] = torch.cuda.get_device_name(index)
    elif not gpu:
        gpu, details["gpu"] = _ASSUMED_GPU, f"{_ASSUMED_GPU}, assumed: none can be used here"
    with contextlib.nullcontext() if gpu else torch.cuda.device(index):
        tf32 = _cudnn_allows_tf32()
        sizes = (cell, T, B, I, H)
        text = ops.call(torch.ops.bayesrnn.cuda_plan, *sizes, dtype_name(dtype), gpu, tf32)
    details |= json.loads(text)
    engine, reason = details["forward"].pop("engine"), details["forward"].pop("reason")
    if not CUDA_BUILT:
        engine, reason = "reference", f"this build has no CUDA; one with it: {engine}, {reason}"
    return Plan(engine, reason, cell, T, B, I, H, dtype, device, details)


def _device(device: torch.device | str) -> torch.device | str:
    """A torch.device, or the name of a GPU that the plan knows."""
    try:
        return torch.device(device)
    except RuntimeError:
        known = torch.ops.bayesrnn.known_gpus().split(", ")
    if str(device).lower() not in [name.lower() for name in known]:
        raise ValueError(
            f"device: expected cpu, cuda, cuda:N or one of {', '.join(known)}, got {device!r}"
        )
    return device


def info() -> dict[str, Any]:
    """Versions, what the library was compiled for, and the engines that it has.

    cuda_architectures is empty where the library was built without CUDA; then layers on CUDA run on
    the reference engine.
    """
    from . import __version__

    return {
        "bayesrnn_cuda": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "library": ops.LIBRARY_PATH,
        "engines": [name for name in ENGINES if CUDA_BUILT or name not in ON_CUDA],
        "cuda_architectures": list(ops.CUDA_ARCHITECTURES),
        "cuda_available": torch.cuda.is_available(),
        **json.loads(torch.ops.bayesrnn.build_info()),
    }

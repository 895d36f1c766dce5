"""What the processor can do at most, timed between the layers that are measured by it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import bayesrnn_cuda as brnn

GEMM_SIZE = 2048
MULTIPLY_BFLOAT16 = ("avx512_bf16", "amx")  # instruction sets that do


@dataclass(frozen=True)
class Ceiling:
    """A rate: `run()` computes and returns how many floating-point operations that was."""

    name: str
    run: Callable[[], float]


def ceiling(dtype: torch.dtype, device: torch.device) -> Ceiling | None:
    """The peak of float32's multiply-add, or of bfloat16 torch's large product; None: unknown.

    bfloat16 has no one instruction that every processor multiplies it by: the rate that its best
    library reaches stands for it. A processor without any computes it in float32.
    """
    multiplies = brnn.info()["cpu_instruction_set"] in MULTIPLY_BFLOAT16
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return None
    if dtype == torch.float32 or not multiplies:
        return Ceiling("FMA peak", lambda: 2 * torch.ops.bayesrnn.cpu_fmas())
    a, b, c = (torch.randn(GEMM_SIZE, GEMM_SIZE).bfloat16() for _ in range(3))

    def product() -> float:
        torch.mm(a, b, out=c)
        return 2.0 * GEMM_SIZE**3

    return Ceiling("bfloat16 GEMM", product)

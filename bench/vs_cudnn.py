"""This layer, masks on, against torch's own without masks: cuDNN on a GPU, oneDNN on a CPU.

python -m bench.vs_cudnn [--device cuda] [--dtype bfloat16] [--shape 35,20,650,650]
"""

from collections.abc import Sequence

import torch

from . import harness
from .ceiling import ceiling


def variants(case: harness.Case, device: torch.device) -> list[harness.Variant]:
    """torch's layer first; beside it the dtype that torch is at its best or at its usual in."""
    beside = torch.float16 if device.type == "cuda" else torch.float32
    return [
        harness.torch_layer(case, device),
        *([harness.torch_layer(case, device, beside)] if case.torch_dtype != beside else []),
        *(harness.ours(case, device, masks) for masks in ("untied", "tied", "none")),
    ]


def measure(
    case: harness.Case, compared: Sequence[harness.Variant], device: torch.device, runs: int
) -> list[harness.Row]:
    """Beside what the processor can do at most."""
    best = ceiling(case.torch_dtype, device)
    return harness.measure(case, compared, device, runs, ceiling=best)


def main() -> None:
    harness.compare(__doc__, variants, measure=measure)


if __name__ == "__main__":
    main()

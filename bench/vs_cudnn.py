"""This layer, masks on, against torch's own without masks: cuDNN on a GPU, oneDNN on a CPU.

python -m bench.vs_cudnn [--device cuda] [--dtype bfloat16] [--shape 35,20,650,650]
"""

import torch

from . import harness


def variants(case: harness.Case, device: torch.device) -> list[harness.Variant]:
    """torch's layer first; on a GPU also in float16, where cuDNN is at its best."""
    best = device.type == "cuda" and case.dtype != "float16"
    return [
        harness.torch_layer(case, device),
        *([harness.torch_layer(case, device, torch.float16)] if best else []),
        *(harness.ours(case, device, masks) for masks in ("untied", "tied", "none")),
    ]


if __name__ == "__main__":
    harness.compare(__doc__, variants)

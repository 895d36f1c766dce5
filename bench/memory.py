"""Peak memory of one forward and backward: this layer, masks on and off, beside torch's without.

python -m bench.memory [--device cuda] [--dtype bfloat16] [--shape 35,20,650,650]
"""

import torch

from . import harness


def variants(case: harness.Case, device: torch.device) -> list[harness.Variant]:
    return [
        harness.torch_layer(case, device),
        *(harness.ours(case, device, masks) for masks in ("untied", "none")),
    ]


def main() -> None:
    parser = harness.options(__doc__)
    # Of the resident pages on a CPU: what a retained heap keeps would not count.
    parser.set_defaults(runs=3, default_heap=True)
    harness.compare(__doc__, variants, parser.parse_args(), harness.measure_memory)


if __name__ == "__main__":
    main()

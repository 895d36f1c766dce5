"""This layer against the same masked layer as a Python loop over time steps.

python -m bench.vs_loop [--device cuda] [--dtype bfloat16] [--shape 35,20,650,650] [--compile]
"""

import torch

from . import harness


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--compile", action="store_true", help="the loop under torch.compile too")
    arguments = parser.parse_args()

    def variants(case: harness.Case, device: torch.device) -> list[harness.Variant]:
        loops = [harness.eager_loop(case, device)]
        if arguments.compile:
            loop = harness.eager_loop(case, device)
            compiled = torch.compile(loop.layer)  # unrolls the loop: minutes where T is large
            loops.append(harness.Variant("masked loop, compiled", compiled, loop.parameters))
        return [*loops, harness.ours(case, device, "untied")]

    harness.compare(__doc__, variants, arguments)


if __name__ == "__main__":
    main()

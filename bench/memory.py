"""Peak memory of one forward and backward: this layer, masks on, beside torch's without masks.

python -m bench.memory [--device cuda] [--dtype bfloat16] [--shape 35,20,650,650]
"""

import torch

from . import harness


def main() -> None:
    arguments = harness.options(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    results = []
    for case in harness.cases(arguments):
        variants = [
            harness.torch_layer(case, device),
            *(harness.ours(case, device, masks) for masks in ("untied", "none")),
        ]
        used = {v.name: harness.peak_memory(v, case, device) for v in variants}
        base = next(iter(used.values()))
        print(case)
        for name, size in used.items():
            print(f"  {name:20}{size / 2**20:9.1f} MiB{size / base:7.2f}")
        results.append((case, used))
    if arguments.out:
        harness.save(
            arguments.out, device, [{"case": str(case), "peak_bytes": u} for case, u in results]
        )
        print(f"results: {arguments.out}")


if __name__ == "__main__":
    main()

"""This layer against the same masked layer as a Python loop over time steps.

python -m bench.vs_loop [--device cuda] [--dtype bfloat16] [--shape 35,20,650,650]
"""

import torch

from . import harness


def main() -> None:
    arguments = harness.options(__doc__).parse_args()
    if arguments.device.type == "cpu" and not arguments.default_heap:
        harness.with_retained_heap()
    torch.set_num_threads(arguments.threads)
    results = []
    for case in harness.cases(arguments):
        variants = [
            harness.eager_loop(case, arguments.device),
            harness.ours(case, arguments.device, "untied"),
        ]
        results.append((case, harness.measure(case, variants, arguments.device, arguments.runs)))
        print(harness.table("", results[-1:]), flush=True)
    if arguments.out:
        harness.save(arguments.out, arguments.device, harness.as_records(results))
        title = f"{harness.machine(arguments.device)['processor']}, {arguments.threads} threads"
        harness.draw(arguments.out.with_suffix(".png"), title, results)


if __name__ == "__main__":
    main()

"""This layer against the same masked layer as a Python loop over time steps.

python -m bench.vs_loop [--device cuda] [--dtype bfloat16] [--shape 35,20,650,650]
"""

from . import harness

if __name__ == "__main__":
    harness.compare(
        __doc__,
        lambda case, device: [
            harness.eager_loop(case, device),
            harness.ours(case, device, "untied"),
        ],
    )

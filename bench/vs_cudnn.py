"""This layer, masks on, against torch's own without masks: cuDNN on a GPU, oneDNN on a CPU.

python -m bench.vs_cudnn [--device cuda] [--dtype bfloat16] [--shape 35,20,650,650]
"""

from . import harness

if __name__ == "__main__":
    harness.compare(
        __doc__,
        lambda case, device: [
            harness.torch_layer(case, device),
            *(harness.ours(case, device, masks) for masks in ("untied", "tied", "none")),
        ],
    )

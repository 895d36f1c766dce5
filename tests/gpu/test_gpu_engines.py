"""Every engine once, on a layer of its own size: the first thing to know of a GPU."""

import platform

import pytest
import torch
from cases import Case
from gpu_layers import BFLOAT16, kernels_run, parity, run

import bayesrnn_cuda as brnn


@pytest.mark.parametrize(
    ("engine", "H"),
    [("block", 60), ("cluster", 120), ("grid", 700), ("grid_flags", 700), ("stepwise", 300),
     ("auto", 700)],
)  # fmt: skip
def test_engine(engine, H):
    assert not parity(Case("lstm", T=64, B=16, I=64, H=H, lengths=True), BFLOAT16, engine)


def test_profiler():
    """Whether kernels can be named, which test_gpu_kernels.py does if they can."""
    ran: set[str] = set()
    with kernels_run(ran):
        run(Case("lstm", H=33), BFLOAT16, "stepwise")
    assert ran


def test_facts(record_property):
    """Which GPU this is, and which software is beside it."""
    properties = torch.cuda.get_device_properties(0)
    facts = {
        "gpu": properties.name,
        "capability": (properties.major, properties.minor),
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "architectures": brnn.info()["cuda_architectures"],
    }
    for name, value in facts.items():
        record_property(name, value)
    assert brnn.info()["cuda_architectures"]

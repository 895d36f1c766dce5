"""What needs a GPU: skipped where there is none. `make gpu` runs it with benchmarks beside."""

import pytest
import torch

from bayesrnn_cuda import engines


@pytest.fixture(autouse=True)
def gpu():
    """The device, if there is one and the library was built for it."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not engines.CUDA_BUILT:
        pytest.skip("needs a build with CUDA")
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # a test that wants TF32 says so
    yield torch.device("cuda")
    torch.backends.cudnn.rnn.fp32_precision = before

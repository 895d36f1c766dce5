"""Every kernel that is compiled, in layers that together launch all of them. Which ran is recorded
with each test; `python -m bench.gpu` then says which did not."""

import pytest
import torch
from gpu_layers import by_name, kernels_run, parity
from kernel_cases import CASES, KernelCase


@pytest.mark.parametrize("layer", CASES, ids=str)
def test_kernels(layer: KernelCase, record_property):
    capability = torch.cuda.get_device_capability()
    record_property("capability", capability)
    if layer.engine == "cluster" and capability < (9, 0):
        pytest.skip("needs clusters")
    ran: set[str] = set()
    try:
        with kernels_run(ran):
            wrong = parity(layer.case, by_name(layer.precision), layer.engine)
    finally:
        record_property("kernels", sorted(ran))
    assert not wrong

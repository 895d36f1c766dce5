"""Every kernel that is compiled, in layers that together launch all of them. Which ran is recorded
with each test; `python -m bench.gpu` then says which did not."""

import pytest
import torch
from gpu_layers import by_name, kernels_run, parity
from kernel_cases import CASES, MASKS, KernelCase, MaskCase, environment

import bayesrnn_cuda as brnn


@pytest.mark.parametrize("layer", CASES, ids=str)
def test_kernels(layer: KernelCase, record_property, monkeypatch):
    capability = torch.cuda.get_device_capability()
    record_property("capability", capability)
    if layer.engine == "cluster" and capability < (9, 0):
        pytest.skip("needs clusters")
    for name, value in environment(layer.ahead, layer.grid_steps).items():
        monkeypatch.setenv(name, value)
    ran: set[str] = set()
    try:
        with kernels_run(ran):
            wrong = parity(layer.case, by_name(layer.precision), layer.engine)
    finally:
        record_property("kernels", sorted(ran))
    assert not wrong


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_masks_are_those_of_the_cpu(case: MaskCase, record_property):
    """Bit for bit, from the same seeds."""
    record_property("capability", torch.cuda.get_device_capability())
    arguments = (case.sets, case.B, case.I, case.H, case.p_x, case.p_h)
    seeds = torch.tensor([0x123456789ABCDEF, -(2**63)])
    ran: set[str] = set()
    try:
        with kernels_run(ran):
            drawn = torch.ops.bayesrnn.sample_layer_keep(seeds.cuda(), *arguments)
    finally:
        record_property("kernels", sorted(ran))
    expected = torch.ops.bayesrnn.sample_layer_keep(seeds, *arguments)
    for got, want in zip(drawn, expected, strict=True):
        assert torch.equal(got.cpu(), want)


def test_a_captured_graph_draws_new_masks():
    """The seeds are drawn on the device, by a generator that a replay moves on."""
    layer = brnn.BayesianLSTM(8, 16, input_dropout=0.5, recurrent_dropout=0.5, device="cuda")
    graph = torch.cuda.CUDAGraph()
    layer.sample_masks(64)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        (masks,) = layer.sample_masks(64)
    drawn = []
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        drawn.append((masks.keep_x.clone(), masks.keep_h.clone()))
    for first, second in zip(*drawn, strict=True):
        assert not torch.equal(first, second)
        assert 0.4 < first.float().mean().item() < 0.6

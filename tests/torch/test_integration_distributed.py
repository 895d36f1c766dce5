"""The layers wrapped by DistributedDataParallel and FSDP2, in two processes against one."""

import os

import pytest
import torch
from experiments.processes import run_processes
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import bayesrnn_cuda as brnn

SIZE = 2
T, B, I, H = 5, 3, 4, 6  # noqa: E741


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = brnn.BayesianLSTM(I, H, 2, input_dropout=0.5, recurrent_dropout=0.5)
        self.gru = brnn.BayesianGRU(H, H, input_dropout=0.5, recurrent_dropout=0.5)

    def sample_masks(self):
        return self.lstm.sample_masks(B), self.gru.sample_masks(B)

    def forward(self, x, masks=(None, None)):
        return self.gru(self.lstm(x, masks=masks[0])[0], masks=masks[1])[0]


def problem():
    """The same in every process: (model, inputs and masks of each process)."""
    torch.manual_seed(0)
    model = Model()
    return model, [(torch.randn(T, B, I), model.sample_masks()) for _ in range(SIZE)]


def loss(model, x, masks):
    return model(x, masks).square().mean()


def wrapped() -> dict:
    """What one process sees: gradients by both wrappers, masks that it draws, an update."""
    distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    try:
        model, shares = problem()
        parallel = DistributedDataParallel(model)
        loss(parallel, *shares[rank]).backward()
        seen = {"ddp": [p.grad for p in model.parameters()]}
        torch.manual_seed(rank)
        seen["drawn"] = parallel(shares[0][0]).detach()

        from torch.distributed.fsdp import fully_shard

        model, _ = problem()
        mesh = distributed.init_device_mesh("cpu", (SIZE,))
        for layer in (model.lstm, model.gru, model):
            fully_shard(layer, mesh=mesh)
        loss(model, *shares[rank]).backward()
        seen["fsdp"] = [p.grad.full_tensor() for p in model.parameters()]
        prior = brnn.kl_penalty(model, length_scale=1.0, num_data=10)
        seen["prior"] = prior.item()
        prior.backward()
        seen["with prior"] = [p.grad.full_tensor() for p in model.parameters()]
        groups = brnn.weight_decay_groups(model, length_scale=1.0, num_data=10)
        torch.optim.SGD(groups, lr=0.1).step()
        seen["updated"] = [p.full_tensor().detach() for p in model.parameters()]
        mean, *_ = brnn.mc_predict(model, shares[0][0], samples=3)
        seen["mean"] = mean
        return seen
    finally:
        distributed.destroy_process_group()


def test_two_processes_equal_one():
    model, shares = problem()
    sum(loss(model, *share) for share in shares).div(SIZE).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    prior = brnn.kl_penalty(model, length_scale=1.0, num_data=10)
    prior.backward()
    with_prior = [p.grad for p in model.parameters()]
    groups = brnn.weight_decay_groups(model, length_scale=1.0, num_data=10)
    torch.optim.SGD(groups, lr=0.1).step()

    first, second = run_processes(SIZE, wrapped)
    for seen in (first, second):
        for way in ("ddp", "fsdp"):
            torch.testing.assert_close(seen[way], expected, rtol=1e-5, atol=1e-7)
        assert seen["prior"] == pytest.approx(prior.item())
        torch.testing.assert_close(seen["with prior"], with_prior, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(seen["updated"], [p.detach() for p in model.parameters()])
        assert seen["mean"].shape == (T, B, H)
    assert not torch.equal(first["drawn"], second["drawn"])

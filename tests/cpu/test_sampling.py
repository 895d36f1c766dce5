"""Random bits of masks: csrc/cpu/masks.h against Threefry in Python, seeds, generators, devices."""

import math

import numpy as np
import pytest
import torch
from test_cpu_engine import AVAILABLE, in_process
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from bayesrnn_cuda import masks, ops
from bayesrnn_cuda.masks import sample_keep

ROTATIONS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
MASK32 = 0xFFFFFFFF


def threefry(counter: list[np.ndarray], key: tuple[int, ...]) -> list[np.ndarray]:
    """Threefry-4x32-20 of counters [n] each, as uint64 arrays of 32 bits (Salmon et al., 2011)."""
    keys = [*key, 0x1BD11BDA ^ key[0] ^ key[1] ^ key[2] ^ key[3]]
    x = [(c + k) & MASK32 for c, k in zip(counter, keys[:4], strict=True)]
    for r in range(20):
        pairs = ((0, 1), (2, 3)) if r % 2 == 0 else ((0, 3), (2, 1))
        for (i, j), by in zip(pairs, ROTATIONS[r % 8], strict=True):
            x[i] = (x[i] + x[j]) & MASK32
            x[j] = ((x[j] << by | x[j] >> (32 - by)) & MASK32) ^ x[i]
        if r % 4 == 3:
            s = r // 4 + 1
            x = [(x[i] + keys[(s + i) % 5] + (s if i == 3 else 0)) & MASK32 for i in range(4)]
    return x


class Recorder(TorchDispatchMode):
    """Notes which ops are called."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, op, types, arguments=(), options=None):
        self.ops.append(op)
        return op(*arguments, **(options or {}))


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0, (0x9C6CA96A, 0xE17EAE66, 0xFC10ECD4, 0x5256A7D8)),
        (MASK32, (0x2A881696, 0x57012287, 0xF6C7446E, 0xA16A6732)),
    ],
    ids=["zeros", "ones"],
)
def test_threefry_of_this_file(word, expected):
    """The authors' known answers (Random123, kat_vectors)."""
    found = threefry([array(word)] * 4, (word,) * 4)
    assert [int(w[0]) for w in found] == list(expected)


def expected_keep(seed: int, count: int, p: float) -> torch.Tensor:
    """16 counters at a time, each word of all of them in turn; dropped below p * 2^32."""
    blocks = -(-count // 64)
    n = np.arange(16 * blocks, dtype=np.uint64)
    zero = np.zeros_like(n)
    key = (seed & MASK32, seed >> 32 & MASK32, 0, 0)
    words = np.stack(threefry([n, zero, zero, zero], key)).reshape(4, blocks, 16)
    flat = words.transpose(1, 0, 2).reshape(-1)[:count]
    return torch.from_numpy(flat.astype(np.int64)) >= round(p * 2**32)


SEEDS = (0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF)
COUNTS = (1, 63, 64, 65, 1000)


def check_bits() -> None:
    for seed in SEEDS:
        for count in COUNTS:
            for p in (0.0, 2.0**-32, 0.25, 0.5, 0.9, 1 - 2.0**-32, 1.0):
                keep = torch.ops.bayesrnn.sample_keep(torch.tensor([seed]), count, p)
                assert torch.equal(keep, expected_keep(seed, count, p)), (seed, count, p)
                # bytes of a bool are 0 and 1 and nothing else
                assert keep.view(torch.uint8).max() <= 1


@pytest.mark.parametrize("isa", AVAILABLE)
def test_bits(isa):
    process = in_process(isa, "import bayesrnn_cuda, test_sampling\ntest_sampling.check_bits()")
    assert process.returncode == 0, process.stderr


def test_seeds_come_from_torchs_generators():
    first = sample_keep((3, 5, 70), 0.5, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    drawn = [sample_keep((3, 5, 70), 0.5) for _ in range(3)]
    assert torch.equal(drawn[0], first)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("shape", [(), (0,), (4, 0, 3), (7,), (4, 5, 6)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_shapes(shape, p):
    keep = sample_keep(shape, p)
    assert keep.shape == shape
    assert keep.dtype == torch.bool
    if p != 0.5:
        assert bool((keep == (p == 0)).all())


@pytest.mark.parametrize("p", [0.01, 0.3, 0.97])
def test_neighbours_and_calls_are_independent(p):
    """Places side by side, a block apart and of two calls agree as often as chance has it."""
    torch.manual_seed(0)
    n = 2**20
    keep, other = sample_keep((n,), p), sample_keep((n,), p)
    agree = p * p + (1 - p) * (1 - p)
    deviation = (agree * (1 - agree) / n) ** 0.5
    for a, b in [(keep, other)] + [(keep[by:], keep[:-by]) for by in (1, 2, 16, 64, 4096)]:
        assert abs((a == b).double().mean().item() - agree) < 5 * deviation


@pytest.mark.parametrize(
    ("compiled", "capability", "runs"),
    [
        (["8.0", "9.0a"], (8, 0), True),
        (["8.0", "9.0a"], (8, 9), True),
        (["8.0", "9.0a"], (9, 0), True),
        (["8.0", "9.0a"], (9, 1), False),
        (["8.0", "9.0a"], (7, 5), False),
        (["8.0", "9.0a"], (12, 0), False),
        (["12.0+PTX"], (12, 1), True),
        (["12.0+PTX"], (13, 0), True),
        (["12.0+PTX"], (9, 0), False),
        (["9.0a+PTX"], (9, 0), True),
        (["9.0a+PTX"], (10, 0), False),
        ([], (9, 0), False),
    ],
)
def test_a_gpu_draws_by_a_kernel_where_it_has_one(monkeypatch, compiled, capability, runs):
    """Elsewhere torch.rand does, so that the reference engine runs there."""
    monkeypatch.setattr(ops, "CUDA_ARCHITECTURES", compiled)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ops.compiled_for.cache_clear()
    try:
        assert masks._has_fused_sampling("cuda") == runs
        assert masks._has_fused_sampling(torch.device("cuda", 1)) == runs
    finally:
        ops.compiled_for.cache_clear()


def test_a_layer_on_a_gpu_draws_by_two_ops(monkeypatch):
    """On a fake GPU: the seeds by torch, on the device, and both masks by one op."""
    monkeypatch.setattr(masks, "_has_kernel", lambda device: True)
    with FakeTensorMode(), Recorder() as recorder:
        drawn = masks.sample_layer_masks(
            4, 3, 10, 70, input_dropout=0.5, recurrent_dropout=0.5, device="cuda"
        )
    assert [op.name().split(".")[0] for op in recorder.ops] == [
        "aten::randint", "bayesrnn::sample_layer_keep"
    ]  # fmt: skip
    for keep, shape in ((drawn.keep_x, (4, 3, 10)), (drawn.keep_h, (4, 3, 70))):
        assert (keep.device.type, keep.dtype, keep.shape) == ("cuda", torch.bool, shape)


@pytest.mark.parametrize("compiled", ([], ["8.0", "9.0a"]))
def test_fake_gpu_without_one(monkeypatch, compiled):
    """What asks the driver about a GPU that is not there fails."""
    monkeypatch.setattr(ops, "CUDA_ARCHITECTURES", compiled)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with FakeTensorMode():
        assert sample_keep((2, 3), 0.5, device="cuda").device.type == "cuda"


def test_meta_device():
    assert sample_keep((2, 3), 0.5, device="meta").shape == (2, 3)
    with torch.device("meta"):
        assert sample_keep((2, 3), 0.5).device.type == "meta"


def test_op():
    opcheck(torch.ops.bayesrnn.sample_keep.default, (torch.tensor([5]), 100, 0.25))
    layer = torch.ops.bayesrnn.sample_layer_keep.default
    for p_x, p_h in ((0.25, 0.5), (0.0, 0.5), (1.0, 0.0)):
        opcheck(layer, (torch.tensor([5, 6]), 4, 3, 10, 7, p_x, p_h))


@pytest.mark.parametrize("seeds", [torch.tensor([5, -6]), torch.tensor([5, 0, -6])[::2]])
def test_masks_of_a_layer_are_two_draws(seeds):
    def one(seed, shape, p):
        return torch.ops.bayesrnn.sample_keep(torch.tensor([seed]), math.prod(shape), p).view(shape)

    x, h = torch.ops.bayesrnn.sample_layer_keep(seeds, 4, 3, 10, 70, 0.25, 0.5)
    assert torch.equal(x, one(5, (4, 3, 10), 0.25))
    assert torch.equal(h, one(-6, (4, 3, 70), 0.5))
    x, h = torch.ops.bayesrnn.sample_layer_keep(seeds, 1, 3, 10, 7, 0.0, 1.0)
    assert x.shape == (0,)
    assert torch.equal(h, torch.zeros(1, 3, 7, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([1.0]), 4, 0.5), r"seed: expected dtype int64, got float32"),
        ((torch.tensor([1, 2]), 4, 0.5), r"seed: expected shape \[1\] \(one a mask\), got \[2\]"),
        ((torch.tensor([1]), -1, 0.5), r"count: expected at least 0, got -1"),
        ((torch.tensor([1]), 4, 1.5), r"p: expected a probability of dropping in \[0, 1\], got 1"),
        ((torch.tensor([1]), 4, float("nan")), r"p: expected a probability .*, got nan"),
        ((torch.tensor([1]), 2**62, 0.5), r"memory: expected room"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bayesrnn.sample_keep(*arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: torch.tensor([1.0, 2.0])}, r"seeds: expected dtype int64, got float32"),
        ({0: torch.tensor([1])}, r"seeds: expected shape \[2\] \(one a mask\), got \[1\]"),
        ({1: -1}, r"sets: expected at least 0, got -1"),
        ({2: -1}, r"B: expected at least 0, got -1"),
        ({3: -1}, r"I: expected at least 0, got -1"),
        ({4: -1}, r"H: expected at least 0, got -1"),
        ({5: 1.5}, r"p_x: expected a probability of dropping in \[0, 1\], got 1.5"),
        ({6: float("nan")}, r"p_h: expected a probability .*, got nan"),
        ({4: 2**56}, r"memory: expected room"),
    ],
)
def test_errors_of_layers(changed, message):
    arguments = [torch.tensor([1, 2]), 4, 2, 5, 6, 0.5, 0.5]
    for index, value in changed.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bayesrnn.sample_layer_keep(*arguments)

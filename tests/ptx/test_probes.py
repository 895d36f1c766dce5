"""The probes of bench/gpu do what their figures are divided by: the loads, products and steps that
they are said to make, on numbers that a GPU would have to multiply."""

import ctypes

import numpy as np
import pytest
import torch
from machine import Machine
from small_kernels import aligned
from test_primitives import bfloat16, widen

THREADS = 256


@pytest.fixture(scope="module")
def machine():
    return Machine("90a", "probes.o")


class Params(ctypes.Structure):  # bench/gpu/probes.cu
    _fields_ = [
        ("memory", ctypes.c_void_p), ("words", ctypes.c_int64), ("repeats", ctypes.c_int),
        ("partner", ctypes.c_int), ("cycles", ctypes.c_void_p), ("seen", ctypes.c_void_p),
    ]  # fmt: skip


def run(machine, name, memory, repeats, *, grid=(1, 1, 1), threads=THREADS, partner=0, **options):
    """What every thread has seen, [blocks, threads]; every cycle count is written."""
    blocks = grid[0] * grid[1]
    memory = aligned(memory)
    cycles = np.full(blocks, -1, np.int64)
    seen = np.zeros((blocks, threads), np.uint32)
    machine.device()
    machine.configure(yields=0.05)
    machine.clear_memory()
    for label, array in (("memory", memory), ("cycles", cycles), ("seen", seen)):
        machine.add_memory(label, torch.from_numpy(array.view(np.uint8).reshape(-1)))
    params = Params(memory.ctypes.data, memory.size, repeats, partner,
                    cycles.ctypes.data, seen.ctypes.data)  # fmt: skip
    machine.run_kernel(name, params, grid=grid, threads=threads, **options)
    return seen, cycles, memory


def numbers(words, seed=0):
    """bfloat16 pairs of ordinary size."""
    x = np.random.default_rng(seed).standard_normal(2 * words).astype(np.float32)
    bits = bfloat16(x)
    return bits.view(np.uint32)


def test_every_load_of_l2_reads_is_a_word_of_its_own(machine):
    memory = np.random.default_rng(1).integers(0, 2**32, 4 * 384, dtype=np.uint32)
    repeats = 16
    seen, cycles, _ = run(machine, "l2_reads", memory, repeats, grid=(2, 1, 1))
    folded = np.bitwise_xor.reduce(memory.reshape(-1, 4), axis=1)
    for t in range(THREADS):
        at = (t + THREADS * np.arange(repeats)) % 384
        expected = folded[at].sum(dtype=np.uint32)
        assert (seen[:, t] == expected).all()
    assert (cycles == 0).all()


def fragment(words, first):
    """[16 or 8, 16] of the numbers whose fragments lie at words first, first + 1, ... of a lane."""
    pairs = widen(words.view(np.uint16)).astype(np.float64).reshape(-1, 32, 2)
    lane = np.arange(32)
    g, q = lane // 4, lane % 4
    matrix = np.zeros((16 if len(first) == 4 else 8, 16))
    for i, at in enumerate(first):
        rows = g + (8 if len(first) == 4 and i % 2 else 0)
        columns = 2 * q + 8 * (i // 2 if len(first) == 4 else i)
        matrix[rows, columns], matrix[rows, columns + 1] = pairs[at].T
    return matrix


def per_lane(c):
    """The sum of the four numbers that each lane has of a product [16, 8]."""
    lane = np.arange(32)
    g, q = lane // 4, lane % 4
    return c[g, 2 * q] + c[g, 2 * q + 1] + c[g + 8, 2 * q] + c[g + 8, 2 * q + 1]


def test_tensor_cores_multiply_ordinary_numbers(machine):
    words = numbers(32 * 20)
    seen, _, _ = run(machine, "tensor_cores", words, 3, threads=64)
    a = fragment(words, [0, 1, 2, 3])
    products = [a @ fragment(words, [4 + 2 * i, 5 + 2 * i]).T for i in range(8)]
    expected = per_lane(3 * sum(products))
    np.testing.assert_allclose(seen.view(np.float32).reshape(2, 32), [expected] * 2, rtol=1e-4,
                               atol=1e-3)  # fmt: skip
    assert np.abs(a).mean() > 0.1


def test_masked_products(machine):
    words = numbers(32 * 32)
    seen, _, _ = run(machine, "masked_products", words, 2)
    total = np.zeros(32)
    lanes = words.reshape(-1, 32)
    for g in range(4):
        keep = lanes[g] | np.uint32(0xFFFF0000)
        u = fragment(words, [4 + 4 * g + i for i in range(4)])
        for k in range(3):
            for pair in (0, 2):
                b = np.ascontiguousarray(np.stack([lanes[20 + 4 * k + pair + i] & keep
                                                   for i in range(2)]))  # fmt: skip
                total += per_lane(u @ fragment(b.reshape(-1), [0, 1]).T)
    got = seen.view(np.float32).reshape(8, 32)
    np.testing.assert_allclose(got, [total] * 8, rtol=1e-4, atol=2e-3)


def test_sums_over_warps(machine):
    seen, _, _ = run(machine, "warp_sums", np.zeros(4, np.uint32), 3, shared_bytes=32768)
    elements = np.arange(128)
    own = sum(((32 * w + elements % 32) % 7) for w in range(8))
    expected = (own + 8 * (1 + 2 + 3)).astype(np.float32)
    np.testing.assert_array_equal(seen.view(np.float32)[0, :128], expected)


def test_releases(machine):
    seen, _, memory = run(machine, "releases", np.zeros(3 * 64, np.uint32), 5, grid=(3, 1, 1),
                          threads=32)  # fmt: skip
    assert (seen[:, 0] == 5).all()
    assert (memory.reshape(3, 64)[:, [0, 32]] == 5).all()


def test_cluster_barriers(machine):
    seen, _, _ = run(machine, "cluster_barriers", np.zeros(4, np.uint32), 7, grid=(4, 1, 1),
                     cluster=4)  # fmt: skip
    assert [block[0] for block in seen] == [0, 1, 2, 3]


def test_hops(machine):
    memory = np.full(6 * 64, 0xFFFFFFFF, np.uint32)
    seen, _, _ = run(machine, "hops", memory, 6, grid=(4, 1, 1), threads=32, partner=2,
                     cooperative=True)  # fmt: skip
    assert seen[0, 0] == sum(i + 2 for i in range(6))


@pytest.mark.parametrize(
    "planes", ["1_3_0", "1_3_1", "1_1_1", "4_12_0", "4_12_1", "4_6_1", "4_3_1"]
)
def test_exchanges(machine, planes):
    """Every way of asking reads the same words, in every step those of that step."""
    steps, count = 6, int(planes[0])
    plane = 2 * 24 * 128
    memory = np.full(steps * count * plane, 0xFFFFFFFF, np.uint32)
    seen, _, memory = run(machine, f"exchange_{planes}", memory, steps, grid=(48, 2, 1),
                          shared_bytes=64, cooperative=True)  # fmt: skip
    stages = memory.reshape(steps, count, 2, 24, 128)
    assert (stages != 0xFFFFFFFF).all()
    expected = np.zeros((2, 48), np.uint32)
    for s in range(steps):
        # A warp's own sum is that of its first lane: 4 words of its chunks and planes.
        chunks = stages[s][:, :, :, :4].sum(axis=(0, 3), dtype=np.uint32)  # [2, 24]
        warps = chunks.reshape(2, 8, 3).sum(axis=2, dtype=np.uint32)
        expected += warps[:, s % 8, None]
    np.testing.assert_array_equal(seen[:, 0].reshape(2, 48), expected)

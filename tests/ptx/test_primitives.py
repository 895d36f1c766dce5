"""The product's primitives, executed by the machine, against numpy: test_primitives.cuh."""

import numpy as np
import pytest
from machine import Machine, ReportError
from small_kernels import SCHEDULES, aligned, line, params

# ---- primitives


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of x rounded to nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def operands(kind: str, rows: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in double and its rows of eight words."""
    if kind == "tf32":
        words = rng.standard_normal((rows, 8), dtype=np.float32).view(np.uint32)
        return (words & 0xFFFFE000).view(np.float32).astype(float), words
    x = rng.standard_normal((rows, 16), dtype=np.float32)
    bits = bfloat16(x) if kind == "bfloat16" else x.astype(np.float16).view(np.uint16)
    exact = widen(bits) if kind == "bfloat16" else bits.view(np.float16)
    return exact.astype(float), np.ascontiguousarray(bits).view(np.uint32)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "tf32"])
def test_mma(kernels, kind):
    rng = np.random.default_rng(len(kind))
    a, a_words = operands(kind, 16, rng)
    b, b_words = operands(kind, 8, rng)
    c = rng.standard_normal((16, 8), dtype=np.float32)
    expected = (c + a @ b.T).astype(np.float32)
    kernels.run_kernel(f"mma_{kind}", params(kernels, a=a_words, b=b_words, c=c))
    np.testing.assert_allclose(c, expected, rtol=2e-7)


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrices(kernels, transposed):
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    words = np.zeros((32, 4), np.uint32)
    argument = params(kernels, matrices=matrices, words=words, transposed=int(transposed))
    kernels.run_kernel("matrices", argument, shared_bytes=512)
    seen = matrices.transpose(0, 2, 1) if transposed else matrices
    pairs = np.ascontiguousarray(seen).view(np.uint32)  # [4, 8, 4]
    np.testing.assert_array_equal(words, pairs.reshape(4, 32).T)


def test_numbers(kernels):
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 65504, 65520, 3.4e38, 6e-8]
    ties = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-12]
    x = np.concatenate([special, ties, np.random.default_rng(0).standard_normal(99) * 30])
    x = x.astype(np.float32)
    bits, widened = np.zeros((x.size, 5), np.uint32), np.zeros((x.size, 2), np.uint32)
    kernels.run_kernel("numbers", params(kernels, x=x, bits=bits, widened=widened, n=x.size))
    with np.errstate(all="ignore"):
        half = np.where(np.isnan(x), 0x7FFF, x.astype(np.float16).view(np.uint16)).astype(np.uint32)
        tf32 = (x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        tf32 = np.where(np.isinf(x), x.view(np.uint32), tf32)
        flushed = np.where(np.abs(x) < 2.0**-126, np.copysign(np.float32(0), x), x)
        exp2, reciprocal = np.exp2(flushed), 1 / flushed
    np.testing.assert_array_equal(bits[:, 0], bfloat16(x).astype(np.uint32) | 0x3F800000)
    np.testing.assert_array_equal(bits[:, 1], half | 0x3C000000)
    np.testing.assert_array_equal(bits[:, 2], np.where(np.isnan(x), 0x7FFFFFFF, tf32))
    tiny = 2.0**-126
    for column, exact in ((3, exp2), (4, reciprocal)):
        exact = np.where(np.abs(exact) < tiny, np.copysign(np.float32(0), exact), exact)
        np.testing.assert_allclose(bits[:, column].copy().view(np.float32), exact, rtol=3e-7)
    np.testing.assert_array_equal(widened[:, 0], bits[:, 0] << 16)
    np.testing.assert_array_equal(
        widened[:, 1].copy().view(np.float32),
        (bits[:, 1] & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float32),
    )


def test_shuffles_and_votes(kernels):
    out = np.zeros((64, 7), np.int32)
    kernels.run_kernel("warps", params(kernels, out=out), threads=64)
    t = np.arange(64)
    np.testing.assert_array_equal(out[:, 0], t // 32 * 32 + 5)
    np.testing.assert_array_equal(out[:, 1], t ^ 3)
    np.testing.assert_array_equal(out[:, 2], t // 8 * 8 + 2)
    np.testing.assert_array_equal(out[:, 3], t >= 32)
    np.testing.assert_array_equal(out[:, 4], t ^ 16)
    words = (t.astype(np.uint64) * 0x01020304).astype(np.uint32)
    np.testing.assert_array_equal(out[:, 5].view(np.uint32), words.byteswap())
    signs = (words << 2).view(np.int8).reshape(64, 4)[:, [0, 2, 3, 3]] < 0
    assert signs.any(0).all()
    np.testing.assert_array_equal(out[:, 6].copy().view(np.int8).reshape(64, 4), -1 * signs)


# ---- asynchronous copies


def copied(kernels: Machine, name: str) -> tuple[np.ndarray, np.ndarray]:
    blocks = aligned(np.arange(3 * 128, dtype=np.uint32).reshape(3, 128))
    to = np.zeros_like(blocks)
    argument = params(kernels, start=blocks, to=to)
    kernels.run_kernel(name, argument, grid=(3, 1, 1), shared_bytes=640)
    words = blocks[:, :32].copy()
    words[:, 31] = 0
    sums = blocks.reshape(3, 4, 32)[:, :, ::-1].sum(1)
    expected = [sums * i + np.roll(words, -i, axis=1) for i in range(4)]
    return to, np.concatenate(expected, axis=1).astype(np.uint32)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("late_copies", [1.0, 0.5])
def test_asynchronous_copies(kernels, schedule, late_copies):
    kernels.configure(**schedule, late_copies=late_copies)
    np.testing.assert_array_equal(*copied(kernels, "copies"))


def test_missing_wait_for_a_copy(kernels):
    kernels.configure(races=False)
    to, expected = copied(kernels, "copies_without_wait")
    assert not np.array_equal(to, expected)
    kernels.configure()
    with pytest.raises(ReportError, match="data race on shared memory of block") as caught:
        copied(kernels, "copies_without_wait")
    assert "while the asynchronous copy by" in str(caught.value)
    assert line("BUG copy") in str(caught.value)


def test_missing_barrier_after_a_copy(kernels):
    with pytest.raises(ReportError, match=r"data race|while the asynchronous copy") as caught:
        copied(kernels, "copies_without_barrier")
    assert line("BUG copy") in str(caught.value)


def test_an_unknown_instruction_is_an_error(kernels):
    kernels.plant(lambda k: k.change(r"add\.s32", "add.sat.s32"))
    with pytest.raises(Exception, match=r"unknown: add\.sat\.s32"):
        copied(kernels, "copies")
    kernels.plant(None)

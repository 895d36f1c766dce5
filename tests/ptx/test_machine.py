"""The machine itself, by the kernels of test_kernels.cu: the product's primitives against numpy,
correct kernels run clean under every schedule, and every bug is found and named."""

import ctypes
import re

import build
import machine
import numpy as np
import pytest
import torch
from machine import Machine, ReportError

SOURCE = build.HERE / "test_kernels.cu"
SCHEDULES = machine.schedules(seeds=2)


def kernel_lines(bug: str) -> list[str]:
    """Every line of a bug's kernel."""
    lines = SOURCE.read_text().splitlines()
    first = next(i for i, text in enumerate(lines, 1) if text.startswith(f"BUG({bug})"))
    last = next(i for i in range(first, len(lines)) if lines[i - 1] == "}")
    return [f"tests/ptx/{SOURCE.name}:{i} " for i in range(first, last + 1)]


def params(kernels: Machine, **values: np.ndarray | int) -> ctypes.Structure:
    """The argument of a kernel: numbers, and arrays by address."""
    fields = []
    for name, value in values.items():
        is_array = isinstance(value, np.ndarray)
        fields.append((name, ctypes.c_void_p if is_array else ctypes.c_int))
        if is_array:
            kernels.add_memory(name, torch.from_numpy(value.view(np.uint8).reshape(-1)))
    struct = type("Params", (ctypes.Structure,), {"_fields_": fields})
    return struct(*(v.ctypes.data if isinstance(v, np.ndarray) else v for v in values.values()))


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy that begins at 16 bytes."""
    block = np.zeros(values.nbytes + 16, np.uint8)
    start = -block.ctypes.data % 16
    copy = block[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def line(marker: str) -> str:
    """Where the kernels say `marker`."""
    lines = SOURCE.read_text().splitlines()
    found = [i for i, text in enumerate(lines, 1) if text.endswith(f"// {marker}")]
    assert len(found) == 1, f"{marker}: {found}"
    return f"tests/ptx/{SOURCE.name}:{found[0]}"


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
    out = np.zeros((64, 6), np.int32)
    kernels.run_kernel("warps", params(kernels, out=out), threads=64)
    t = np.arange(64)
    np.testing.assert_array_equal(out[:, 0], t // 32 * 32 + 5)
    np.testing.assert_array_equal(out[:, 1], t ^ 3)
    np.testing.assert_array_equal(out[:, 2], t // 8 * 8 + 2)
    np.testing.assert_array_equal(out[:, 3], t >= 32)
    np.testing.assert_array_equal(out[:, 4], t ^ 16)
    words = (t.astype(np.uint64) * 0x01020304).astype(np.uint32)
    np.testing.assert_array_equal(out[:, 5].view(np.uint32), words.byteswap())


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


# ---- a recurrence over blocks: correct, then with bugs


def run_steps(kernels: Machine, name: str, T: int = 6, N: int = 128):
    """What the kernel makes of h and what it should."""
    h = aligned(np.full((T + 1, N), 0xFFFFFFFF, np.uint32))
    h[0] = np.random.default_rng(0).integers(0, 2**32, N, dtype=np.uint32) >> 2
    expected = h.copy()
    powers = np.array([pow(31, N - 1 - k, 2**32) for k in range(N)], np.uint64)
    start = np.arange(N, dtype=np.uint64) * np.uint64(pow(31, N, 2**32))
    for s in range(T):
        total = start + (expected[s] * powers % 2**32).sum()
        expected[s + 1] = (total % 2**32 >> np.uint64(2)).astype(np.uint32)
    blocks = N // 32
    flags = np.zeros((T, blocks + 1), np.uint32)
    peers = name.startswith("peers")
    kernels.clear_memory()
    kernels.run_kernel(
        name, params(kernels, h=h, flags=flags, T=T, N=N), grid=(blocks, 1, 1),
        shared_bytes=8 * N, cluster=blocks if peers else 1, cooperative=not peers,
    )  # fmt: skip
    return h, expected


@pytest.mark.parametrize("how", ["flags", "data", "peers"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_correct_steps(kernels, schedule, how):
    for delays in (0.0, 0.5):
        kernels.configure(**schedule, delays=delays)
        np.testing.assert_array_equal(*run_steps(kernels, f"{how}_right"))


def outcomes(kernels: Machine, name: str, seeds: int, **settings) -> list[str]:
    """For each schedule: the report, "wrong numbers" or nothing."""
    results = []
    for schedule in machine.schedules(seeds):
        kernels.configure(**schedule, **settings)
        try:
            h, expected = run_steps(kernels, name)
        except ReportError as error:
            results.append(str(error))
        else:
            results.append("" if np.array_equal(h, expected) else "wrong numbers")
    return results


# What shows without the race detector, in memory that is weaker than the host's.
NUMBERS = {
    "flags_no_wait": "wrong numbers",
    "flags_no_barrier": "wrong numbers",
    "flags_relaxed": "wrong numbers",
    "flags_nobody": "livelock: threads only wait in vain",
    "data_halves": "wrong numbers",
    "peers_no_barrier": "wrong numbers|late access|early access",
    "peers_leaves_early": "late access: ",
    "peers_no_start": "early access: ",
}


@pytest.mark.parametrize("name", NUMBERS)
def test_step_bugs_show_in_numbers(kernels, name):
    found = [r for r in outcomes(kernels, name, 10, races=False, delays=0.5) if r]
    assert found
    for report in found:
        assert re.match(NUMBERS[name], report), report


RACES = {
    "flags_no_wait": ("data race on h + ", "READ h", "WRITE h"),
    "flags_no_barrier": ("data race on h + ", "READ h", "WRITE h"),
    "flags_relaxed": ("data race on h + ", "READ h", "WRITE h"),
    "peers_no_barrier": ("data race on shared memory of block ", None, "WRITE peer"),
    "peers_leaves_early": ("late access: ", None, "WRITE peer"),
    "peers_no_start": ("early access: ", None, "WRITE peer"),
}


@pytest.mark.parametrize("name", RACES)
def test_step_bugs_by_happens_before(kernels, name):
    """Under every schedule, also where the numbers are right."""
    start, *markers = RACES[name]
    found = outcomes(kernels, name, 2)
    assert all(found), found
    named = [report for report in found if report.startswith(start)]
    assert named, found
    for marker in filter(None, markers):
        assert any(line(marker) in report for report in named), named


def test_a_relaxed_flag_looks_right_in_sequential_memory(kernels):
    """Why memory is weaker here, and why there is a detector."""
    assert not any(outcomes(kernels, "flags_relaxed", 3, races=False, delays=0.0))


# ---- one bug each


def run_bug(kernels: Machine, bug: str, blocks: int = 1, cooperative: bool = True) -> np.ndarray:
    out = aligned(np.zeros(256, np.uint32))
    kernels.clear_memory()
    kernels.run_kernel(bug, params(kernels, out=out), grid=(blocks, 1, 1), threads=64,
                       shared_bytes=256, cooperative=cooperative)  # fmt: skip
    return out


def report_of(kernels: Machine, bug: str, **arguments) -> str:
    with pytest.raises(ReportError) as caught:
        run_bug(kernels, bug, **arguments)
    return str(caught.value)


# How the report of each bug begins. It also names the line of the bug.
REPORTS = {
    "divergent_barriers": "deadlock: no thread can run",
    "two_places": "divergence: barrier of the block, others are in that of PTX line",
    "half_a_shuffle": "divergence: ",
    "lane_gone": "divergence: shfl.sync.bfly.b32 waits for lanes that have exited",
    "half_a_warp": "divergence: bar.sync, but other lanes of its mask are in bar.sync",
    "half_a_matrix": "divergence: ",
    "two_counts": "divergence: barrier with a count of ",
    "no_block_barrier": "data race on shared memory of block 0 + ",
    "no_warp_barrier": "data race on shared memory of block 0 + ",
    "wrong_barrier": "data race on shared memory of block 0 + ",
    "shuffle_is_no_barrier": "data race on shared memory of block 0 + ",
    "one_word": "data race on out + 0 bytes",
    "past_shared": "out of bounds: 4 bytes at 256 of 256 bytes of shared memory",
    "past_global": "out of bounds: 4 bytes of out, 1276 bytes from its begin, 252 from its end",
    "raw_spin": "livelock: threads only wait in vain",
    "votes_for_ever": "livelock: threads only wait in vain",
    "two_flags_never": "livelock: threads only wait in vain",
    "one_lane_polls": "livelock: threads only wait in vain",
    "barrier_every_round": "livelock: threads only wait in vain",
    "counts_for_ever": "endless: the launch has used up its steps",
    "stores_for_ever": "endless: the launch has used up its steps",
    "misaligned_row": "misaligned: 16 bytes at address",
    "row_not_shared": "out of bounds: 16 bytes at 4096 of 256 bytes of shared memory",
    "no_arrive": "misuse: a wait for the cluster barrier without an arrive",
    "no_cluster_wait": "misuse: exits between arrive and wait of a cluster barrier",
    "no_such_rank": "misuse: mapa to rank 1 of 1",
    "no_such_barrier": "misuse: barrier 16, 0 to 15 expected",
    "outside_mask": "misuse: shfl reads lane 3, which is not in the mask",
    "misaligned_copy": "misaligned: 16 bytes at address",
    "misaligned_load": "misaligned: 16 bytes at address",
}
# Found anywhere in the kernel: in a loop, or where the thread exits.
ANYWHERE = ("livelock", "endless", "misuse: exits")


@pytest.mark.parametrize("bug", REPORTS)
@pytest.mark.parametrize("schedule", machine.schedules(seeds=1), ids=str)
def test_reports(kernels, schedule, bug):
    kernels.configure(**schedule, most_steps=300 if REPORTS[bug][:7] == "endless" else 20_000)
    report = report_of(kernels, bug)
    assert report.startswith(REPORTS[bug]), report
    lines = kernel_lines(bug) if report.startswith(ANYWHERE) else [line(f"BUG {bug}")]
    assert any(place in report.replace("\n", " ") for place in lines), report
    assert re.search(r"PTX line \d+", report) and report.endswith(f"in {bug}"), report


def test_both_sides_of_a_race_are_named(kernels):
    report = report_of(kernels, "no_block_barrier")
    assert re.search(r"not ordered after the (read|write) by block 0 thread \d+", report), report
    assert line("WRITE shared") in report and line("BUG no_block_barrier") in report, report


def test_deadlock_tells_who_waits_where(kernels):
    report = report_of(kernels, "divergent_barriers")
    for first in (0, 32):
        assert re.search(
            rf"\n  32 threads: bar.sync at .* \(first: block 0 thread {first}\)", report
        )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_two_flags_that_arrive_late(kernels, schedule):
    kernels.configure(**schedule)
    run_bug(kernels, "two_flags_late")


def test_waiting_across_blocks_needs_cooperation(kernels):
    """Without a cooperative launch, some seed runs one block at a time."""
    found = []
    for seed in range(12):
        kernels.configure(schedule="random", seed=seed + 1)
        try:
            run_bug(kernels, "waits_for_a_block", blocks=3, cooperative=False)
        except ReportError as error:
            found.append(str(error))
    assert 0 < len(found) < 12
    assert all(report.startswith("livelock") for report in found)
    assert any("not started: the launch is not cooperative" in report for report in found)
    run_bug(kernels, "waits_for_a_block", blocks=3)


def test_cooperative_launch_too_large(kernels):
    with pytest.raises(RuntimeError, match="too many blocks in cooperative launch: 9999"):
        run_bug(kernels, "warp_barrier", blocks=9999)
    kernels.device(refuses_cooperation=True)
    with pytest.raises(RuntimeError, match="too many blocks in cooperative launch: 1,"):
        run_bug(kernels, "warp_barrier")


def test_missing_barrier_shows_in_numbers(kernels):
    wrong = 0
    for schedule in machine.schedules(seeds=5, yields=0.5):
        kernels.configure(**schedule, races=False)
        wrong += not np.array_equal(run_bug(kernels, "no_block_barrier")[:64], np.arange(64)[::-1])
    assert wrong


def test_warp_barrier_orders(kernels):
    np.testing.assert_array_equal(run_bug(kernels, "warp_barrier")[:64], np.arange(64) ^ 1)


def test_shared_memory_is_nan_until_written(kernels):
    assert (run_bug(kernels, "never_written")[:64] == 0xFFFFFFFF).all()


def test_an_unknown_instruction_is_an_error(kernels):
    kernels.plant(lambda k: k.change(r"add\.s32", "add.sat.s32"))
    with pytest.raises(Exception, match=r"unknown: add\.sat\.s32"):
        copied(kernels, "copies")
    kernels.plant(None)

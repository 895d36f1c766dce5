"""The machine itself, by the kernels of test_kernels.cu: those without a bug run clean under every
schedule, and every bug is found and named."""

import re

import machine
import numpy as np
import pytest
from machine import Machine, ReportError
from small_kernels import SCHEDULES, aligned, kernel_lines, line, params

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
    kernels.device(refuses_cooperation=1)
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

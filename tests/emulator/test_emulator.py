"""The emulator itself: correct kernels run clean, every seeded bug is found and named."""

import re
import subprocess
from pathlib import Path

import build
import numpy as np
import pytest

KERNELS = [Path(__file__).with_name(f"emulator_{part}.cuh") for part in ("kernels", "bugs")]
SCHEDULES = build.schedules(seeds=3)


def line(marker: str) -> str:
    """Where the kernels say `marker`."""
    found = [
        f"{path.name}:{number}"
        for path in KERNELS
        for number, text in enumerate(path.read_text().splitlines(), 1)
        if text.endswith(f"// {marker}")
    ]
    assert len(found) == 1, f"{marker}: {found}"
    return found[0]


def random_words(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)


# ---- asynchronous copies


def copied(kernels, bug: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = np.arange(3 * 128, dtype=np.uint32).reshape(3, 128)
    to = np.zeros_like(blocks)
    kernels.copy(blocks, to, bug)
    words = blocks[:, :32].copy()
    words[:, 31] = 0
    sums = blocks.reshape(3, 4, 32)[:, :, ::-1].sum(1)
    expected = [sums * i + np.roll(words, -i, axis=1) for i in range(4)]
    return to, np.concatenate(expected, axis=1).astype(np.uint32)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_asynchronous_copies(emulator, schedule):
    emulator.configure(**schedule)
    np.testing.assert_array_equal(*copied(emulator, bug=0))


# ---- a recurrence over blocks: correct, then with bugs


def run_steps(kernels, how: str, bug: str = "correct", T: int = 6, N: int = 128):
    """What the kernel makes of h and what it should."""
    h = np.full((T + 1, N), 0xFFFFFFFF, np.uint32)
    h[0] = random_words(N) >> 2
    expected = h.copy()
    powers = np.array([pow(31, N - 1 - k, 2**32) for k in range(N)], np.uint64)
    start = np.arange(N, dtype=np.uint64) * np.uint64(pow(31, N, 2**32))
    for s in range(T):
        total = start + (expected[s] * powers % 2**32).sum()
        expected[s + 1] = (total % 2**32 >> np.uint64(2)).astype(np.uint32)
    flags = np.zeros((T, N // 32 + 1), np.uint32)
    kernels.steps(how, h, flags, bug)
    return h, expected


@pytest.mark.parametrize("how", ["flags", "data", "cluster"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_correct_steps(emulator, schedule, how):
    emulator.configure(**schedule)
    np.testing.assert_array_equal(*run_steps(emulator, how))


def outcomes(kernels, how: str, bug: str, seeds: int = 10) -> list[str]:
    """For each schedule: the report, "wrong numbers" or nothing."""
    results = []
    for schedule in build.schedules(seeds):
        kernels.configure(**schedule)
        try:
            h, expected = run_steps(kernels, how, bug)
        except build.EmulatorError as error:
            results.append(str(error))
        else:
            results.append("" if np.array_equal(h, expected) else "wrong numbers")
    return results


PLAIN_STEP_BUGS = {
    ("flags", "no_wait"): "wrong numbers",
    ("flags", "no_barrier"): "wrong numbers",
    ("flags", "waits_for_nobody"): "livelock: threads only wait in vain",
    ("data", "halves"): "wrong numbers",
    ("cluster", "no_cluster_barrier"): "wrong numbers|late access",
    ("cluster", "leaves_early"): "late (access|write): ",
}


@pytest.mark.parametrize(("how", "bug"), PLAIN_STEP_BUGS)
def test_step_bugs_under_schedules(plain, how, bug):
    found = [report for report in outcomes(plain, how, bug) if report]
    assert found
    for report in found:
        assert re.match(PLAIN_STEP_BUGS[how, bug], report), report


RACE_STEP_BUGS = {
    ("flags", "no_wait"): ("data race on h + ", "READ h", "WRITE h"),
    ("flags", "no_barrier"): ("data race on h + ", "READ h", "WRITE h"),
    ("flags", "relaxed_flag"): ("data race on h + ", "READ h", "WRITE h"),
    ("data", "halves"): ("data race on h + ", "BUG halves", None),
    ("cluster", "no_cluster_barrier"): ("data race on shared memory of block ", None, "WRITE peer"),
    ("cluster", "leaves_early"): ("late access: ", None, "WRITE peer"),
    ("cluster", "no_barrier_at_start"): ("early access: write of shared", None, "WRITE peer"),
}


@pytest.mark.parametrize(("how", "bug"), RACE_STEP_BUGS)
def test_step_bugs_by_race_detector(race, how, bug):
    start, *markers = RACE_STEP_BUGS[how, bug]
    found = [report for report in outcomes(race, how, bug, seeds=2) if report]
    named = [report for report in found if report.startswith(start)]
    assert named, found
    for marker in filter(None, markers):
        assert any(line(marker) in report for report in named), named


def test_relaxed_flag_looks_right_without_race_detector(plain):
    """Why there is a detector: execution is sequentially consistent."""
    assert not any(outcomes(plain, "flags", "relaxed_flag"))


# ---- one bug each


def run_bug(kernels, bug: str, **arguments) -> np.ndarray:
    out = np.zeros(256, np.uint32)
    kernels.bug(bug, out, **arguments)
    return out


def report_of(kernels, bug: str, **arguments) -> str:
    with pytest.raises(build.EmulatorError) as caught:
        run_bug(kernels, bug, **arguments)
    return str(caught.value)


# How the report of each bug begins. It also names the line of the bug.
REPORTS = {
    "divergent_barriers": "deadlock: no thread can run",
    "two_places": "divergence: __syncthreads reached at different places",
    "half_a_shuffle": "divergence: ",
    "lane_gone": "divergence: ",
    "half_a_warp": "divergence: named_barrier reached by some lanes of warp",
    "two_mma": "divergence: mma, but other lanes are in mma",
    "two_counts": "divergence: named_barrier of ",
    "votes_for_ever": "livelock: threads only wait in vain",
    "two_flags_never": "livelock: threads only wait in vain",
    "votes_without_spin": "livelock: threads only wait in vain",
    "one_lane_polls": "livelock: threads only wait in vain",
    "barrier_every_round": "livelock: threads only wait in vain",
    "misaligned_row": "misuse: load_matrices of a row that is not 16-byte aligned",
    "row_not_shared": "misuse: load_matrices from outside the block's shared memory",
    "no_arrive": "misuse: cluster_wait without cluster_arrive",
    "no_cluster_wait": "misuse: exits between cluster_arrive and cluster_wait",
    "no_such_rank": "misuse: cluster_map to rank 1 of 1",
    "no_such_barrier": "misuse: named_barrier 16, 1 to 15 expected",
    "outside_mask": "misuse: __shfl_sync: reads lane 3, which is not in the mask",
    "misaligned_copy": "misuse: copy_async between places that are not 16-byte aligned",
}


@pytest.mark.parametrize("bug", REPORTS)
@pytest.mark.parametrize("schedule", build.schedules(seeds=1), ids=str)
def test_reports(emulator, schedule, bug):
    emulator.configure(**schedule)
    report = report_of(emulator, bug)
    assert report.startswith(REPORTS[bug]), report
    assert line(f"BUG {bug}") in report, report


def test_deadlock_tells_who_waits_where(emulator):
    report = report_of(emulator, "divergent_barriers")
    assert re.search(r"\n  32 threads: __syncthreads at .* \(first: block 0 thread 0\)", report)
    assert re.search(r"\n  32 threads: named_barrier at .* \(first: block 0 thread 32\)", report)


def test_exception_in_a_kernel(emulator):
    assert report_of(emulator, "throws") == "exception in a kernel: thrown by thread 5"


def test_raw_spin(emulator):
    emulator.configure(watchdog=0.3)
    report = report_of(emulator, "raw_spin")
    assert report.startswith("raw spin: a thread ran for seconds without giving way")
    assert line("BUG raw_spin") in report, report
    emulator.configure()
    run_bug(emulator, "warp_barrier")  # the next launch is not harmed


def test_endless_launch(emulator):
    emulator.configure(watchdog=0.1, launch_limit=0.3)
    report = report_of(emulator, "stores_for_ever")
    assert report.startswith("endless: the launch has used up its CPU time")
    assert line("BUG stores_for_ever") in report, report


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_two_flags_that_arrive_late(emulator, schedule):
    emulator.configure(**schedule)
    run_bug(emulator, "two_flags_late")


def test_waiting_across_blocks_needs_cooperation(emulator):
    emulator.configure(resident_blocks=1)
    report = report_of(emulator, "waits_for_a_block", blocks=3, cooperative=False)
    assert report.startswith("livelock")
    assert line("BUG waits_for_a_block") in report
    assert "2 blocks have not started: the launch is not cooperative" in report
    emulator.configure(resident_blocks=3)
    run_bug(emulator, "waits_for_a_block", blocks=3)


def test_random_schedules_promise_no_residency(plain):
    """Without a cooperative launch, some seed runs one block at a time."""
    found = 0
    for seed in range(20):
        plain.configure(schedule="random", seed=seed)
        try:
            run_bug(plain, "waits_for_a_block", blocks=3, cooperative=False)
        except build.EmulatorError:
            found += 1
    assert 0 < found < 20


def test_cooperative_launch_too_large(emulator):
    emulator.configure(resident_blocks=2)
    report = report_of(emulator, "warp_barrier", blocks=3)
    assert report == "launch: too many blocks in cooperative launch: 3, the device holds 2"


def test_missing_barrier_shows_in_numbers(plain):
    """Round robin always shows it, a random order nearly always."""
    for schedule in build.schedules(seeds=3):
        plain.configure(**schedule)
        assert not np.array_equal(run_bug(plain, "no_block_barrier")[:64], np.arange(64)[::-1])


@pytest.mark.parametrize(
    "bug", ["no_block_barrier", "no_warp_barrier", "wrong_barrier", "one_word"]
)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_races(race, schedule, bug):
    race.configure(**schedule)
    report = report_of(race, bug)
    memory = "out + 0 bytes" if bug == "one_word" else "shared memory of block 0 + "
    assert report.startswith(f"data race on {memory}")
    assert re.search(r"by block 0 thread \d+, not ordered after the (read|write)", report), report
    assert line(f"BUG {bug}") in report, report
    if bug == "no_block_barrier":  # both sides of the race
        assert line("WRITE shared") in report, report


def test_warp_barrier_orders(race):
    np.testing.assert_array_equal(run_bug(race, "warp_barrier")[:64], np.arange(64) ^ 1)


def test_shared_memory_is_nan_until_written(plain):
    assert (run_bug(plain, "never_written")[:64] == 0xFFFFFFFF).all()


def test_overrun_of_shared_memory(plain):
    report = report_of(plain, "past_shared")
    assert report == "overrun: block 0 wrote past the end of its shared memory"


def test_missing_wait_for_a_copy(plain, race):
    plain.configure()
    to, expected = copied(plain, bug=1)
    assert not np.array_equal(to, expected)
    with pytest.raises(build.EmulatorError) as caught:
        copied(race, bug=1)
    report = str(caught.value)
    assert report.startswith("data race: read of shared memory of block ")
    assert "while an asynchronous copy at " in report
    assert line("BUG copy") in report


def test_missing_barrier_after_a_copy(race):
    race.configure()
    with pytest.raises(build.EmulatorError, match="data race") as caught:
        copied(race, bug=2)
    assert line("BUG copy") in str(caught.value)


# ---- address sanitizer, in a process of its own


def under_address(code: str) -> subprocess.CompletedProcess:
    prelude = "import build, test_emulator as t; k = build.module('bind_emulator')\n"
    return build.run_address("-c", prelude + code)


def test_address_sanitizer_accepts_correct_kernels():
    code = """
for schedule in build.schedules(1):
    k.configure(**schedule)
    for how in ("flags", "data", "cluster"):
        h, expected = t.run_steps(k, how)
        assert (h == expected).all()
    to, expected = t.copied(k, 0)
    assert (to == expected).all()
try:
    t.run_bug(k, "divergent_barriers")
except build.EmulatorError as error:
    print(error)
t.run_bug(k, "warp_barrier")
print("done")
"""
    result = under_address(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("deadlock") and result.stdout.endswith("done\n")


@pytest.mark.parametrize(
    ("code", "kind", "marker"),
    [
        ("t.run_bug(k, 'past_shared')", "heap-buffer-overflow", "BUG past_shared"),
        ("t.run_bug(k, 'past_global')", "heap-buffer-overflow", "BUG past_global"),
        ("t.outcomes(k, 'cluster', 'leaves_early')", "heap-use-after-free|late access", None),
    ],
)
def test_address_sanitizer_finds(code, kind, marker):
    result = under_address(f"print({code})")
    output = result.stdout + result.stderr
    assert re.search(kind, output), output
    assert (line(marker) if marker else KERNELS[0].name) in output, output

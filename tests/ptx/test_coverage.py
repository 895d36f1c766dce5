"""Which kernels a plan can choose on any GPU, that the device takes each of those launches, and
that every one of them runs here with its results compared."""

import functools
import itertools
from dataclasses import replace

import cases
import kernel_cases
import layer
import mask_kernel
import pytest
from cases import Case
from layer import How
from machine import Machine

TYPES = ("bfloat16", "float16", "tf32")
ENGINES = ("auto", "block", "cluster", "grid", "grid_flags", "stepwise")
WIDTHS = (1, 16, 17, 32, 48, 64, 100, 128, 200, 256, 300, 384, 512, 768, 1024, 1500, 1536, 2000)
BATCHES = (1, 8, 9, 20, 64, 128, 400, 1000, 4096)
REFUSED = "engine: expected"

# Kernels that a plan can choose and that no test here runs, and why. None.
LEFT_OUT: dict[str, str] = {}


def problems(kinds, engines):
    """Sizes from 1 unit to more than any engine takes, of pairs of cell and precision."""
    for (cell, precision), engine, masks, I, H, B in itertools.product(  # noqa: E741
        kinds, engines, ("none", "untied"), (24, 1024), WIDTHS, BATCHES
    ):
        resets = "none" if masks == "none" else "random"
        yield Case(cell, T=2, B=B, I=I, H=H, masks=masks, resets=resets), precision, engine


@functools.cache
def launches(machine: Machine) -> frozenset[str]:
    """Every kernel that some plan launches; a launch that the device refuses is an error."""
    own = problems(layer.KERNELS, ENGINES)
    plain = problems(list(itertools.product(cases.CELLS, layer.PRECISIONS)), ("stepwise",))
    found: set[str] = set()
    machine.device(dry=True)
    try:
        for case, precision, engine in itertools.chain(own, plain):
            for backward, ahead in ((False, 0), (True, 0), (True, kernel_cases.OTHER_AHEAD)):
                how = How(engine, ahead=ahead)
                try:
                    found |= set(layer.dry(machine, case, precision, how, backward=backward))
                except RuntimeError as error:
                    if not str(error).startswith(REFUSED):
                        raise AssertionError(f"{case} {precision} {engine}: {error}") from None
        found |= mask_kernel.kernels(machine)
    finally:
        machine.device()
    return frozenset(found)


def test_the_device_takes_what_is_planned(engines):
    """Registers by ptxas, shared memory, parameters, and blocks that must run at the same time."""
    assert launches(engines)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ("80", "100", "120"))
def test_other_devices_take_what_is_planned(machines, arch):
    assert launches(machines(arch))


# ---- each of them runs

# Chunks, and whether a block loops over batch tiles: csrc/cuda/plan/tilings.h.
FORWARD = [(1, 0), (2, 0), (3, 0), (4, 0), (2, 1), (4, 1), (6, 1)]
BACKWARD = [1, 2, 3, 4, 6]


def tilings():
    """Every tiling of a grid, with H so small that it takes little time."""
    every = itertools.product(layer.KERNELS, ("tied", "untied"), FORWARD)
    for i, ((cell, precision), masks, (chunks, looped)) in enumerate(every):
        half = 2 if precision == "tf32" else 1
        H = (chunks * 32 + 40 * (i % 3)) // half + 9  # some warps have no chunk of their own
        H = min(H, BACKWARD[i % 5] * 8 * 32 // half)
        case = Case(cell, T=2, B=(5, 17, 21)[i % 3], I=8 + i % 2, H=H, masks=masks,
                    lengths=i % 2 == 0, reverse=i % 4 < 2,
                    resets=("none", "random")[i // 2 % 2])  # fmt: skip
        backward = (BACKWARD[i % 5], 8, 1, 1)
        how = How("grid", forward=(chunks, 8, 1, looped), backward=backward, groups=1 + i % 2)
        yield case, precision, how
        if BACKWARD[i % 5] == 3:
            yield case, precision, replace(how, ahead=kernel_cases.OTHER_AHEAD)


def others():
    """The other engines, and the products at sizes of their tiles and of several splits of k."""
    for (cell, precision), masks in itertools.product(layer.KERNELS, ("tied", "untied")):
        half = 2 if precision == "tf32" else 1
        for engine, H, I in (  # noqa: E741
            ("block", 51, 80), ("block", 115, 8), ("block", 64, 32 // half),
                             ("block", 128 // half, 40), ("cluster", 128, 16),
                             ("grid_flags", 96, 16)):  # fmt: skip
            H = H if engine == "block" and 64 // half < H and half == 1 else max(1, H // half)
            yield Case(cell, T=2, B=5, I=I, H=H, masks=masks, lengths=True), precision, How(engine)
    for cell, precision, masks in itertools.product(
        cases.CELLS, layer.PRECISIONS, ("none", "tied", "untied")
    ):
        yield (
            Case(cell, T=3, B=5, I=24, H=37, masks=masks, lengths=True),
            precision,
            How("stepwise"),
        )
    for cell, precision in itertools.product(cases.CELLS, TYPES):
        yield Case(cell, T=30, B=36, I=24, H=16), precision, How("stepwise")
        yield Case(cell, T=2, B=700, I=260, H=200), precision, How("stepwise")
        yield Case(cell, T=2, B=2048, I=512, H=256), precision, How("stepwise")


def needed(machine: Machine) -> list[tuple[Case, str, How]]:
    """The cases that each launch a kernel that none before them does."""
    seen: set[str] = set()
    chosen = []
    machine.device(dry=True)
    for case, precision, how in itertools.chain(tilings(), others()):
        kernels = set()
        for backward in (False, True):
            kernels |= set(layer.dry(machine, case, precision, how, backward=backward))
        if kernels - seen:
            chosen.append((case, precision, how))
        seen |= kernels
    machine.device()
    return chosen


def run_all(machine: Machine) -> set[str]:
    """The kernels of cases whose results are right."""
    chosen = needed(machine)
    machine.configure(races=False, yields=0.001)
    ran: set[str] = set()
    for case, precision, how in chosen:
        made: list[layer.Run] = []
        assert not layer.differences(machine, case, precision, how, made), (case, precision, how)
        ran |= {kernel for run in made for kernel in run.kernels}
    for case in kernel_cases.MASKS:
        assert mask_kernel.agrees(machine, case), case
    return ran | set(machine.launched())


def test_every_compiled_kernel_can_be_chosen(engines):
    assert not sorted(engines.kernels.keys() - launches(engines))


def test_what_runs_on_a_gpu_launches_every_kernel(engines):
    """tests/gpu/test_gpu_kernels.py, on an H100: the same cases, without running them."""
    engines.device(dry=True)
    ran = {
        kernel
        for c in kernel_cases.CASES
        for backward in (False, True)
        for kernel in layer.dry(
            engines,
            c.case,
            c.precision,
            How(c.engine, ahead=c.ahead, grid_steps=c.grid_steps),
            backward=backward,
        )
    }
    ran |= mask_kernel.kernels(engines)  # of kernel_cases.MASKS
    engines.device()
    assert not sorted(launches(engines) - ran)


@pytest.mark.slow
def test_every_kernel_that_a_plan_can_choose_runs(engines):
    """The plans for an H100 need every kernel that is compiled: see the test above."""
    wanted = launches(engines)
    ran = run_all(engines)
    left_out = sorted(wanted - ran - LEFT_OUT.keys())
    print(f"{len(wanted)} kernels can be chosen, {len(wanted & ran)} of them ran")
    assert not left_out, "\n".join(left_out)

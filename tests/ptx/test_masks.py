"""The kernel that draws masks on a GPU: bit for bit what the CPU draws from the same seeds."""

import machine
import mask_kernel
import pytest
import torch
from kernel_cases import MASKS
from machine import ReportError
from source import Kernel
from test_bugs import at

KERNELS = "cuda/masks/kernels.cuh"


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_bits_are_those_of_the_cpu(engines, case):
    for settings in machine.schedules(seeds=1):
        engines.configure(**settings)
        for seeds in (mask_kernel.SEEDS, torch.tensor([-1, 0])):
            engines.launched()
            assert mask_kernel.agrees(engines, case, seeds)
            assert len(engines.launched()) == (case.B > 0)  # one launch for both masks


@pytest.mark.slow
@pytest.mark.parametrize("arch", ("80", "100", "120"))
def test_other_architectures(machines, arch):
    assert all(mask_kernel.agrees(machines(arch), case) for case in MASKS)


# instruction, what stands in its place, where it comes from
BUGS = {
    "a rotation by one place less": (r"(shf\.l\.wrap\.b32 .*), 17", r"\1, 16", ""),
    "what drops is kept": (
        r"setp\.le\.s64 (.*)", r"setp.gt.s64 \1", at(KERNELS, "p.dropping) <<"),
    ),
    "counters of another block": (
        r"shl\.b64 (.*), 4", r"shl.b64 \1, 5", at(KERNELS, "uint64_t(block) * kCounters"),
    ),
    "four bytes past the end": (
        r"setp\.gt\.s64 (%p\d+), .*", r"mov.pred \1, 0", at(KERNELS, "at + 4 <= p.count"),
    ),
    "threads past the end": (
        r"setp\.ge\.s64 (%p\d+), .*", r"mov.pred \1, 0", at(KERNELS, "thread >= part.threads"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_found(engines, bug):
    instruction, new, source = BUGS[bug]
    changed = []

    def edit(kernel: Kernel) -> None:
        changed.append(kernel.change(instruction, new, source))

    engines.plant(edit)
    try:
        found = not all(mask_kernel.agrees(engines, case) for case in MASKS)
    except ReportError:
        found = True
    finally:
        engines.plant(None)
    assert sum(changed) > 0
    assert found

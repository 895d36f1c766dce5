"""Machines that the tests share. Without nvcc there is no PTX, and all of these are skipped."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import build  # noqa: E402
import pytest  # noqa: E402


def pytest_collection_modifyitems(items):
    if build.cuda_home() is None:
        reason = "no nvcc was found, so there is no PTX to execute (setup.py says where it looks)"
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def machines():
    """A machine for each architecture, as they are asked for."""
    from machine import Machine

    made: dict[str, Machine] = {}

    def of(arch: str) -> Machine:
        if arch not in made:
            made[arch] = Machine(arch)
        machine = made[arch]
        machine.plant(None)
        machine.device()
        machine.configure()
        return machine

    return of


@pytest.fixture
def engines(machines):
    """The engines on an H100, every setting as it was first."""
    return machines("90a")


@pytest.fixture(scope="session")
def small_machine():
    from machine import Machine

    return Machine("90a", "test_kernels.o")


@pytest.fixture
def kernels(small_machine):
    """The kernels of test_kernels.cu, every setting as it was first."""
    small_machine.device()
    small_machine.configure()
    small_machine.clear_memory()
    return small_machine

"""The kernels that test the emulator, in the variants that may share a process."""

import build
import pytest


@pytest.fixture(scope="module")
def plain():
    return build.module("bind_emulator", variant="plain")


@pytest.fixture(scope="module")
def race():
    return build.module("bind_emulator", variant="race")


@pytest.fixture(params=["plain", "race"])
def emulator(request):
    """Both variants, with their settings as they were first."""
    kernels = request.getfixturevalue(request.param)
    kernels.configure()
    return kernels

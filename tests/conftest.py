"""What every test shares. The sample layers stand in cases.py."""

import os

# Threads that spin while they wait make small layers a hundred times slower on a busy machine.
# Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch


@pytest.fixture
def two_threads():
    """Two parts of a batch even on one core, or after a module that left one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)

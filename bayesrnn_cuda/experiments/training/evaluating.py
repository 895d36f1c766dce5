"""How a model is evaluated without a trace: its mode and torch's generators are left as found."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`eval()` without gradients; leaves the mode as found."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def seeded_generator(device: torch.device | str, seed: int) -> torch.Generator:
    """A generator of its own: what is drawn from it leaves the global ones as they are."""
    return torch.Generator(device=device).manual_seed(seed)

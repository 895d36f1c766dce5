"""Averages that neither overflow nor stand still, whatever the dtype of what is averaged."""

import torch
from torch import Tensor


class Moments:
    """Mean and spread over dim 0 of chunks that arrive one by one (Chan et al., 1983).

    In float32 at least: in bfloat16 the mean of a few hundred samples stands still.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.tensor(0.0)
        self._squares = torch.tensor(0.0)  # sum of squared deviations from the mean

    def add(self, draws: Tensor) -> None:
        draws = at_least_float32(draws)
        count = draws.shape[0]
        mean = draws.mean(dim=0)
        squares = (draws - mean).square().sum(dim=0)
        if self.count == 0:
            self.count, self.mean, self._squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self.mean
        self._squares = self._squares + squares + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def std(self) -> Tensor:
        return (self._squares / self.count).sqrt()


def at_least_float32(x: Tensor) -> Tensor:
    """x, or where its dtype is narrower than float32 its values in that."""
    return x.float() if x.dtype.itemsize < 4 else x


def entropy(p: Tensor) -> Tensor:
    """-sum p log p over the last dimension, 0 log 0 = 0."""
    return torch.special.entr(p).sum(dim=-1)

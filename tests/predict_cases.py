"""Modules to predict with: dropout of every kind, any function, recorded outputs."""

import torch
from torch import nn

import bayesrnn_cuda as brnn

T, B, I, H = 4, 3, 5, 6  # noqa: E741


class Tagger(nn.Module):
    """Dropout of every kind around a recurrent layer; outputs [T, B, 2], or batch first."""

    def __init__(self, batch_first=False):
        super().__init__()
        self.before = brnn.LockedDropout(0.5, batch_first=batch_first)
        self.rnn = brnn.BayesianLSTM(
            I, H, batch_first=batch_first, input_dropout=0.5, recurrent_dropout=0.5
        )
        self.after = nn.Dropout(0.5)
        self.out = nn.Linear(H, 2)

    def forward(self, x):
        return self.out(self.after(self.rnn(self.before(x))[0]))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Replay(nn.Module):
    """Gives recorded outputs, whatever the input: [S*B, ...], sample by sample."""

    def __init__(self, draws):
        super().__init__()
        self.draws, self.start = draws.flatten(0, 1), 0

    def forward(self, x):
        self.start += len(x)
        return self.draws[self.start - len(x) : self.start]


def tagger(**options):
    torch.manual_seed(0)
    return Tagger(**options).eval()


def modes(module):
    return [m.training for m in module.modules()]

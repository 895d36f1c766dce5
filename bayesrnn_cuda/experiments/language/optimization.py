"""Objective, optimizer and learning-rate schedule of the language models."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .model import LanguageModelConfig


def window_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats: summed over a window's steps, averaged over its lanes.

    This is the authors' objective; their learning rate and gradient clipping belong to it.

    Args:
        logits: [T, B, V].
        targets: int64 [T, B].
    """
    total = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return total / targets.shape[1]


def learning_rate(config: LanguageModelConfig, epoch: int) -> float:
    """Learning rate of `epoch`, counted from 1: constant, then divided by `lr_decay` every epoch.

    The authors' code divides first after epoch `max_epoch + 1`: their 10 is 11 constant epochs.
    """
    return config.lr * config.lr_decay ** -max(0, epoch - config.lr_constant_epochs)


def make_optimizer(model: nn.Module, config: LanguageModelConfig) -> torch.optim.Optimizer:
    """SGD, to be followed by `decay_parameters`, or Adam with decoupled weight decay (AdamW)."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.lr)
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    return torch.optim.AdamW(model.parameters(), **settings, fused=True)


@torch.no_grad()
def decay_parameters(parameters: Iterable[Tensor], weight_decay: float) -> None:
    """Multiplies every parameter by 1 - weight_decay, whatever the rate (authors' code)."""
    for parameter in parameters:
        parameter.mul_(1.0 - weight_decay)

"""Objective, schedule, weight decay, one update by hand."""

import pytest
import torch
from torch import nn

from bayesrnn_cuda.experiments.language.model import LanguageModelConfig
from bayesrnn_cuda.experiments.language.task import (
    LanguageModelTask,
    decay_parameters,
    learning_rate,
    make_optimizer,
    window_loss,
)
from bayesrnn_cuda.experiments.training.trainer import Trainer


def test_loss_is_the_sum_over_steps_and_mean_over_lanes():
    logits, targets = torch.randn(5, 3, 7), torch.randint(7, (5, 3))
    log_p = logits.log_softmax(-1)
    expected = -sum(log_p[t, b, targets[t, b]] for t in range(5) for b in range(3)) / 3
    torch.testing.assert_close(window_loss(logits, targets), expected)


def test_loss_of_bfloat16_logits_is_summed_in_float32():
    logits, targets = torch.randn(50, 3, 7).bfloat16(), torch.randint(7, (50, 3))
    exact = window_loss(logits.double().float(), targets)
    torch.testing.assert_close(window_loss(logits, targets), exact, rtol=1e-6, atol=0)


def test_schedule_of_the_large_model():
    """The authors' log: rate 1 in epochs 1 to 11 (max_epoch 10), then divided by 1.15 each."""
    config = LanguageModelConfig(lr=1.0, lr_decay=1.15, lr_constant_epochs=11)
    rates = [learning_rate(config, epoch) for epoch in range(1, 15)]
    assert rates[:11] == [1.0] * 11
    assert rates[11:] == pytest.approx([1 / 1.15, 1 / 1.15**2, 1 / 1.15**3])
    assert rates[11] == pytest.approx(0.870, abs=5e-4)


def test_constant_schedule_by_default_and_no_overflow():
    assert learning_rate(LanguageModelConfig(lr=0.3), 10_000) == 0.3
    assert learning_rate(LanguageModelConfig(lr_decay=1e10), 10_000) == 0.0


def test_decay_is_per_update_and_for_every_parameter():
    layer = nn.Linear(3, 2)
    before = [parameter.clone() for parameter in layer.parameters()]
    decay_parameters(layer.parameters(), 0.1)
    for old, new in zip(before, layer.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), 0.9 * old)


def first_update(tiny, corpus, path, **changes):
    """Parameters before and after the first update of a run without dropout, and gradients."""
    config = tiny(dropout_kind="none", layers=1, **changes)
    trainer = Trainer.start(LanguageModelTask(config, corpus), path)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    inputs, targets = trainer.task.lanes[:5], trainer.task.lanes[1:6]
    loss = window_loss(trainer.model(inputs)[0], targets)
    gradients = torch.autograd.grad(loss, list(trainer.model.parameters()))
    torch.testing.assert_close(trainer.step(), loss.detach())
    return before, [parameter.detach() for parameter in trainer.model.parameters()], gradients


def test_sgd_update_clips_then_steps_then_decays(tiny, corpus, tmp_path):
    settings = {"optimizer": "sgd", "lr": 0.5, "weight_decay": 0.01, "clip": 0.1}
    before, after, gradients = first_update(tiny, corpus, tmp_path, **settings)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert norm > 0.1
    for old, new, gradient in zip(before, after, gradients, strict=True):
        expected = (old - 0.5 * gradient * 0.1 / norm) * 0.99
        torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-6)


def test_small_gradients_are_not_clipped(tiny, corpus, tmp_path):
    settings = {"optimizer": "sgd", "lr": 0.5, "clip": 1e6}
    before, after, gradients = first_update(tiny, corpus, tmp_path, **settings)
    for old, new, gradient in zip(before, after, gradients, strict=True):
        torch.testing.assert_close(new, old - 0.5 * gradient)


def test_adam_decay_is_decoupled_and_times_the_rate(tiny, corpus, tmp_path):
    plain = first_update(tiny, corpus, tmp_path / "a", lr=0.1)[1]
    before, decayed, _ = first_update(tiny, corpus, tmp_path / "b", lr=0.1, weight_decay=0.2)
    for old, without, with_decay in zip(before, plain, decayed, strict=True):
        torch.testing.assert_close(with_decay, without - 0.1 * 0.2 * old)


def test_optimizer_takes_every_parameter(tiny, corpus):
    for name in ("sgd", "adam"):
        model = LanguageModelTask(tiny(optimizer=name), corpus).model
        (group,) = make_optimizer(model, tiny(optimizer=name)).param_groups
        assert len(group["params"]) == len(list(model.parameters()))

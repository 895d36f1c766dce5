"""LockedDropout: one mask per sequence."""

import math

import pytest
import torch
from mask_cases import B, T, assert_independent, assert_rate

import bayesrnn_cuda as brnn


@pytest.mark.parametrize("batch_first", [False, True])
def test_locked_dropout_holds_one_mask_per_sequence(batch_first):
    torch.manual_seed(0)
    module = brnn.LockedDropout(0.25, batch_first=batch_first)
    x = torch.rand(2000, T, 8) + 1 if batch_first else torch.rand(T, 2000, 8) + 1
    y = module(x)
    y, x = (y.transpose(0, 1), x.transpose(0, 1)) if batch_first else (y, x)
    kept = y != 0
    assert torch.equal(kept, kept[:1].expand_as(kept))
    torch.testing.assert_close(y, torch.where(kept, x / 0.75, 0.0))
    assert_rate(kept[0], 0.75)
    assert_independent(kept[0, 1::2], kept[0, ::2], 0.75)
    assert_independent(kept[0, :, 1::2], kept[0, :, ::2], 0.75)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_locked_dropout_keeps_the_mean(p):
    torch.manual_seed(0)
    draws = 4000
    x = torch.tensor([-2.0, 0.5, 3.0])
    mean = brnn.LockedDropout(p)(x.expand(1, draws, 3)).mean(dim=(0, 1))
    assert ((mean - x).abs() < 5 * x.abs() * math.sqrt(p / (1 - p) / draws)).all()


@pytest.mark.parametrize("batch_first", [False, True])
def test_locked_dropout_with_a_held_mask(batch_first):
    module = brnn.LockedDropout(0.5, batch_first=batch_first)
    keep = module.sample_mask(B, 8, generator=torch.Generator().manual_seed(1))
    assert keep.shape == (B, 8)
    x = torch.rand(B, T, 8) + 1 if batch_first else torch.rand(T, B, 8) + 1
    along_time = keep.unsqueeze(1 if batch_first else 0)
    for training in (True, False):
        y = module.train(training)(x, keep=keep)
        assert torch.equal(y, torch.where(along_time, 2 * x, 0.0))


def test_locked_dropout_at_the_ends_of_p():
    x = torch.rand(T, B, 8, requires_grad=True)
    assert brnn.LockedDropout(0.0)(x) is x
    nothing = brnn.LockedDropout(1.0)(x)
    assert (nothing == 0).all()
    nothing.sum().backward()
    assert (x.grad == 0).all()


def test_locked_dropout_keeps_a_dropped_nan_out():
    module, keep = brnn.LockedDropout(0.5), torch.tensor([[True, False]] * B)
    x = torch.where(keep, torch.ones(T, B, 2), math.nan).requires_grad_()
    y = module(x, keep=keep)
    assert torch.equal(y, torch.tensor([2.0, 0.0]).expand(T, B, 2))
    y.sum().backward()
    assert torch.equal(x.grad, torch.tensor([2.0, 0.0]).expand(T, B, 2))


def test_locked_dropout_in_eval_and_under_mc_dropout():
    module, x = brnn.LockedDropout(0.5).eval(), torch.rand(T, B, 8) + 1
    assert module(x) is x
    with brnn.mc_dropout(module):
        first, second = module(x), module(x)
    assert (first == 0).any()
    assert not torch.equal(first, second)
    assert module(x) is x


def test_locked_dropout_errors_and_repr():
    for p, error in (
        (-0.1, ValueError),
        (1.1, ValueError),
        (math.nan, ValueError),
        ("0", TypeError),
    ):
        with pytest.raises(error, match=r"p: expected a probability .* in \[0, 1\], got"):
            brnn.LockedDropout(p)
    with pytest.raises(TypeError, match=r"batch_first: expected True or False, got 2"):
        brnn.LockedDropout(0.5, batch_first=2)
    module = brnn.LockedDropout(0.5)
    # [T, F] and [B, F] look alike: taking one for the other would share a mask, or not, silently
    for shape in ((8,), (T, 8), (1, T, B, 8)):
        with pytest.raises(ValueError, match=rf"x: expected 3 dimensions.*, got {len(shape)}"):
            module(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"keep: expected shape \[3, 8\], got \[2, 8\]"):
        module(torch.zeros(T, B, 8), keep=module.sample_mask(2, 8))
    with pytest.raises((ValueError, RuntimeError), match=r"keep: expected .*bool.*, got .*float32"):
        module(torch.zeros(T, B, 8), keep=torch.ones(B, 8))
    assert repr(module) == "LockedDropout(p=0.5)"
    assert (
        repr(brnn.LockedDropout(0.5, batch_first=True)) == "LockedDropout(p=0.5, batch_first=True)"
    )


@pytest.mark.parametrize("training", [True, False])
def test_integers_are_refused_by_name(training):
    module = brnn.LockedDropout(0.5).train(training)
    with pytest.raises(ValueError, match=r"^x: expected a floating-point dtype, got int64$"):
        module(torch.ones(T, B, 3, dtype=torch.long))

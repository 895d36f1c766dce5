"""Blocks of mc_dropout and mc_predict that nest, overlap and run in several threads."""

import threading

import pytest
import torch
from predict_cases import B, I, T, modes, tagger
from torch import nn

import bayesrnn_cuda as brnn
from bayesrnn_cuda import blocks


def in_threads(count, function):
    errors = []

    def caught(i):
        try:
            function(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=caught, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_blocks_that_end_in_any_order_restore_what_was(order, training):
    module = tagger().train(training)
    before = modes(module)
    opened = [brnn.mc_dropout(module) for _ in range(3)]
    for block in opened:
        block.__enter__()
    for index in order:
        assert module.after.training and module.rnn.draws_masks
        opened[index].__exit__(None, None, None)
    assert modes(module) == before
    assert blocks._open_flags == {}


def test_a_block_about_a_part_ends_after_that_of_the_whole():
    module, x = tagger(), torch.randn(T, B, I)
    whole, part = brnn.mc_dropout(module), brnn.mc_dropout(module.rnn)
    whole.__enter__()
    part.__enter__()
    whole.__exit__(None, None, None)
    assert torch.equal(module.before(x), x)
    assert not torch.equal(module.rnn(x)[0], module.rnn(x)[0])
    part.__exit__(None, None, None)
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("training", [False, True])
def test_four_threads_of_mc_predict_leave_the_modes(training):
    module, x = tagger().train(training), torch.randn(T, B, I)
    before, barrier = modes(module), threading.Barrier(4)
    spreads = []

    def work(i):
        barrier.wait()
        for _ in range(5):
            spreads.append(brnn.mc_predict(module, x, samples=6).std.min())

    in_threads(4, work)
    assert modes(module) == before
    assert len(spreads) == 20 and min(spreads) > 0
    assert not module.after._forward_pre_hooks
    module.eval()
    assert torch.equal(module(x), module(x))


def test_threads_that_overlap_step_by_step():
    """The second begins within the first and ends after it."""
    module = tagger()
    first_open, second_open, first_closed = (threading.Event() for _ in range(3))

    def work(i):
        if i == 0:
            with brnn.mc_dropout(module):
                first_open.set()
                second_open.wait(10)
            first_closed.set()
        else:
            first_open.wait(10)
            with brnn.mc_dropout(module):
                second_open.set()
                first_closed.wait(10)
                assert module.after.training and module.rnn.draws_masks

    in_threads(2, work)
    assert not any(modes(module))


@pytest.mark.parametrize("kind", ["ours", "torchs"])
def test_eval_and_train_within_a_block_act_on_every_dropout(kind):
    module, x = tagger(), torch.randn(T, B, I)
    part = module.rnn if kind == "ours" else module.after

    def draws():
        results = [part(x if kind == "ours" else torch.ones(T, B, 6)) for _ in range(2)]
        return not torch.equal(*(y[0] if isinstance(y, tuple) else y for y in results))

    with brnn.mc_dropout(module):
        assert draws()
        module.eval()
        assert not draws()
        with brnn.mc_dropout(module):
            assert draws()
        assert not draws()
        module.train()
        assert draws()
    assert not draws()


def test_an_exception_in_mc_predict_among_others_leaves_the_modes():
    module = tagger()
    with brnn.mc_dropout(module):
        inside = modes(module)
        with pytest.raises(ValueError, match="last dimension"):
            brnn.mc_predict(module, torch.randn(T, B, I + 1), samples=3)
        assert modes(module) == inside
    assert not any(modes(module))
    assert blocks._all_blocks == [] and blocks._open_flags == {}


def test_nn_dropout_outside_of_our_modules_is_restored_too():
    module = nn.Sequential(nn.Dropout(), nn.LSTM(4, 4, 2, dropout=0.5)).eval()
    first, second = brnn.mc_dropout(module), brnn.mc_dropout(module)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert not any(modes(module))


@pytest.mark.parametrize("block", [brnn.mc_dropout, brnn.hold_masks])
def test_wrong_types(block):
    with (
        pytest.raises(TypeError, match=r"module: expected an nn.Module, got function"),
        block(tagger),
    ):
        pass
    with pytest.raises(TypeError, match=r"hold: expected True or False, got 1"):
        brnn.mc_dropout(tagger(), hold=1).__enter__()

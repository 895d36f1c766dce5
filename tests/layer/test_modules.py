"""BayesianLSTM and BayesianGRU as drop-in replacements of nn.LSTM and nn.GRU."""

import pytest
import torch
from module_cases import (
    PAIRS,
    B,
    H,
    I,
    T,
    assert_same,
    every_cell,
    every_layout,
    flat,
    make_pair,
    run,
    states,
)
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import bayesrnn_cuda as brnn


@every_cell
@every_layout
@pytest.mark.parametrize("with_hx", [False, True], ids=["no_hx", "hx"])
def test_equals_torch(cell, layout, with_hx):
    ours, theirs = make_pair(cell, **layout)
    directions = layout["num_layers"] * (2 if layout["bidirectional"] else 1)
    x = torch.randn((B, T, I) if layout["batch_first"] else (T, B, I), dtype=torch.float64)
    assert_same(ours, theirs, x, states(cell, directions, B, H) if with_hx else None)


@every_cell
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_hx", [False, True], ids=["no_hx", "hx"])
def test_equals_torch_unbatched(cell, batch_first, bidirectional, with_hx):
    ours, theirs = make_pair(
        cell, num_layers=2, batch_first=batch_first, bidirectional=bidirectional
    )
    x = torch.randn(T, I, dtype=torch.float64)
    assert_same(ours, theirs, x, states(cell, 4 if bidirectional else 2, H) if with_hx else None)


@every_cell
@pytest.mark.parametrize("shape", [(1, B, I), (T, 1, I), (1, 1, I)], ids=["T1", "B1", "T1B1"])
def test_equals_torch_at_the_smallest_sizes(cell, shape):
    ours, theirs = make_pair(cell, bidirectional=True)
    assert_same(ours, theirs, torch.randn(shape, dtype=torch.float64), states(cell, 2, shape[1], H))


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_hx", [False, True], ids=["no_hx", "hx"])
@pytest.mark.parametrize("lengths", [[5, 3, 1], [3, 5, 1], [2, 2, 2]], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_equals_torch_on_packed_sequences(cell, bidirectional, with_hx, lengths, batch_first):
    # batch_first says nothing about a packed input; nn.LSTM ignores it there
    layout = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": batch_first}
    ours, theirs = make_pair(cell, **layout)
    padded = torch.randn(max(lengths), len(lengths), I, dtype=torch.float64)
    x = pack_padded_sequence(padded, lengths, enforce_sorted=lengths == sorted(lengths)[::-1])
    hx = states(cell, 4 if bidirectional else 2, len(lengths), H) if with_hx else None

    assert_same(ours, theirs, x, hx)
    got, expected = ours(x, hx)[0], theirs(x, hx)[0]
    assert isinstance(got, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        got_index, expected_index = getattr(got, name), getattr(expected, name)
        assert (got_index is None) == (expected_index is None), name
        assert got_index is None or torch.equal(got_index, expected_index), name


@every_cell
def test_packed_equals_each_sequence_alone(cell):
    module, _ = make_pair(cell, bidirectional=True)
    sequences = [torch.randn(length, I, dtype=torch.float64) for length in (2, 5, 4)]
    packed, _ = module(pack_sequence(sequences, enforce_sorted=False))
    for got, x in zip(nn.utils.rnn.unpack_sequence(packed), sequences, strict=True):
        torch.testing.assert_close(got, module(x)[0], rtol=1e-10, atol=1e-12)


class Waits(TorchDispatchMode):
    """Lists the ops for which the host would wait for a device: meta stands for one."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, arguments=(), options=None):
        options = options or {}
        result = op(*arguments, **options)
        copied = op is torch.ops.aten._to_copy.default and not options.get("non_blocking")
        if op is torch.ops.aten._local_scalar_dense.default or (
            copied and {arguments[0].device.type, result.device.type} == {"cpu", "meta"}
        ):
            self.found.append((op, arguments, options))
        return result


@every_cell
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("with_resets", [False, True])
def test_packed_sequences_do_not_wait_for_their_device(cell, enforce_sorted, with_resets):
    lengths = [5, 3, 2] if enforce_sorted else [3, 5, 2]
    sequences = [torch.randn(length, I, dtype=torch.float64) for length in lengths]
    packed = pack_sequence(sequences, enforce_sorted=enforce_sorted)
    module = make_pair(cell, num_layers=2, bidirectional=True)[0].to("meta")
    data, sizes, *indices = packed
    there = [None if t is None else t.to("meta") for t in (data, *indices)]
    x = PackedSequence(there[0], sizes, *there[1:])
    resets = torch.zeros(5, 3, dtype=torch.bool, device="meta") if with_resets else None
    with Waits() as waits:
        y, _ = module(x, resets=resets)
    assert not waits.found
    assert y.data.shape == (10, 2 * H)
    assert y.batch_sizes is sizes


@every_cell
def test_empty_batch(cell):
    module, theirs = make_pair(cell, num_layers=2)
    x = torch.zeros(T, 0, I, dtype=torch.float64)
    assert [t.shape for t in flat(module(x))] == [t.shape for t in flat(theirs(x))]
    gradients = run(module, x, None)[1]
    assert all((g == 0).all() for g in gradients)


@every_cell
def test_input_may_have_any_strides(cell):
    module, _ = make_pair(cell)
    wide = torch.randn(B, 2 * T, I, dtype=torch.float64)
    strided = wide[:, ::2].transpose(0, 1)
    assert torch.equal(module(strided)[0], module(strided.contiguous())[0])


def test_hx_may_be_a_list():
    module, _ = make_pair("lstm")
    x, hx = torch.randn(T, B, I, dtype=torch.float64), states("lstm", 1, B, H)
    assert torch.equal(module(x, list(hx))[0], module(x, hx)[0])


def test_gru_reset_before_equals_the_reference():
    torch.manual_seed(0)
    gru = brnn.BayesianGRU(I, H, num_layers=2, reset_after=False, dtype=torch.float64)
    slow = brnn.BayesianGRU(
        I, H, num_layers=2, reset_after=False, dtype=torch.float64, engine="reference"
    )
    slow.load_state_dict(gru.state_dict())
    assert_same(gru, slow, torch.randn(T, B, I, dtype=torch.float64), states("gru", 2, B, H))
    after = brnn.BayesianGRU(I, H, num_layers=2, dtype=torch.float64)
    after.load_state_dict(gru.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    assert not torch.allclose(gru(x)[0], after(x)[0])


@every_cell
def test_second_backward_over_a_retained_graph(cell):
    module = PAIRS[cell][0](I, H, num_layers=2, input_dropout=0.5, recurrent_dropout=0.5)
    x = torch.randn(T, B, I, requires_grad=True)
    loss = module(x)[0].square().sum()
    leaves = [x, *module.parameters()]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_cell
def test_frozen_parameters_get_no_gradient(cell):
    module = PAIRS[cell][0](I, H)
    module.weight_hh_l0.requires_grad_(False)
    module(torch.randn(T, B, I))[0].sum().backward()
    assert module.weight_hh_l0.grad is None
    assert module.weight_ih_l0.grad is not None


def test_rnn_takes_torchs_fourth_argument_and_refuses_relu_by_name():
    assert brnn.BayesianRNN(I, H, 2, "tanh", False, True).batch_first
    for make in (
        lambda: brnn.BayesianRNN(I, H, 1, "relu"),
        lambda: brnn.BayesianRNN(I, H, nonlinearity="relu"),
        lambda: brnn.BayesianRNN.from_torch(nn.RNN(I, H, nonlinearity="relu")),
    ):
        with pytest.raises(ValueError, match=r"^nonlinearity: expected 'tanh', got 'relu'$"):
            make()

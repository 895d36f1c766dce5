"""Attributes of the layers: set after construction they work and are checked as its arguments."""

import copy
import warnings

import numpy as np
import pytest
import torch
from module_cases import PAIRS, B, H, I, T, every_cell, in_order
from torch import nn

import bayesrnn_cuda as brnn


def rates(layer) -> list[tuple[float, float]]:
    """What the masks of each layer drop, as their scales say: (of the input, of h)."""
    return [(1 - 1 / m.scale_x, 1 - 1 / m.scale_h) for m in layer.sample_masks(1)]


@every_cell
def test_a_schedule_of_probabilities(cell):
    layer = PAIRS[cell][0](I, H, 2)
    for p, q in ((0.5, 0.75), (0, 0.5), (0.75, 0)):
        layer.input_dropout, layer.recurrent_dropout = p, q
        assert layer.input_dropout == (p, p)
        assert rates(layer) == [(p, q)] * 2
    layer.input_dropout = (0.5, 0.75)
    assert rates(layer) == [(0.5, 0), (0.75, 0)]
    layer(torch.randn(T, B, I))[0].sum().backward()


@every_cell
@pytest.mark.parametrize("values", [[0.25, 0.5], [0.5]])
def test_numpy_arrays_can_be_set(cell, values):
    layer = PAIRS[cell][0](I, H, len(values))
    layer.input_dropout = np.array(values)
    assert layer.input_dropout == tuple(values)
    assert all(type(p) is float for p in layer.input_dropout)
    assert rates(layer) == [(p, 0) for p in values]
    layer.input_dropout = np.float32(0.25)
    layer.recurrent_dropout = np.float64(0.5)
    assert rates(layer) == [(0.25, 0.5)] * len(values)
    with pytest.raises(ValueError, match=r"input_dropout: expected .* per layer .*, got 3 values"):
        layer.input_dropout = np.zeros(3)


@every_cell
def test_dropout_is_of_what_enters_every_layer_but_the_first(cell):
    """As torch has it, from the constructor, from `from_torch` and set later."""
    ours, torchs = PAIRS[cell]
    later = ours(I, H, 3)
    later.dropout = 0.5
    twin = ours.from_torch(torchs(I, H, 3, dropout=0.5))
    for layer in (
        ours(*in_order(cell, I, H, 3, True, False, 0.5)),
        ours(I, H, 3, dropout=0.5),
        later,
        twin,
    ):
        assert layer.dropout == 0.5
        assert layer.input_dropout == (0, 0.5, 0.5)
        assert rates(layer) == [(0, 0), (0.5, 0), (0.5, 0)]
        assert repr(layer).endswith("num_layers=3, dropout=0.5)")
        assert layer.to_torch().dropout == 0.5
        layer.dropout = 0.75
        assert layer.input_dropout == (0, 0.75, 0.75)
        layer.dropout = 0
        assert layer.input_dropout == (0, 0, 0)


@every_cell
def test_input_dropout_takes_the_place_of_dropout(cell):
    layer = PAIRS[cell][0](I, H, 2, dropout=0.5)
    layer.input_dropout = 0.25
    assert (layer.dropout, layer.input_dropout) == (0, (0.25, 0.25))
    with pytest.raises(ValueError, match=r"dropout: expected 0 where input_dropout, .*got 0\.5"):
        layer.dropout = 0.5
    layer.dropout = 0.0
    assert layer.input_dropout == (0.25, 0.25)
    layer.input_dropout = 0
    layer.dropout = 0.5
    assert layer.input_dropout == (0, 0.5)


@every_cell
def test_dropout_of_a_single_layer_warns_as_torch(cell):
    for cls in PAIRS[cell]:
        with pytest.warns(UserWarning, match=r"dropout.* 0\.5|num_layers=1"):
            cls(I, H, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PAIRS[cell][0](I, H, 2, dropout=0.5)


@every_cell
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("input_dropout", 1.5, ValueError, r"input_dropout: expected .* \[0, 1\], got 1\.5"),
        ("input_dropout", (0.5,), ValueError, r"input_dropout: .* per layer \(2\), got 1 values"),
        ("input_dropout", None, TypeError, r"input_dropout: expected .* \[0, 1\], got None"),
        ("recurrent_dropout", -1, ValueError, r"recurrent_dropout: expected .* \[0, 1\], got -1"),
        ("recurrent_dropout", "0", TypeError, r"recurrent_dropout: expected .* \[0, 1\], got '0'"),
        ("dropout", 2, ValueError, r"dropout: expected .* \[0, 1\], got 2"),
        ("dropout", True, TypeError, r"dropout: expected .* \[0, 1\], got True"),
        ("tie_gates", 1, TypeError, r"tie_gates: expected True or False, got 1"),
        ("batch_first", 0, TypeError, r"batch_first: expected True or False, got 0"),
        ("engine", "cudnn", ValueError, r"engine: expected one of auto, .*, got 'cudnn'"),
        ("proj_size", 3, ValueError, r"proj_size: expected 0, no projections, got 3"),
        ("input_size", I + 1, ValueError, rf"input_size: expected {I}, which the param.*{I + 1}"),
        ("hidden_size", 2.5, TypeError, r"hidden_size: expected an integer"),
        ("num_layers", 3, ValueError, r"num_layers: expected 2, which the parameters .*, got 3"),
        ("bias", False, ValueError, r"bias: expected True, which the parameters .*, got False"),
        ("bidirectional", True, ValueError, r"bidirectional: expected False, which .*, got True"),
        ("mode", "RNN_RELU", ValueError, r"mode: expected '\w+', which .*, got 'RNN_RELU'"),
    ],
)
def test_what_is_set_is_checked(cell, name, value, error, message):
    layer = PAIRS[cell][0](I, H, 2)
    before = getattr(layer, name)
    with pytest.raises(error, match=message):
        setattr(layer, name, value)
    assert getattr(layer, name) == before
    setattr(layer, name, before)


@every_cell
def test_attributes_are_those_of_torch(cell):
    ours, theirs = (cls(*in_order(cell, I, H, 2, True, True, 0.25, True)) for cls in PAIRS[cell])
    for name in theirs.__constants__:
        assert getattr(ours, name) == getattr(theirs, name), name


@every_cell
def test_other_settings_work_too(cell):
    layer = PAIRS[cell][0](I, H, input_dropout=0.5, recurrent_dropout=0.5)
    x = torch.randn(T, B, I)
    expected = layer.eval()(x)[0]
    layer.batch_first, layer.tie_gates, layer.engine = True, True, "reference"
    torch.testing.assert_close(layer(x.transpose(0, 1))[0].transpose(0, 1), expected)
    assert layer.sample_masks(B)[0].keep_h.shape == (1, B, H)


def test_reset_after_can_be_set():
    layer = brnn.BayesianGRU(I, H)
    x = torch.randn(T, B, I)
    after = layer(x)[0]
    layer.reset_after = False
    before = copy.deepcopy(layer)(x)[0]
    assert not torch.equal(after, before)
    with pytest.raises(TypeError, match=r"reset_after: expected True or False, got 1"):
        layer.reset_after = 1


def test_settings_of_the_other_modules():
    words, out = brnn.BayesianEmbedding(5, 3, padding_idx=-1), brnn.LockedDropout(0.5)
    words.dropout, words.padding_idx, words.batch_first = 1, -2, True
    assert (words.dropout, words.padding_idx) == (1.0, 3)
    assert words(torch.zeros(2, 4, dtype=torch.int64)).abs().sum() == 0
    words.padding_idx = None
    out.p = 1
    assert out(torch.ones(T, B, 3)).abs().sum() == 0
    for module, name, value in (
        (words, "dropout", 1.5), (words, "padding_idx", 5), (words, "num_embeddings", 6),
        (words, "embedding_dim", 2), (out, "p", -0.5),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name}: expected .*, got"):
            setattr(module, name, value)
    for module, name in ((words, "dropout"), (words, "batch_first"), (out, "p")):
        with pytest.raises(TypeError, match=rf"{name}: expected .*, got 'x'"):
            setattr(module, name, "x")


@every_cell
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((I, H), {}),
        ((I, H, 2, True, True, 0.0, True), {}),
        ((I, H, 2, False, True, 0.25, True), {}),
        ((I, H, 2, False, False, 0), {"bidirectional": True, "dtype": torch.float64}),
        ((), {"input_size": I, "hidden_size": H, "num_layers": 2, "dropout": 0.5}),
        ((I, H), {"batch_first": True, "device": "meta"}),
    ],
    ids=str,
)
def test_calls_of_torch_construct_ours(cell, arguments, options):
    ours, theirs = (cls(*in_order(cell, *arguments), **options) for cls in PAIRS[cell])
    assert [(n, p.shape, p.dtype, p.device) for n, p in ours.named_parameters()] == [
        (n, p.shape, p.dtype, p.device) for n, p in theirs.named_parameters()
    ]
    names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
    assert [getattr(ours, n) for n in names] == [getattr(theirs, n) for n in names]


def test_projections_are_refused_by_name_in_every_spelling():
    for call in (
        lambda: brnn.BayesianLSTM(4, 8, 1, True, False, 0.0, False, 3),
        lambda: brnn.BayesianLSTM(4, 8, proj_size=3),
        lambda: brnn.BayesianGRU(4, 8, proj_size=3),
        lambda: brnn.BayesianLSTM.from_torch(nn.LSTM(4, 8, proj_size=3)),
    ):
        with pytest.raises(ValueError, match=r"proj_size: expected 0, no projections, got 3"):
            call()

"""Errors of the layers: each names the argument, what was expected and what came."""

import math

import pytest
import torch
from module_cases import PAIRS, B, H, I, T, every_cell
from torch.nn.utils.rnn import pack_sequence

import bayesrnn_cuda as brnn


@every_cell
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 0}, r"input_size: expected .* at least 1, got 0"),
        ({"hidden_size": -1}, r"hidden_size: expected .* at least 1, got -1"),
        ({"num_layers": 0}, r"num_layers: expected .* at least 1, got 0"),
        ({"input_dropout": -0.1}, r"input_dropout: expected .* in \[0, 1\], got -0\.1"),
        ({"input_dropout": 1.5}, r"input_dropout: expected .* in \[0, 1\], got 1\.5"),
        ({"recurrent_dropout": -0.1}, r"recurrent_dropout: expected .* \[0, 1\], got -0\.1"),
        ({"recurrent_dropout": 2}, r"recurrent_dropout: expected .* \[0, 1\], got 2"),
        ({"recurrent_dropout": math.nan}, r"recurrent_dropout: expected .* \[0, 1\], got nan"),
        ({"num_layers": 2, "input_dropout": (0.1,)}, r"input_dropout: .* per layer \(2\), got 1"),
        ({"num_layers": 2, "input_dropout": []}, r"input_dropout: .* per layer \(2\), got 0"),
        ({"num_layers": 2, "input_dropout": (0.1, 1.1)}, r"input_dropout: .* \[0, 1\], got 1\.1"),
        ({"proj_size": 3}, r"proj_size: expected 0, no projections, got 3"),
        ({"dropout": 1.5}, r"dropout: expected .* in \[0, 1\], got 1\.5"),
        (
            {"dropout": 0.5, "input_dropout": 0.0, "num_layers": 2},
            r"dropout: expected 0 where input_dropout, .* is given too, got 0\.5",
        ),
        ({"engine": "cudnn"}, r"engine: expected one of auto, .*, got 'cudnn'"),
    ],
)
def test_constructor_errors(cell, arguments, message):
    with pytest.raises(ValueError, match=message):
        PAIRS[cell][0](**({"input_size": I, "hidden_size": H} | arguments))


@every_cell
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 2.5}, r"hidden_size: expected an integer .*, got 2\.5"),
        ({"num_layers": True}, r"num_layers: expected an integer .*, got True"),
        ({"proj_size": 2.5}, r"proj_size: expected an integer .*, got 2\.5"),
        ({"dropout": "0.5"}, r"dropout: expected .* \[0, 1\], got '0\.5'"),
        ({"dropout": (0.5,)}, r"dropout: expected .* \[0, 1\], got \(0\.5,\)"),
        ({"input_dropout": "0.5"}, r"input_dropout: expected .* \[0, 1\], got '0\.5'"),
        ({"recurrent_dropout": "0.5"}, r"recurrent_dropout: expected .* \[0, 1\], got '0\.5'"),
        ({"recurrent_dropout": None}, r"recurrent_dropout: expected .* \[0, 1\], got None"),
        ({"recurrent_dropout": True}, r"recurrent_dropout: expected .* \[0, 1\], got True"),
        ({"bidirectional": 0.5}, r"bidirectional: expected True or False, got 0\.5"),
        ({"bias": None}, r"bias: expected True or False, got None"),
        ({"batch_first": 1}, r"batch_first: expected True or False, got 1"),
        ({"tie_gates": "yes"}, r"tie_gates: expected True or False, got 'yes'"),
        ({"engine": None}, r"engine: expected a name, as 'auto', got None"),
    ],
)
def test_arguments_of_a_wrong_type(cell, arguments, message):
    with pytest.raises(TypeError, match=message):
        PAIRS[cell][0](**({"input_size": I, "hidden_size": H} | arguments))


def test_reset_after_must_be_a_flag():
    with pytest.raises(TypeError, match=r"reset_after: expected True or False, got 0\.5"):
        brnn.BayesianGRU(I, H, reset_after=0.5)


@every_cell
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((I,), r"input: expected 2 .* or 3 dimensions, got 1"),
        ((1, T, B, I), r"input: expected 2 .* or 3 dimensions, got 4"),
        ((T, B, I + 1), rf"input: expected last dimension {I} .*, got {I + 1}"),
        ((T, I - 1), rf"input: expected last dimension {I} .*, got {I - 1}"),
        ((0, I), r"input: expected a sequence of at least 1 step, got 0"),
    ],
)
def test_input_of_a_wrong_shape(cell, batch_first, shape, message):
    module = PAIRS[cell][0](I, H, batch_first=batch_first)
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(shape))


@every_cell
@pytest.mark.parametrize(("batch_first", "shape"), [(False, (0, B, I)), (True, (B, 0, I))])
def test_empty_sequence(cell, batch_first, shape):
    module = PAIRS[cell][0](I, H, batch_first=batch_first)
    with pytest.raises(ValueError, match=r"input: expected a sequence of at least 1 step, got 0"):
        module(torch.zeros(shape))


@every_cell
@pytest.mark.parametrize("engine", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_input_of_another_dtype(cell, engine, dtype):
    module = PAIRS[cell][0](I, H, engine=engine)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"input: expected .*float32.*got .*{name}"):
        module(torch.zeros(T, B, I, dtype=dtype))


@pytest.mark.parametrize(
    ("hx", "message"),
    [
        (torch.zeros(1, B, H), r"hx: expected a tuple \(h_0, c_0\), got Tensor"),
        ((torch.zeros(1, B, H),), r"hx: expected a tuple \(h_0, c_0\), got 1"),
        ((torch.zeros(1, B, H),) * 3, r"hx: expected a tuple \(h_0, c_0\), got 3"),
        (
            (torch.zeros(1, B + 1, H),) * 2,
            rf"hx: expected h_0 .*\[1, {B}, {H}\], got \[1, {B + 1}, {H}\]",
        ),
        (
            (torch.zeros(1, B, H), torch.zeros(2, B, H)),
            rf"hx: expected c_0 .*\[1, {B}, {H}\], got \[2, {B}, {H}\]",
        ),
        ((torch.zeros(B, H),) * 2, rf"hx: expected h_0 .*\[1, {B}, {H}\], got \[{B}, {H}\]"),
        ((torch.zeros(1, B, H), None), r"hx: expected .*c_0.*, got NoneType"),
        (
            (torch.zeros(1, B, H, dtype=torch.float64),) * 2,
            r"h_?0.*: expected .*float32.*, got .*float64",
        ),
        (
            (torch.zeros(1, B, H), torch.zeros(1, B, H, dtype=torch.bfloat16)),
            r"c_?0.*: expected .*float32.*, got .*bfloat16",
        ),
    ],
)
def test_hx_of_lstm(hx, message):
    error = TypeError if message.endswith(("got Tensor", "got NoneType")) else ValueError
    with pytest.raises(error, match=message):
        brnn.BayesianLSTM(I, H)(torch.zeros(T, B, I), hx)


@pytest.mark.parametrize(
    ("hx", "message"),
    [
        ((torch.zeros(1, B, H),) * 2, r"hx: expected a tensor h_0, got tuple"),
        (torch.zeros(2, B, H), rf"hx: expected h_0 .*\[1, {B}, {H}\], got \[2, {B}, {H}\]"),
        (torch.zeros(1, B, H).double(), r"h_?0.*: expected .*float32.*, got .*float64"),
    ],
)
def test_hx_of_gru(hx, message):
    with pytest.raises(TypeError if message.endswith("got tuple") else ValueError, match=message):
        brnn.BayesianGRU(I, H)(torch.zeros(T, B, I), hx)


@every_cell
def test_hx_of_an_unbatched_input_has_two_dimensions(cell):
    module = PAIRS[cell][0](I, H)
    h_0 = torch.zeros(1, 1, H)
    with pytest.raises(ValueError, match=rf"hx: expected h_0 .*\[1, {H}\], got \[1, 1, {H}\]"):
        module(torch.zeros(T, I), (h_0, h_0) if cell == "lstm" else h_0)


@every_cell
def test_hx_of_a_packed_input(cell):
    module = PAIRS[cell][0](I, H)
    x = pack_sequence([torch.zeros(3, I), torch.zeros(2, I)])
    h_0 = torch.zeros(1, 3, H)
    with pytest.raises(ValueError, match=rf"hx: expected h_0 .*\[1, 2, {H}\], got \[1, 3, {H}\]"):
        module(x, (h_0, h_0) if cell == "lstm" else h_0)

"""The recipes of docs/tools.md that need torch alone, and that every recipe is run."""

import re
from pathlib import Path

import pytest
import torch
from page import package, recipe, sections
from torch import nn

import bayesrnn_cuda as brnn

HERE = Path(__file__).parent


def test_every_recipe_is_run():
    first, *others = sections()
    assert first == "A model to start from" and len(others) > 10
    tests = "".join(file.read_text() for file in HERE.glob("test_*.py"))
    named = re.findall(r'"([^"\n]+)"', tests)
    assert set(others) <= set(named)


def test_a_model_to_start_from():
    names = recipe("A model to start from")
    assert names.x.shape == (48, 12, 1) and names.y.shape == (48, 1)
    assert torch.equal(names.x[1:, -1], names.y[:-1])
    assert names.model.lstm.recurrent_dropout == 0.25


def test_awd_lstm():
    torch.manual_seed(0)
    names = recipe("AWD-LSTM")
    model, tokens = names.LanguageModel(11), torch.randint(11, (5, 3))
    assert model.lstm.input_dropout == (0.65, 0.3, 0.3)
    logits, state = model(tokens)
    assert logits.shape == (5, 3, 11)
    model(tokens, state)[0].sum().backward()

    layer, x = names.dropped, torch.randn(4, 3, 16)
    weight = layer.parametrizations.weight_hh_l0.original
    computed = layer.weight_hh_l0
    zeros = (computed == 0).float().mean()
    assert 0.4 < zeros < 0.6
    torch.testing.assert_close(computed[computed != 0], 2 * weight[computed != 0])
    layer(x)[0].sum().backward()
    assert (weight.grad == 0).any() and (weight.grad != 0).any()
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    with brnn.mc_dropout(layer):
        assert (layer.weight_hh_l0 == 0).any()
    got = brnn.mc_predict(layer, x, samples=5, chunk=1)
    assert (got.std > 0).any()


def test_torch_load():
    names = recipe("torch.load")
    assert type(names.loaded) is names.Forecaster
    loaded, model = names.loaded.eval(), names.model.eval()
    assert torch.equal(loaded(names.x), model(names.x)) and loaded.lstm.recurrent_dropout == 0.25


@pytest.mark.filterwarnings("ignore")
def test_fx_quantization_and_onnx():
    package("onnxscript", "onnxruntime")
    import onnxruntime

    names = recipe("torch.fx, quantization and ONNX")
    model, x = names.model.eval(), names.x
    expected = model(x).detach()
    leaves = {node.target for node in names.traced.graph.nodes if node.op == "call_module"}
    assert leaves == {"lstm", "out"}
    torch.testing.assert_close(names.traced.eval()(x).detach(), expected)
    assert type(names.plain.lstm) is nn.LSTM and isinstance(model.lstm, brnn.BayesianLSTM)
    torch.testing.assert_close(names.plain(x).detach(), expected)
    assert "quantized" in type(names.quantized.lstm).__module__
    torch.testing.assert_close(names.quantized(x).detach(), expected, rtol=0, atol=0.02)
    session = onnxruntime.InferenceSession(names.exported.getvalue())
    (name,) = (each.name for each in session.get_inputs())
    (output,) = session.run(None, {name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected)


def test_schedules():
    names = recipe("Schedules of p")
    assert names.used[0] == 0.0 and names.used[-1] == 0.25 and names.used == sorted(names.used)
    layer = names.model.lstm
    layer.mask_dropout.p = 0.1
    assert layer.recurrent_dropout == 0.1 and layer.input_dropout == (0.0,)
    with pytest.raises(ValueError, match="recurrent_dropout: expected a probability"):
        layer.recurrent_dropout = 1.5

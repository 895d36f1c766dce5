"""What tools ask of a layer: a leaf for torch.fx, whole-module checkpoints, keyword calls."""

import io

import numpy as np
import pytest
import torch
from torch import nn

import bayesrnn_cuda as brnn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = brnn.BayesianEmbedding(9, 4, dropout=0.25)
        self.lstm = brnn.BayesianLSTM(4, 5, 2, recurrent_dropout=0.5)
        self.gru = brnn.BayesianGRU(5, 5, input_dropout=0.5)
        self.drop = brnn.LockedDropout(0.5)
        self.out = nn.Linear(5, 3)

    def forward(self, tokens):
        x, state = self.lstm(self.words(tokens))
        x, (h, c) = self.lstm(self.words(tokens), state)
        x, _ = self.gru(self.drop(x), h[-1:] + c[-1:])
        return self.out(x)


TOKENS = torch.randint(9, (6, 3), generator=torch.Generator().manual_seed(0))


def made():
    torch.manual_seed(0)
    return Model()


@pytest.mark.filterwarnings("ignore")
def test_symbolic_trace_takes_our_modules_as_leaves():
    model = made()
    traced = torch.fx.symbolic_trace(model)
    leaves = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert leaves == {"words", "lstm", "gru", "drop", "out"}
    for run in (model, traced):
        run.eval()
    torch.testing.assert_close(traced(TOKENS), model(TOKENS))
    outputs = []
    for run in (model, traced.train()):
        run.train()
        torch.manual_seed(1)
        outputs.append(run(TOKENS))
    assert torch.equal(*outputs)


@pytest.mark.filterwarnings("ignore")
def test_quantization_by_fx_leaves_our_modules_in_float():
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    quantization = pytest.importorskip("torch.ao.quantization")
    model = made().eval()
    mapping = quantization.get_default_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_fx(model, mapping, (TOKENS,))
    prepared(TOKENS)
    converted = quantize_fx.convert_fx(prepared)
    torch.testing.assert_close(converted(TOKENS), model(TOKENS), rtol=0, atol=0.2)
    assert isinstance(converted.lstm, brnn.BayesianLSTM)


def test_a_whole_model_loads_under_weights_only():
    """As PyTorch's word language model example loads its best model for the final test."""
    torch.serialization.add_safe_globals([Model, nn.Linear])
    model, file = made().eval(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert not loaded.lstm.draws_masks
    assert loaded.train().lstm.draws_masks


@pytest.mark.parametrize(
    "module",
    [
        brnn.BayesianLSTM(2, 3),
        brnn.BayesianGRU(2, 3),
        brnn.BayesianRNN(2, 3),
        brnn.BayesianEmbedding(4, 2),
        brnn.LockedDropout(0.5),
    ],
    ids=lambda m: type(m).__name__,
)
def test_each_module_loads_under_weights_only(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert type(torch.load(file, weights_only=True)) is type(module)


def test_masks_and_predictions_load_under_weights_only():
    """Masks held over windows are part of what an exact resume stores."""
    layer, x = brnn.BayesianLSTM(4, 6, recurrent_dropout=0.5), torch.randn(3, 2, 4)
    kept = {
        "masks": layer.sample_masks(2),
        "normal": brnn.mc_predict(layer, x, samples=3, noise=0.1),
        "both": brnn.mc_predict(layer, x, samples=3, likelihood="heteroscedastic", output=0),
    }
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert [type(x) for x in loaded.values()] == [type(x) for x in kept.values()]
    assert torch.equal(layer(x, masks=loaded["masks"])[0], layer(x, masks=kept["masks"])[0])
    assert torch.equal(loaded["both"].total_std, kept["both"].total_std)


@pytest.mark.parametrize("cell", [brnn.BayesianLSTM, brnn.BayesianGRU])
def test_numpy_scalars_and_arrays_are_taken(cell):
    layer = cell(
        np.int64(4), np.int32(5), 2, np.bool_(True), np.False_,
        input_dropout=np.array([0.1, 0.2]), recurrent_dropout=np.float32(0.5),
        tie_gates=np.True_, bidirectional=np.False_,
    )  # fmt: skip
    assert layer.input_dropout == (0.1, 0.2) and type(layer.input_dropout[0]) is float
    assert layer.bias is True and layer.tie_gates is True and layer.batch_first is False
    assert layer.recurrent_dropout == 0.5 and type(layer.hidden_size) is int
    layer(torch.randn(3, 2, 4))
    assert brnn.LockedDropout(np.float64(0.5), batch_first=np.True_).batch_first is True
    mean = brnn.mc_predict(layer, torch.randn(3, 2, 4), samples=np.int64(3), keep_draws=np.True_)
    assert mean.draws.shape == (3, 3, 2, 5)
    with pytest.raises(TypeError, match=r"tie_gates: expected True or False, got 1"):
        cell(4, 5, tie_gates=np.int64(1))


def test_a_dict_model_with_keyword_inputs():
    """As transformers call their models."""

    class Classifier(Model):
        def forward(self, input_ids=None, attention_mask=None, labels=None):
            logits = super().forward(input_ids.T).mean(dim=0)
            return {"loss": logits.sum(), "logits": logits * attention_mask[:, :1]}

    batch = {"input_ids": TOKENS.T.contiguous(), "attention_mask": torch.ones(3, 6), "labels": None}
    torch.manual_seed(0)
    got = brnn.mc_predict(Classifier(), samples=20, likelihood="categorical", module_kwargs=batch)
    assert got.mean.shape == (3, 3) and (got.std > 0).all()

"""MC dropout by torch-uncertainty and lightning-uq-box, unchanged, on models of this package."""

import pytest
import torch
from page import package, recipe
from torch import nn

import bayesrnn_cuda as brnn

package("torch_uncertainty", "lightning_uq_box")

from lightning_uq_box.uq_methods import (  # noqa: E402
    MCDropoutClassification,
    MCDropoutRegression,
)
from torch_uncertainty.methods import mc_dropout  # noqa: E402

SAMPLES = 12
X = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, cell, beside):
        super().__init__()
        self.words = brnn.LockedDropout(0.0, batch_first=True)
        self.layer = cell(3, 8, batch_first=True, recurrent_dropout=0.5)
        self.beside = nn.Dropout(beside) if beside is not None else nn.Identity()
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        y, _ = self.layer(self.words(x))
        return self.out(self.beside(y[:, -1]))


CELLS = [brnn.BayesianLSTM, brnn.BayesianGRU, brnn.BayesianRNN]
# alone, beside another dropout, and beside one that does nothing, so that all spread is ours
BESIDE = [None, 0.5, 0.0]


def made(cell, beside):
    torch.manual_seed(0)
    return Model(cell, beside)


def spread_of(layer):
    """Over calls of the layer alone, at its last step."""
    with torch.no_grad():
        last = torch.stack([layer(X)[0][:, -1] for _ in range(SAMPLES)])
    return last.std(dim=0)


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("cell", CELLS)
class TestTorchUncertainty:
    @pytest.mark.parametrize("on_batch", [True, False])
    @pytest.mark.parametrize("task", ["classification", "regression"])
    def test_masks_are_drawn_in_eval(self, cell, beside, on_batch, task):
        model = made(cell, beside)
        options = {"probabilistic": False} if task == "regression" else {}
        wrapped = mc_dropout(model, SAMPLES, on_batch=on_batch, task=task, **options).eval()
        assert not model.layer.training and model.layer.draws_masks
        with torch.no_grad():
            outputs = wrapped(X).unflatten(0, (SAMPLES, len(X)))
        assert outputs.shape == (SAMPLES, 4, 2) and (outputs.std(dim=0) > 1e-3).all()
        assert (spread_of(model.layer).mean(dim=1) > 1e-3).all()
        # its training mode is one call, with masks, and eval() afterwards is as before
        assert wrapped.train()(X).shape == (4, 2) and model.layer.training
        wrapped.eval()
        assert model.layer.draws_masks and not model.layer.training
        model.eval()
        assert not model.layer.draws_masks and torch.equal(model(X), model(X))

    def test_the_last_dropout_alone(self, cell, beside):
        model = made(cell, 0.5 if beside is None else beside)
        if beside == 0.0:
            with pytest.raises(ValueError, match="dropout rate > 0"):
                mc_dropout(model, SAMPLES, last_layer=True)
            return
        mc_dropout(model, SAMPLES, last_layer=True).eval()
        assert model.beside.training and not model.layer.draws_masks


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("cell", CELLS)
class TestLightningUqBox:
    def test_regression(self, cell, beside):
        model = made(cell, beside)
        method = MCDropoutRegression(model, SAMPLES, nn.MSELoss())
        names = ["words.mask_dropout", "layer.mask_dropout"]
        assert method.dropout_layer_names == names + (["beside"] if beside is not None else [])
        found = method.eval().predict_step(X)
        assert found["pred"].shape[0] == 4 and (found["pred_uct"] > 1e-4).all()
        assert (spread_of(model.layer).mean(dim=1) > 1e-3).all()

    def test_classification(self, cell, beside):
        model = made(cell, beside)
        method = MCDropoutClassification(model, SAMPLES, nn.CrossEntropyLoss()).eval()
        with torch.no_grad():
            one = model.eval()(X)
        found = method.predict_step(X)
        assert found["pred"].shape == (4, 2) and not torch.equal(found["pred"], one.softmax(-1))
        assert (spread_of(model.layer).mean(dim=1) > 1e-3).all()


@pytest.mark.parametrize("name", ["torch-uncertainty", "lightning-uq-box"])
def test_recipe(name):
    torch.manual_seed(0)
    done = recipe(name)
    assert done.doubt.numel() == len(done.x) and (done.doubt > 1e-4).all()
    if name == "lightning-uq-box":
        assert done.found == ["lstm.mask_dropout"]

"""Lightning's Trainer: mixed precision, checkpoints that go on bit for bit, predictions."""

import pytest
import torch
from page import package, recipe
from torch import nn

import bayesrnn_cuda as brnn

package("lightning")

import lightning  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

QUIET = {
    "accelerator": "cpu", "enable_progress_bar": False, "logger": False,
    "enable_model_summary": False, "precision": "bf16-mixed",
}  # fmt: skip


@pytest.fixture(scope="module")
def names():
    return recipe("Lightning")


def loader(names):
    data = torch.utils.data.TensorDataset(names.x, names.y)
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)


def trained(names, seed, epochs, folder, *, callbacks, **options):
    torch.manual_seed(seed)
    losses = []

    class Watched(names.Module):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            losses.append(loss.item())
            return loss

    module = Watched()
    checkpoints = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[*callbacks, checkpoints], default_root_dir=folder, **QUIET
    )
    trainer.fit(module, loader(names), **options)
    return module, losses


@pytest.mark.parametrize("with_state", [True, False])
def test_a_run_goes_on_bit_for_bit(names, tmp_path, with_state):
    """And without the recipe's callback it does not, so that the test sees the masks."""
    callbacks = [names.RandomState()] if with_state else []
    whole, losses = trained(names, 0, 4, tmp_path / "whole", callbacks=callbacks)
    assert whole.model.lstm.weight_hh_l0.dtype == torch.float32
    _, before = trained(names, 0, 2, tmp_path / "part", callbacks=callbacks)
    rest, after = trained(
        names, 1, 4, tmp_path / "rest", callbacks=callbacks, weights_only=True,
        ckpt_path=tmp_path / "part" / "epoch=1.ckpt",
    )  # fmt: skip
    assert len(losses) == 12 and (before + after == losses) == with_state
    pairs = zip(whole.parameters(), rest.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs) == with_state


def test_layers_run_in_bfloat16(names):
    seen = []
    module = names.Module()
    module.model.lstm.register_forward_hook(lambda layer, inputs, out: seen.append(out[0].dtype))
    trainer = lightning.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(module, loader(names))
    assert set(seen) == {torch.bfloat16}
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


def test_dropout_in_predict_step_and_around_the_trainer(names):
    """The Trainer calls eval(): a block around it ends there, as docs/tools.md says."""

    class Plain(names.Module):
        def predict_step(self, batch, index):
            return self.model(batch)

    trainer = lightning.Trainer(enable_checkpointing=False, **QUIET)
    data = torch.utils.data.DataLoader(names.x, batch_size=48)
    (inside,) = trainer.predict(names.Module(), data)
    assert isinstance(inside, brnn.MCPrediction) and (inside.std > 0).all()
    module = Plain()
    with brnn.mc_dropout(module):
        (one,), (other,) = (trainer.predict(module, data) for _ in range(2))
    assert torch.equal(one, other)


def test_recipe(names):
    assert len(names.predictions) == 3
    for prediction in names.predictions:
        assert prediction.mean.shape == (16, 1) and (prediction.std > 0).all()
    # the Trainer left the module as it was
    assert names.module.training and names.module.model.lstm.draws_masks
    assert isinstance(names.module.model.lstm, brnn.BayesianLSTM)
    assert isinstance(names.module.model.out, nn.Linear)

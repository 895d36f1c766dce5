"""pytorch-forecasting's networks with a layer of this package that takes lengths."""

import numpy as np
import pytest
import torch
from page import package, recipe

import bayesrnn_cuda as brnn

package("pytorch_forecasting")

import lightning  # noqa: E402
import pandas  # noqa: E402
import pytorch_forecasting as forecasting  # noqa: E402

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "enable_checkpointing": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def names():
    return recipe("pytorch-forecasting")


@pytest.fixture(scope="module")
def dataset():
    steps = np.arange(40)
    table = pandas.DataFrame({
        "step": np.tile(steps, 3),
        "group": np.repeat(list("abc"), len(steps)),
        "value": np.concatenate([np.sin(steps / 3 + k) for k in range(3)]).astype(np.float32),
    })  # fmt: skip
    return forecasting.TimeSeriesDataSet(
        table, time_idx="step", target="value", group_ids=["group"], min_encoder_length=1,
        max_encoder_length=8, max_prediction_length=4, time_varying_unknown_reals=["value"],
    )  # fmt: skip


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("lengths", [[3, 0, 6, 1], [6, 6, 6, 6], None])
def test_lengths_as_their_lstm_takes_them(names, batch_first, initial, lengths):
    torch.manual_seed(0)
    theirs = forecasting.LSTM(5, 4, 2, batch_first=batch_first)
    ours = names.LengthsLSTM.from_torch(theirs, recurrent_dropout=0.25).eval()
    x = torch.randn(4, 6, 5) if batch_first else torch.randn(6, 4, 5)
    h = torch.randn(2, 4, 4)
    hx = (h, h) if initial else None  # theirs replaces c of an empty sequence by h_0
    options = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    got = ours(x, hx, **options, enforce_sorted=False)
    expected = theirs(x, hx, **options, enforce_sorted=False)
    torch.testing.assert_close(got[0], expected[0])
    same = [0, 1, 2, 3]
    if initial and lengths is not None and 0 in lengths:
        same.remove(1)  # theirs has the first values of h_0 there, ours those of the sequence
        assert all(torch.equal(state[:, 1], h[:, 1]) for state in got[1])
    for mine, other in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(mine[:, same], other[:, same])


def test_their_own_is_refused_by_name():
    model = torch.nn.ModuleDict({"rnn": forecasting.LSTM(2, 3)})
    with pytest.raises(ValueError, match=r"got rnn \(LSTM has .*handle_no_encoding.* of its own\)"):
        brnn.convert(model, recurrent_dropout=0.25)


def deep_ar(names):
    class MaskedDeepAR(forecasting.DeepAR):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.rnn = names.LengthsLSTM.from_torch(self.rnn, recurrent_dropout=0.25)

    return MaskedDeepAR


@pytest.mark.parametrize("network", ["RecurrentNetwork", "DeepAR"])
def test_trained_saved_and_asked(names, dataset, network, tmp_path):
    torch.manual_seed(0)
    kind = names.MaskedNetwork if network == "RecurrentNetwork" else deep_ar(names)
    model = kind.from_dataset(dataset, cell_type="LSTM", hidden_size=6, learning_rate=0.01)
    assert isinstance(model.rnn, brnn.BayesianLSTM)
    before = model.rnn.weight_hh_l0.detach().clone()
    trainer = lightning.Trainer(max_epochs=1, limit_train_batches=3, **QUIET)
    trainer.fit(model, dataset.to_dataloader(train=True, batch_size=16))
    assert not torch.equal(model.rnn.weight_hh_l0, before)

    batch, _ = next(iter(dataset.to_dataloader(train=False, batch_size=8)))
    model.eval()
    prediction = names.doubtful(model, batch)
    assert prediction.mean.shape[:2] == (8, 4)
    assert (prediction.std.amax(dim=-1) > 1e-4).all()
    # a forecast in a block is one model: the same twice
    with brnn.mc_dropout(model, hold=True), torch.no_grad():
        one, other = (model(batch)["prediction"] for _ in range(2))
    assert torch.equal(one, other)

    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=False).eval()
    assert isinstance(loaded.rnn, names.LengthsLSTM) and loaded.rnn.recurrent_dropout == 0.25
    with torch.no_grad():
        assert torch.equal(loaded(batch)["prediction"], model(batch)["prediction"])

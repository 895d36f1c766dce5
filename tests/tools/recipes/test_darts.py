"""darts' RNN models with their LSTM converted, by the recipe of docs/tools.md."""

import numpy as np
import pytest
import torch
from page import package, recipe

import bayesrnn_cuda as brnn

package("darts")

from darts import TimeSeries  # noqa: E402
from darts.models import BlockRNNModel, RNNModel  # noqa: E402

STEPS, SAMPLES = 9, 24
QUIET = {
    "accelerator": "cpu", "enable_progress_bar": False, "logger": False,
    "enable_model_summary": False, "enable_checkpointing": False,
}  # fmt: skip
SERIES = TimeSeries.from_values(np.sin(np.arange(70) / 3).astype(np.float32))


@pytest.fixture(scope="module")
def classes():
    return recipe("darts")


def made(classes, name):
    options = {"hidden_dim": 8, "n_epochs": 2, "random_state": 0, "pl_trainer_kwargs": QUIET}
    if name == "RNNModel":
        return RNNModel(10, model=classes.MaskedLSTM, training_length=20, **options)
    return BlockRNNModel(10, 3, model=classes.MaskedBlockLSTM, **options)


def spread(forecast):
    """Over the samples, at each step."""
    values = forecast.all_values()[:, 0]
    assert values.shape == (STEPS, SAMPLES)
    return values.std(axis=1)


def sampled(model, **options):
    return model.predict(STEPS, num_samples=SAMPLES, mc_dropout=True, **options)


@pytest.mark.parametrize("name", ["RNNModel", "BlockRNNModel"])
def test_mc_dropout_gives_intervals(classes, name, tmp_path):
    model = made(classes, name)
    model.fit(SERIES)
    layer = model.model.rnn
    assert type(layer) is brnn.BayesianLSTM and layer.recurrent_dropout == 0.25
    forecast = sampled(model)
    assert (spread(forecast) > 1e-3).all()
    lower, upper = (forecast.quantile(q).values() for q in (0.05, 0.95))
    assert (lower < upper).all()
    # without it none, and no samples that are all equal
    one, other = (model.predict(STEPS).values() for _ in range(2))
    assert np.array_equal(one, other)
    assert spread(model.predict(STEPS, num_samples=SAMPLES)).max() < 1e-6

    file = str(tmp_path / "model.pt")
    model.save(file)
    loaded = type(model).load(file)
    assert type(loaded.model) is type(model.model)
    assert type(loaded.model.rnn) is brnn.BayesianLSTM
    assert loaded.model.rnn.recurrent_dropout == 0.25
    assert np.array_equal(loaded.predict(STEPS).values(), one)
    assert (spread(sampled(loaded)) > 1e-3).all()


@pytest.mark.parametrize("name", ["RNNModel", "BlockRNNModel"])
def test_each_sample_is_one_model(classes, name):
    """One layer's masks in all steps of a rollout, new ones in the next: also where the samples
    do not fit into one batch."""
    model = made(classes, name)
    model.fit(SERIES)
    module, layer = model.model, model.model.rnn
    draw, roll_out, rollouts = layer._masks_for, module._get_batch_prediction, []

    def masks_of_a_call(*arguments):
        masks = draw(*arguments)
        rollouts[-1].append(masks[0].keep_h.clone())
        return masks

    def one_rollout(*arguments):
        rollouts.append([])
        return roll_out(*arguments)

    layer._masks_for, module._get_batch_prediction = masks_of_a_call, one_rollout
    sampled(model, batch_size=SAMPLES // 2)
    first, second = rollouts
    for steps in rollouts:
        assert len(steps) > 2 and steps[0].shape == (4, SAMPLES // 2, 8)
        assert all(torch.equal(keep, steps[0]) for keep in steps)
    assert not torch.equal(first[0], second[0])


def test_training_goes_on_with_masks_after_a_forecast(classes):
    model = made(classes, "RNNModel")
    model.fit(SERIES)
    sampled(model)
    drew = []
    model.model.rnn.register_forward_hook(lambda layer, *_: drew.append(layer.draws_masks))
    model.fit(SERIES)
    assert drew and all(drew)


def test_what_darts_does_with_its_own(classes):
    """Why the recipe is needed: fails when darts' LSTM has a dropout that it switches."""
    model = RNNModel(
        10, model="LSTM", training_length=20, dropout=0.5, n_rnn_layers=2, hidden_dim=8,
        n_epochs=1, pl_trainer_kwargs=QUIET,
    )  # fmt: skip
    model.fit(SERIES)
    one, other = (model.predict(STEPS, mc_dropout=True).values() for _ in range(2))
    assert np.array_equal(one, other)
    with pytest.raises(ValueError, match="probabilistic"):
        sampled(model)


def test_recipe(classes):
    lower, upper = classes.lower.values(), classes.upper.values()
    assert lower.shape == (10, 1) and (lower < upper).all()

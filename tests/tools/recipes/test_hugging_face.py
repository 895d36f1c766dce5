"""A model of this package in transformers' and accelerate's hands."""

import pytest
import torch
from page import package, recipe

import bayesrnn_cuda as brnn

package("transformers", "accelerate")

from accelerate import Accelerator  # noqa: E402
from transformers import Trainer, TrainingArguments  # noqa: E402


@pytest.fixture(scope="module")
def names():
    return recipe("transformers and accelerate")


def made(names, **options):
    torch.manual_seed(0)
    return names.Classifier(names.Config(**options))


def batch(count=16):
    tokens = torch.randint(50, (count, 5), generator=torch.Generator().manual_seed(0))
    return tokens, (tokens[:, -1] > 25).long()


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer(names, tmp_path, bf16):
    model = made(names)
    data = [{"input_ids": ids, "labels": label} for ids, label in zip(*batch(), strict=True)]
    arguments = TrainingArguments(
        tmp_path, max_steps=12, learning_rate=0.05, per_device_train_batch_size=16, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", bf16=bf16, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12 and float(losses[-1]) < 0.8 * float(losses[0])
    assert model.lstm.draws_masks


def test_saved_and_loaded(names, tmp_path):
    model = made(names, dropout=0.4).eval()
    model.save_pretrained(tmp_path)
    loaded = names.Classifier.from_pretrained(tmp_path)
    assert not loaded.lstm.draws_masks and loaded.lstm.recurrent_dropout == 0.4
    assert loaded.lstm.mask_dropout.p == 0.4
    tokens, _ = batch()
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    got = brnn.mc_predict(
        loaded, samples=9, likelihood="categorical", module_kwargs={"input_ids": tokens}
    )
    assert got.mean.shape == (16, 2) and (got.std > 0).all()


def test_what_a_checkpoint_lacks_begins_as_ours_does(names, tmp_path):
    model = made(names)
    kept = {
        name: value
        for name, value in model.state_dict().items()
        if name not in ("lstm.weight_hh_l0", "embedding.weight")
    }
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = names.Classifier.from_pretrained(tmp_path)
    assert torch.equal(loaded.lstm.weight_ih_l0, model.lstm.weight_ih_l0)
    bound = 16**-0.5  # of U(-1/sqrt(H), 1/sqrt(H))
    fresh = loaded.lstm.weight_hh_l0
    assert not torch.equal(fresh, model.lstm.weight_hh_l0)
    assert 0.9 * bound < fresh.abs().max() <= bound
    assert 0.8 < loaded.embedding.weight.std() < 1.2


def test_accelerate(names, tmp_path):
    model = made(names)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*batch()), batch_size=8, shuffle=False
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    dtypes = []
    model.lstm.register_forward_hook(lambda layer, inputs, out: dtypes.append(out[0].dtype))

    def losses(epochs):
        found = []
        for _ in range(epochs):
            for tokens, labels in loader:
                loss = model(tokens, labels=labels).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.item())
        return found

    first = losses(5)
    accelerator.save_state(tmp_path)
    rest = losses(3)
    assert min(rest) < 0.9 * first[0] and set(dtypes) == {torch.bfloat16}
    accelerator.load_state(tmp_path)
    assert losses(3) == rest  # the random state of the masks was saved too


def test_recipe(names):
    prediction = names.prediction
    assert prediction.mean.shape == (4, 2) and (prediction.std > 0).all()
    assert prediction.mutual_information.shape == (4,)

"""The sentiment regression as a task: updates, shares, errors in the ratings' unit, uncertainty."""

import json
import math
import signal
from dataclasses import asdict, replace

import pytest
import torch
from review_files import write_review_folder
from torch import nn

from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.sentiment import evaluation as sentiment_evaluation
from bayesrnn_cuda.experiments.sentiment.evaluation import (
    calibration,
    mc_predict,
    predict,
    rank_correlation,
)
from bayesrnn_cuda.experiments.sentiment.model import SentimentConfig
from bayesrnn_cuda.experiments.sentiment.task import SentimentTask
from bayesrnn_cuda.experiments.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from bayesrnn_cuda.experiments.training.distributed import Workers
from bayesrnn_cuda.experiments.training.runs import Interrupted
from bayesrnn_cuda.experiments.training.trainer import Trainer, read_run

TINY = {
    "seq_len": 6,
    "vocabulary": 40,
    "embedding": 6,
    "hidden": 7,
    "batch_size": 16,
    "epochs": 2,
    "mc_samples": 4,
    "mc_samples_epoch": 3,
    "device": "cpu",
}
NO_DROPOUT = {"dropout_kind": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_review_folder(tmp_path_factory.mktemp("reviews")))


@pytest.fixture
def make(folder):
    """The task with some options changed, masks from the same numbers each time."""

    def task(workers: Workers | None = None, **changes) -> SentimentTask:
        torch.manual_seed(0)
        config = SentimentConfig(**{**TINY, "data": folder, **changes})
        return SentimentTask.load(config, workers or Workers())

    return task


def nothing(pieces: int = 0) -> None:
    """Stands for who does not stop the work."""


def step(task: SentimentTask, optimizer: torch.optim.Optimizer, update: int) -> float:
    loss = task.loss(task.model, update)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def gradients(task: SentimentTask, update: int) -> list[torch.Tensor]:
    task.start_epoch(1)
    task.model.zero_grad()
    task.loss(task.model, update).backward()
    return [parameter.grad.clone() for parameter in task.model.parameters()]


def test_updates_take_every_piece_once(make):
    task = make()
    pieces = len(task.data.train)
    assert task.updates == math.ceil(pieces / 16) and pieces % 16
    assert task.items == 16
    task.start_epoch(1)
    assert sorted(task.order.tolist()) == list(range(pieces))
    assert make(pieces=10).items == 10 and make(pieces=10).updates == 1
    assert make(pieces=16).updates == 1 and make(pieces=17).updates == 2


def test_order_is_that_of_seed_and_epoch(make):
    def order(seed: int, epoch: int) -> list[int]:
        task = make(seed=seed)
        task.start_epoch(epoch)
        return task.order.tolist()

    first = order(1, 1)
    assert order(1, 1) == first
    assert len({tuple(order(*key)) for key in ((1, 1), (1, 2), (2, 1), (2, 2))}) == 4


def test_loss_is_the_mean_squared_error_of_standardized_ratings(make):
    task = make(**NO_DROPOUT)
    task.start_epoch(3)
    last = task.updates - 1
    for update, batch in ((0, task.order[:16]), (last, task.order[16 * last :])):
        ratings = task.data.train.ratings[batch]
        targets = (ratings - task.data.train.ratings.mean()) / task.data.train.ratings.std(
            correction=0
        )
        expected = (task.model(task.data.train.tokens[batch]) - targets).square().mean()
        torch.testing.assert_close(task.loss(task.model, update).double(), expected)


@pytest.mark.parametrize(("size", "pieces"), [(2, None), (4, None), (4, 18)])
def test_shares_of_all_processes_make_the_whole_batch(make, size, pieces):
    """The last batch cannot be shared evenly; of 18 pieces in 16 it leaves two processes none."""
    whole = make(**NO_DROPOUT, pieces=pieces)
    parts = [make(Workers(rank, size), **NO_DROPOUT, pieces=pieces) for rank in range(size)]
    for update in (0, whole.updates - 1):
        shared = [gradients(part, update) for part in parts]
        mean = [torch.stack(each).mean(dim=0) for each in zip(*shared, strict=True)]
        for mine, expected in zip(mean, gradients(whole, update), strict=True):
            torch.testing.assert_close(mine, expected)


def test_batch_must_be_shared_evenly(make):
    with pytest.raises(UserError, match="--batch-size: expected a multiple of the 3 processes"):
        make(Workers(0, 3))


def test_weight_decay_is_a_penalty_of_all_parameters(make):
    """Adam's updates equal those on the loss plus X times the sum of all squares."""
    decayed, penalized = (make(**NO_DROPOUT, weight_decay=0.3) for _ in range(2))
    plain = torch.optim.Adam(penalized.model.parameters(), lr=1e-3)
    optimizer = decayed.optimizer()
    for task in (decayed, penalized):
        task.start_epoch(1)
    for update in range(decayed.updates):
        step(decayed, optimizer, update)
        squares = sum(w.square().sum() for w in penalized.model.parameters())
        plain.zero_grad()
        (penalized.loss(penalized.model, update) + 0.3 * squares).backward()
        plain.step()
    for mine, expected in zip(
        decayed.model.parameters(), penalized.model.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("kind", ["none", "naive", "bayesian"])
def test_updates_learn(make, kind, cell):
    p = dict.fromkeys(("embedding_dropout", "input_dropout", "recurrent_dropout"), 0.1)
    task = make(dropout_kind=kind, cell=cell, lr=0.02, **p, output_dropout=0.1)
    optimizer = task.optimizer()
    means = []
    for epoch in range(1, 9):
        task.start_epoch(epoch)
        losses = [step(task, optimizer, update) for update in range(task.updates)]
        means.append(sum(losses) / len(losses))
    assert all(map(math.isfinite, means))
    assert means[-1] < 0.8 * means[0]
    assert all(map(math.isfinite, task.evaluate(nothing).values()))


def test_bfloat16_loss_is_float32(make):
    task = make(precision="bfloat16")
    task.start_epoch(1)
    with task.autocast():
        loss = task.loss(task.model, 0)
    assert loss.dtype == torch.float32
    expected = make()
    expected.start_epoch(1)
    torch.testing.assert_close(loss, expected.loss(expected.model, 0), rtol=0.05, atol=0.05)


def test_errors_are_in_the_unit_of_the_ratings(make):
    task = make()
    with torch.no_grad():
        task.model.decoder.weight.zero_()
        task.model.decoder.bias.fill_(0.5)
    ratings, train = task.data.test.ratings, task.data.train.ratings
    constant = train.mean() + 0.5 * train.std(correction=0)
    expected = (constant - ratings).square().mean().sqrt().item()
    assert task.evaluate(nothing) == pytest.approx(
        {"test_rmse": expected, "test_rmse_mc": expected}
    )
    figures = task.test(nothing)
    assert figures["test_rmse"] == pytest.approx(expected)
    baseline = (train.mean() - ratings).square().mean().sqrt().item()
    assert figures["baseline_rmse"] == pytest.approx(baseline)
    assert task.training_record(0.25) == {
        "train_rmse": pytest.approx(0.5 * train.std(correction=0).item())
    }


def test_evaluation_is_repeatable_and_leaves_no_trace(make):
    task = make()
    task.model.train()
    generator = torch.get_rng_state()
    first = task.evaluate(nothing)
    assert torch.equal(torch.get_rng_state(), generator)
    assert task.model.training
    assert all(parameter.grad is None for parameter in task.model.parameters())
    torch.rand(3)
    assert task.evaluate(nothing) == first
    other = make(seed=2)
    other.model.load_state_dict(task.model.state_dict())
    assert other.evaluate(nothing)["test_rmse"] == first["test_rmse"]
    assert other.evaluate(nothing)["test_rmse_mc"] != first["test_rmse_mc"]


def test_figures_of_the_finished_run(make):
    task = make(mc_samples=6)
    figures = json.loads(json.dumps(task.test(nothing), allow_nan=False))
    assert figures["mc_samples"] == 6
    tokens, ratings = task.data.test.tokens, task.data.test.ratings
    prediction = mc_predict(task.model, tokens, samples=6, seed=1, on_pieces=nothing)
    deviations = prediction.standard_deviation * task.standard_deviation
    errors = task.mean + task.standard_deviation * prediction.mean - ratings
    assert figures["test_rmse_mc"] == pytest.approx(errors.square().mean().sqrt().item())
    assert figures["mean_standard_deviation"] == pytest.approx(deviations.mean().item())
    assert figures["calibration"] == calibration(errors, deviations)
    assert figures["error_rank_correlation"] == rank_correlation(errors.abs(), deviations)


@pytest.mark.parametrize("changes", [NO_DROPOUT, {"dropout_kind": "naive"}, {"mc_samples": 0}])
def test_no_samples_without_masks_to_sample(make, changes):
    task = make(**changes)
    assert task.test(nothing)["mc_samples"] == 0
    assert task.test(nothing)["test_rmse_mc"] is None
    task = make(**{**changes, "mc_samples_epoch": 0})
    assert set(task.evaluate(nothing)) == {"test_rmse"}


def test_evaluation_can_be_stopped(make):
    def stop() -> None:
        raise Interrupted(signal.SIGINT)

    task = make()
    for work in (task.evaluate, task.test):
        with pytest.raises(Interrupted):
            work(stop)
        assert task.model.training


def test_passes_do_not_change_the_prediction(make, monkeypatch):
    task = make()
    tokens, sizes = task.data.test.tokens, []
    monkeypatch.setattr(sentiment_evaluation, "PIECES_PER_PASS", 3)
    parts = predict(task.model, tokens, on_pieces=sizes.append)
    with torch.no_grad():
        torch.testing.assert_close(parts, task.model.eval()(tokens).double())
    assert max(sizes) == 3 and sum(sizes) == len(tokens)


@pytest.mark.parametrize(("per_pass", "largest"), [(2, 2), (7, 4), (17, 12)])
def test_samples_run_as_batch_in_bounded_passes(make, monkeypatch, per_pass, largest):
    """Five samples, the first alone: four of one piece in parts, of one, of three pieces."""
    task, sizes, seen = make(), [], []
    monkeypatch.setattr(sentiment_evaluation, "PIECES_PER_PASS", per_pass)
    task.model.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    prediction = mc_predict(
        task.model, task.data.test.tokens, samples=5, seed=1, on_pieces=seen.append
    )
    assert max(sizes) == largest
    assert sum(sizes) == sum(seen) == 5 * len(task.data.test)
    assert prediction.mean.shape == prediction.standard_deviation.shape == (len(task.data.test),)


class CountedModel(nn.Module):
    """Stands for a model: its outputs are 0, 1, 2, ... in the order of its calls' rows."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.count = nn.Linear(1, 1), 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.count += len(tokens)
        return torch.arange(self.count - len(tokens), self.count, dtype=torch.float32)


def test_mean_and_deviation_are_over_the_samples_of_a_piece(monkeypatch):
    """Two pieces, three samples in one call: rows 0, 2, 4 and 1, 3, 5."""
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    prediction = mc_predict(CountedModel(), tokens, samples=3, seed=1, on_pieces=nothing)
    assert prediction.mean.tolist() == [2.0, 3.0]
    expected = torch.full((2,), math.sqrt(8 / 3), dtype=torch.float64)
    torch.testing.assert_close(prediction.standard_deviation, expected, rtol=1e-6, atol=0)


def test_without_dropout_there_is_no_deviation(make):
    names = ("embedding_dropout", "input_dropout", "recurrent_dropout", "output_dropout")
    task = make(**dict.fromkeys(names, 0.0))
    tokens = task.data.test.tokens
    prediction = mc_predict(task.model, tokens, samples=3, seed=1, on_pieces=nothing)
    torch.testing.assert_close(prediction.mean, predict(task.model, tokens, on_pieces=nothing))
    assert prediction.standard_deviation.max() < 1e-6


def test_calibration_by_hand():
    deviations = torch.tensor([0.3, 0.5, 0.2, 0.1, 0.4])
    errors = torch.tensor([3.0, -5.0, 2.0, -1.0, 4.0])
    bins = calibration(errors, deviations, bins=2)
    assert [part["pieces"] for part in bins] == [3, 2]
    assert [part["predicted"] for part in bins] == pytest.approx([0.2, 0.45])
    assert [part["rmse"] for part in bins] == pytest.approx([(14 / 3) ** 0.5, 20.5**0.5])
    assert [part["pieces"] for part in calibration(errors, deviations)] == [1] * 5
    assert [part["pieces"] for part in calibration(torch.ones(25), torch.rand(25))] == [3] * 5 + [
        2
    ] * 5


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, -9.0], -1.0),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 0.8),  # 1 - 6 * 2 / (4 * 15)
        ([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], 0.9**0.5),  # ranks 1, 2.5, 2.5, 4
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], None),
        ([1.0], [1.0], None),
    ],
)
def test_rank_correlation_by_hand(a, b, expected):
    for pair in ((a, b), (b, a)):
        found = rank_correlation(*map(torch.tensor, pair))
        assert found == (None if expected is None else pytest.approx(expected))


def test_options_reach_the_data(make, folder):
    task = make(split="deduplicated", seq_len=4, vocabulary=12, pieces=20)
    assert task.tokens.shape == (20, 4) and len(task.data.test) == 5
    assert task.tokens.max() == 11 and len(task.data.words) == 8
    authors = make(seq_len=4, vocabulary=12, pieces=20)
    assert authors.fingerprint() != task.fingerprint()
    assert "20 training, 5 test pieces of 4 tokens, 8 words" in task.describe()
    assert "Bayesian dropout E=0.5 W=0.5 U=0.5 dense=0.5, 2 updates an epoch" in task.describe()


def test_task_from_a_checkpoint(make, tmp_path):
    task = make()
    task.start_epoch(1)
    step(task, task.optimizer(), 0)
    save_checkpoint(tmp_path / "a.pt", task.config.kind(), task.content())
    content = load_checkpoint(tmp_path / "a.pt", task.config.kind())
    restored = SentimentTask.restore(content, task.config, task.data)
    assert restored.evaluate(nothing) == task.evaluate(nothing)
    assert content["config"] == asdict(task.config)
    assert content["words"] == task.data.words
    with pytest.raises(CheckpointError, match="complete checkpoint of a sentiment model"):
        SentimentTask.restore(content, replace(task.config, hidden=8), task.data)


def test_resumed_run_equals_the_uninterrupted_one(make, tmp_path, monkeypatch):
    whole = Trainer.start(make(), tmp_path / "whole")
    result = whole.run()
    task = make()
    loss, calls = task.loss, []

    def interrupting_loss(model: nn.Module, update: int) -> torch.Tensor:
        calls.append(update)
        if len(calls) == task.updates + 2:  # in the second epoch
            signal.raise_signal(signal.SIGINT)
        return loss(model, update)

    monkeypatch.setattr(task, "loss", interrupting_loss)
    with pytest.raises(Interrupted):
        Trainer.start(task, tmp_path / "part").run()
    torch.rand(1)
    content, config = read_run(SentimentTask, tmp_path / "part", {})
    resumed = SentimentTask.restore(content, config, make().data)
    again = Trainer.resume(content, resumed, tmp_path / "part").run()

    def figures(records: list[dict]) -> list[dict]:
        timed = ("seconds", "pieces_per_second")
        return [{k: v for k, v in record.items() if k not in timed} for record in records]

    assert figures(again.history) == figures(result.history)
    assert again.final == result.final
    for mine, expected in zip(
        resumed.model.parameters(), whole.task.model.parameters(), strict=True
    ):
        assert torch.equal(mine, expected)
    keys = {"epoch", "lr", "train_loss", "train_rmse", "test_rmse", "test_rmse_mc"}
    assert keys < set(result.history[0])


def test_finished_run_tests_the_last_epoch(make, tmp_path, monkeypatch):
    task, rising = make(**NO_DROPOUT), iter([1.0, 2.0])
    with monkeypatch.context() as patch:
        patch.setattr(task, "evaluate", lambda check: {"test_rmse": next(rising)})
        final = Trainer.start(task, tmp_path / "run").run().final
    assert final["best_epoch"] == 1
    assert final["test_rmse"] == task.evaluate(nothing)["test_rmse"]

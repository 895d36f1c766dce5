"""The Trainer with a task that is no language model: everything it knows comes from the task."""

import json
import os
import signal
from dataclasses import asdict, dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.training.checkpoint import load_checkpoint
from bayesrnn_cuda.experiments.training.configuration import (
    RunConfig,
)
from bayesrnn_cuda.experiments.training.distributed import ALONE
from bayesrnn_cuda.experiments.training.runs import Interrupted
from bayesrnn_cuda.experiments.training.task import Task
from bayesrnn_cuda.experiments.training.trainer import Trainer, TrainingDiverged, read_run


@dataclass(frozen=True)
class LineConfig(RunConfig):
    """A line through points."""

    experiment: ClassVar = "straight_line"


class LineTask(Task):
    """Fits y = 3 x, one point an update, in an order of each epoch's own."""

    config_class = LineConfig
    unit = "points"
    metric = "error"
    tests_best = False
    axis = "error"
    curves: ClassVar = {"error": "test", "train_error": "training"}
    updates = 4
    items = 1

    def __init__(self, config, data, workers=ALONE):
        self.config, self.data, self.workers = config, data, workers
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.calls, self.steps = [], 0

    @classmethod
    def load_data(cls, config):
        return torch.tensor([1.0, 2.0, -1.0, 0.5])

    @classmethod
    def restore(cls, content, config, data, workers=ALONE):
        task = cls(config, data, workers)
        task.model.load_state_dict(content["model"])
        return task

    def describe(self):
        return "4 points\na line"

    def fingerprint(self):
        return int(self.data.sum() * 2)

    def content(self):
        return {"config": asdict(self.config), "model": self.model.state_dict()}

    def start_epoch(self, epoch):
        self.calls.append(f"epoch {epoch}")
        generator = torch.Generator().manual_seed(epoch)
        self.order, self.steps = torch.randperm(4, generator=generator).tolist(), 0

    def loss(self, model, update):
        x = self.data[self.order[update]].view(1)
        return (model(x) - 3 * x).square().sum()

    def optimizer(self):
        return torch.optim.SGD(self.model.parameters(), lr=123.0)

    def learning_rate(self, epoch):
        return 0.1 / epoch

    def after_update(self):
        self.calls.append(self.order[self.steps])
        self.steps += 1

    def state(self):
        return {"steps": self.steps}

    def load_state(self, state):
        self.calls.append("state")
        self.steps = state["steps"]

    def training_record(self, loss):
        return {"train_error": loss}

    def evaluate(self, check):
        check()
        return {"error": abs(self.model.weight.item() - 3)}

    def test(self, check):
        return {"error": abs(self.model.weight.item() - 3), "slope": self.model.weight.item()}


def new_task(**options) -> LineTask:
    return LineTask.load(LineConfig(**{"epochs": 2, "device": "cpu", **options}))


def test_run_of_any_task(tmp_path, capsys):
    """The updates by hand; unit, figures and final record as the task has them."""
    task = new_task()
    result = Trainer.start(task, tmp_path).run()
    slope, losses = 0.0, []
    for epoch in (1, 2):
        for x in task.data[torch.randperm(4, generator=torch.Generator().manual_seed(epoch))]:
            error = slope * x.item() - 3 * x.item()
            losses.append(error**2)
            slope -= 0.1 / epoch * 2 * error * x.item()
    first, second, final = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert final == result.final
    assert final["final"] and final["slope"] == pytest.approx(slope, rel=1e-5)
    assert final["best_epoch"] == 2
    assert first["train_loss"] == first["train_error"] == pytest.approx(sum(losses[:4]) / 4)
    assert second["train_loss"] == pytest.approx(sum(losses[4:]) / 4)
    assert [first["lr"], second["lr"]] == [0.1, 0.05]
    assert first["points_per_second"] > 0
    assert json.loads((tmp_path / "config.json").read_text())["experiment"] == "straight_line"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch   1/2  lr 0.1  train error ")
    assert " points/s  " in lines[0] and lines[0].endswith("s  best")


def test_last_epoch_is_tested_where_the_task_says_so(tmp_path, monkeypatch):
    """The best epoch is the first; the final record is of the second."""
    errors = iter([1.0, 2.0])
    monkeypatch.setattr(LineTask, "evaluate", lambda task, check: {"error": next(errors)})
    task = new_task()
    final = Trainer.start(task, tmp_path).run().final
    assert final["best_epoch"] == 1
    assert final["slope"] == task.model.weight.item()
    best = load_checkpoint(tmp_path / "best.pt", "straight line")["model"]["weight"].item()
    assert final["error"] == abs(final["slope"] - 3) and final["slope"] != best


def test_resumed_within_an_epoch(tmp_path, monkeypatch):
    """The epoch is started before the state is put back, and its order goes on."""
    whole = new_task()
    Trainer.start(whole, tmp_path / "whole").run()
    task = new_task()
    trainer = Trainer.start(task, tmp_path / "run")
    step = trainer.step

    def stop_in_second_epoch():
        loss = step()
        if trainer.progress.epoch == 2 and trainer.progress.update == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    trainer.step = stop_in_second_epoch
    with pytest.raises(Interrupted, match="after update 3 of 4"):
        trainer.run()
    content, config = read_run(LineTask, tmp_path / "run", {})
    resumed = LineTask.restore(content, config, LineTask.load_data(config))
    Trainer.resume(content, resumed, tmp_path / "run").run()
    assert resumed.calls[:2] == ["epoch 2", "state"]
    assert task.calls + resumed.calls[2:] == whole.calls
    first, second = (
        torch.randperm(4, generator=torch.Generator().manual_seed(epoch)).tolist()
        for epoch in (1, 2)
    )
    assert whole.calls == ["epoch 1", *first, "epoch 2", *second]  # points are after_update's
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_other_data(tmp_path):
    Trainer.start(new_task(), tmp_path).run()
    content, config = read_run(LineTask, tmp_path, {})
    task = LineTask.restore(content, config, torch.ones(4))
    with pytest.raises(UserError, match="--data: expected the data that"):
        Trainer.resume(content, task, tmp_path)


def test_divergence_names_the_rate_and_no_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(LineTask, "evaluate", lambda task, check: {"error": float("nan")})
    with pytest.raises(TrainingDiverged, match=r"after update 4 of 4; lower --lr \(now 0.1\)$"):
        Trainer.start(new_task(), tmp_path).run()

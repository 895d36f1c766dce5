"""Options of every run: time limit, precision, TensorBoard."""

import itertools
import json
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from language_runs import metrics, resume, start

from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.language.model import LanguageModelConfig
from bayesrnn_cuda.experiments.language.task import window_loss
from bayesrnn_cuda.experiments.report.comparison import compare
from bayesrnn_cuda.experiments.training import runs
from bayesrnn_cuda.experiments.training.checkpoint import load_checkpoint
from bayesrnn_cuda.experiments.training.runs import Interrupted

KIND = LanguageModelConfig.kind()


@pytest.fixture
def ticks(monkeypatch):
    """A clock for the time limit that goes on by a second whenever it is read."""
    clock = itertools.count()
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: next(clock)))


def test_bounded_calls_add_up_to_the_whole_run(tiny, corpus, tmp_path, losses, ticks):
    """Calls too short for an epoch, and for the final test, which has 30 windows to check at."""
    start(tiny(), corpus, tmp_path / "whole").run()
    expected, path = list(losses), tmp_path / "bounded"
    losses.clear()
    trainer, where = start(tiny(max_minutes=7 / 60), corpus, path), []
    for call in range(20):
        try:
            trainer.run()
            break
        except Interrupted as stop:
            assert stop.status == 3
            where.append(str(stop))
        trainer = resume(path, corpus, max_minutes=(7 + call % 3) / 60)
    assert where[0] == "stopped by --max-minutes in epoch 1, after update 7 of 17"
    assert where[-1] == "stopped by --max-minutes in the final test"
    assert len(where) < 10
    assert losses == expected
    assert metrics(path) == metrics(tmp_path / "whole")
    contents = [load_checkpoint(run / "last.pt", KIND) for run in (tmp_path / "whole", path)]
    for name, value in contents[0]["model"].items():
        assert torch.equal(contents[1]["model"][name], value)


def test_deadline_of_the_caller_goes_before_the_time_limit(tiny, corpus, tmp_path, ticks):
    trainer = start(tiny(max_minutes=1000.0), corpus, tmp_path)
    with pytest.raises(Interrupted, match="after update 3 of"):
        trainer.run(deadline=2)


def test_time_limit_of_a_comparison_is_for_all_its_runs(tiny, tmp_path, ticks):
    """Enough for the first run, which looks at the clock some 60 times, and not for the next."""
    given = {name: value for name, value in vars(tiny()).items() if name != "dropout_kind"}
    with pytest.raises(Interrupted, match=r"--max-minutes in epoch \d, after update"):
        compare(tmp_path, {**given, "max_minutes": 90 / 60})
    assert metrics(tmp_path / "standard")[-1]["final"]
    assert len(metrics(tmp_path / "naive")) < 3 and not (tmp_path / "bayesian").exists()
    comparison = compare(tmp_path, {"max_minutes": 1000.0}, resume=True)
    assert set(comparison.results) == {"none", "naive", "bayesian"}


def test_bfloat16_is_for_the_training_loss_alone(tiny, corpus, tmp_path):
    """Logits in bfloat16 in training, float32 in evaluation; parameters and gradients float32."""
    first, dtypes = {}, {True: set(), False: set()}
    for precision in ("float32", "bfloat16"):
        config = tiny(precision=precision, dropout_kind="none", init_range=0.5, epochs=1)
        trainer = start(config, corpus, tmp_path / precision)
        first[precision] = trainer.step()
    assert first["bfloat16"] != first["float32"]
    torch.testing.assert_close(first["bfloat16"], first["float32"], rtol=1e-2, atol=0)
    assert first["bfloat16"].dtype == torch.float32
    for parameter in trainer.task.model.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    trainer.task.model.register_forward_hook(
        lambda module, inputs, output: dtypes[module.training].add(output[0].dtype)
    )
    trainer.run()
    assert dtypes == {True: {torch.bfloat16}, False: {torch.float32}}


def test_loss_of_bfloat16_logits_is_summed_in_float32():
    logits = torch.randn(5, 3, 1000).bfloat16()
    targets = torch.randint(1000, (5, 3))
    expected = window_loss(logits.float(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert window_loss(logits, targets) == expected


class Board:
    """Stands for TensorBoard's SummaryWriter."""

    made: ClassVar[list] = []

    def __init__(self, path, purge_step):
        self.path, self.purge_step, self.scalars, self.closed = path, purge_step, [], False
        self.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.closed = True

    def add_scalar(self, *arguments):
        self.scalars.append(arguments)

    def flush(self):
        pass


def test_tensorboard_has_the_metrics(tiny, corpus, tmp_path, losses, monkeypatch):
    module = SimpleNamespace(SummaryWriter=Board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Board.made.clear()
    losses.stop_at = 20
    with pytest.raises(Interrupted):
        start(tiny(tensorboard=True), corpus, tmp_path).run()
    resume(tmp_path, corpus).run()
    first, second = Board.made
    assert first.path == second.path == str(tmp_path) and first.closed and second.closed
    assert (first.purge_step, second.purge_step) == (1, 2)
    for board, epoch in ((first, 1), (second, 2)):
        record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[epoch - 1])
        assert record.pop("epoch") == epoch
        assert board.scalars == [(name, value, epoch) for name, value in record.items()]


def test_tensorboard_that_is_missing(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"^argument --tensorboard: expected the package .*pip"):
        start(tiny(tensorboard=True), corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_files(tiny, corpus, tmp_path):
    """With the real package, where there is one."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    start(tiny(tensorboard=True), corpus, tmp_path).run()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    records = metrics(tmp_path)[:-1]
    values = [(event.step, event.value) for event in events.Scalars("valid_perplexity")]
    assert values == [(r["epoch"], pytest.approx(r["valid_perplexity"])) for r in records]

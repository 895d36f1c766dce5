"""Forecasts as a task: what each method learns from, its intervals, stopped and resumed runs."""

import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import bayesrnn_cuda as brnn
from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.experiments import PRESETS
from bayesrnn_cuda.experiments.forecasting.model import METHODS, ForecastingConfig
from bayesrnn_cuda.experiments.forecasting.presets import SWEEPS
from bayesrnn_cuda.experiments.forecasting.summary import sections
from bayesrnn_cuda.experiments.forecasting.task import RULE, ForecastingTask
from bayesrnn_cuda.experiments.intervals import certain, measured, rules
from bayesrnn_cuda.experiments.report.records import Run, read_runs
from bayesrnn_cuda.experiments.report.report import write_report
from bayesrnn_cuda.experiments.training.distributed import Workers
from bayesrnn_cuda.experiments.training.runs import Interrupted
from bayesrnn_cuda.experiments.training.trainer import Trainer, read_run

TINY = {
    "series": 80,
    "test_series": 60,
    "hidden": 6,
    "epochs": 2,
    "passes": 2,
    "batch_size": 16,
    "mc_samples": 4,
    "mc_samples_epoch": 2,
    "device": "cpu",
}


def make(**changes) -> ForecastingTask:
    torch.manual_seed(0)
    return ForecastingTask.load(ForecastingConfig(**{**TINY, **changes}))


def nothing() -> None:
    """Stands for who does not stop the work."""


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_and_says_how_wide_and_how_often(method):
    task = make(method=method, epochs=4, passes=15, lr=0.02)
    optimizer, losses = task.optimizer(), []
    for epoch in range(1, 5):
        task.start_epoch(epoch)
        assert task.scaling == (method == "adaptive" and epoch > 2)
        task.model.train()
        total = 0.0
        for update in range(task.updates):
            loss = task.loss(task.model, update)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    assert losses[1] < 0.9 * losses[0] and losses[3] < losses[2]
    figures = json.loads(json.dumps(task.test(nothing), allow_nan=False))
    assert figures["oracle_rmse"] < figures["test_rmse"]
    chosen = figures["intervals"][RULE.get(method, "published")]
    assert (chosen["joint"], chosen["width"]) == (figures["joint"], figures["width"])


def test_half_of_the_series_are_held_out_where_something_is_calibrated():
    for method in METHODS:
        task = make(method=method)
        calibrates = method not in ("mq-rnn", "dp-rnn")
        assert len(task.given) == (40 if calibrates else 80)
        assert len(task.held_out.given) == (40 if calibrates else 0)
        known = torch.cat([task.given, task.held_out.given])
        assert torch.equal(known, task.data.known.given)


def test_processes_share_a_batch_but_not_adaptive():
    whole, parts = make(), []
    for rank in range(2):
        config = ForecastingConfig(**TINY)
        parts.append(ForecastingTask.load(config, Workers(rank, 2)))
    for task in (whole, *parts):
        task.start_epoch(1)
        task.model.eval()  # without masks
    losses = [task.loss(task.model, 0).item() for task in parts]
    assert sum(losses) / 2 == pytest.approx(whole.loss(whole.model, 0).item(), rel=1e-5)
    with pytest.raises(UserError, match="--method: expected one process for adaptive, got 2"):
        ForecastingTask.load(ForecastingConfig(**TINY, method="adaptive"), Workers(0, 2))


def test_an_epoch_is_passes_or_batches_with_replacement():
    task = make(method="cf-rnn")
    assert task.updates == 2 * 3
    task.start_epoch(1)
    for batches in (task.batches[:3], task.batches[3:]):
        assert sorted(torch.cat(batches).tolist()) == list(range(40))
    task = make(method="dp-rnn", drawn_batches=7)
    task.start_epoch(1)
    assert task.updates == len(task.batches) == 7
    assert {len(batch) for batch in task.batches} == {16}


def test_the_loss_of_quantiles_by_hand():
    task = make(method="mq-rnn")
    task.start_epoch(1)
    batch = task.batches[0]
    with torch.no_grad():
        lower, upper = task.model(task.given[batch].t().unsqueeze(2)).chunk(2, dim=1)
    loss = 0.0
    for q, forecast in ((0.05, lower), (0.95, upper)):
        for error in (task.targets[batch] - forecast).flatten().tolist():
            loss += (q if error > 0 else q - 1) * error
    assert task.loss(task.model, 0).item() == pytest.approx(loss / (2 * lower.numel()), rel=1e-5)
    assert ForecastingConfig(coverage=0.5).quantiles() == (0.25, 0.75)


def test_variational_standardizes_and_the_published_do_not():
    given, targets = make().given, make().targets
    moments = [given.mean(), given.std(), targets.mean(), targets.std()]
    torch.testing.assert_close(make().model.moments, torch.stack(moments))
    assert make(method="cf-rnn").model.moments.tolist() == [0, 1, 0, 1]


# Intervals


def example(count: int, seed: int = 0) -> tuple[brnn.MCPrediction, torch.Tensor]:
    """Errors of deviation 1, 2, 3 around a forecast that is certain."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    errors = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return certain(mean), mean + errors * torch.tensor([1.0, 2.0, 3.0])


def test_the_published_rule_is_a_quantile_of_the_errors():
    held_out, targets = example(50)
    test, _ = example(4, seed=1)
    errors = (targets - held_out.mean).abs().numpy()
    level = (51 / 50) * (1 - 0.1 / 3)
    expected = np.quantile(errors, level, axis=0)
    lower, upper = rules(held_out, targets, test, 0.9)["published"]
    np.testing.assert_allclose((upper - lower).numpy(), np.tile(2 * expected, (4, 1)))
    few = rules(certain(held_out.mean[:20]), targets[:20], test, 0.9)["published"]  # level above 1
    np.testing.assert_allclose((few[1] - few[0])[0].numpy(), 2 * errors[:20].max(axis=0))


def test_calibrated_rules_cover_and_their_noise_is_that_of_the_steps():
    found = rules(*example(2000), example(20_000, seed=1)[0], 0.9)
    assert set(found) == {"normal", "published", "bonferroni", "max", "max, sure"}
    targets = example(20_000, seed=1)[1]
    shares = {name: measured(pair, targets) for name, pair in found.items()}
    for name, figures in shares.items():
        assert 88.5 < figures["joint"] < 93.5, name
        assert figures["joint"] < figures["independent"]
    assert shares["max"]["width"] < shares["max, sure"]["width"]
    widths = (found["normal"][1] - found["normal"][0])[0]
    z = torch.special.ndtri(torch.tensor(1 - 0.1 / 6)).item()
    expected = 2 * z * torch.tensor([1.0, 2.0, 3.0]).double()
    torch.testing.assert_close(widths, expected, rtol=0.1, atol=0)


def test_too_few_held_out_series_have_no_finite_interval():
    held_out, targets = example(30)
    found = rules(held_out, targets, held_out, 0.9)
    assert measured(found["max, sure"], targets)["width"] is None
    assert measured(found["max, sure"], targets)["joint"] == 100
    assert measured(found["max"], targets)["width"] is not None


@pytest.mark.parametrize("method", ["variational", "cf-rnn", "adaptive", "mq-rnn"])
@pytest.mark.parametrize("changes", [{"series": 10}, {"coverage": 0.01}, {"coverage": 0.99}])
def test_the_ends_of_the_ranges_can_be_tested(method, changes):
    make(method=method, passes=1, **changes).test(nothing)


@pytest.mark.parametrize(("name", "value"), [("series", 9), ("coverage", 0), ("coverage", 1)])
def test_what_no_test_can_take_is_refused_before_training(name, value):
    with pytest.raises(UserError, match=f"argument --{name}: expected .*, got {value}"):
        ForecastingConfig(**{**TINY, name: value})


def test_held_out_series_that_show_no_noise():
    """Their errors are below the doubt, and some forecasts are without doubt."""
    held_out, targets = example(10)
    std = torch.full_like(targets, 100)
    std[5:] = 0
    held_out = held_out._replace(std=std, total_std=std)
    for lower, upper in rules(held_out, targets, held_out, 0.5).values():
        assert (upper >= lower).all()


def test_a_scale_of_its_own_is_used():
    held_out, targets = example(500)
    scaled = certain(held_out.mean, torch.tensor([1.0, 2.0, 3.0]).expand(500, 3).double())
    found = rules(scaled, targets, scaled, 0.9)
    assert "normal" not in found and "doubt" not in found
    widths = (found["max"][1] - found["max"][0])[0]
    torch.testing.assert_close(widths / widths[0], torch.tensor([1.0, 2.0, 3.0]).double())


# Runs


def test_evaluation_is_repeatable_and_leaves_no_trace():
    task = make()
    task.model.train()
    generator = torch.get_rng_state()
    first = task.evaluate(nothing)
    assert torch.equal(torch.get_rng_state(), generator)
    assert task.model.training
    assert task.evaluate(nothing) == first


@pytest.mark.parametrize("method", ["variational", "adaptive", "dp-rnn"])
@pytest.mark.parametrize("stop_at", [3, 15])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, losses, method, stop_at):
    changes = {"method": method, **({"drawn_batches": 9} if method == "dp-rnn" else {"passes": 3})}
    whole = Trainer.start(make(**changes), tmp_path / "whole")
    expected = whole.run()
    losses.clear()
    losses.stop_at, losses.number = stop_at, signal.SIGTERM
    with pytest.raises(Interrupted):
        Trainer.start(make(**changes), tmp_path / "part").run()
    content, config = read_run(ForecastingTask, tmp_path / "part", {})
    task = ForecastingTask.restore(content, config, ForecastingTask.load_data(config))
    result = Trainer.resume(content, task, tmp_path / "part").run()
    assert result.final == expected.final
    for mine, other in zip(task.model.parameters(), whole.task.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def finished(folder, label: str, **given) -> dict:
    """The last record of a tiny run of forecasting-static-3 in a folder."""
    sweep = next(sweep for sweep in SWEEPS if sweep.name == "forecasting-static-3")
    own = {name: TINY[name] for name in TINY if name != "epochs"}
    config = replace(sweep.members[label].config(own | given), epochs=1)
    return Trainer.start(ForecastingTask.load(config), folder).run().final


def mean_and_spread(values: list[float]) -> str:
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / math.sqrt(2)
    return f"{mean:.1f} ({spread:.1f}; 2)"


def test_report_averages_the_seeds(tmp_path):
    runs = {
        label: [
            finished(tmp_path / "runs" / f"{seed}" / label, label, seed=seed) for seed in (1, 2)
        ]
        for label in ("variational", "cf-rnn")
    }
    text = write_report([tmp_path / "runs"], tmp_path / "report").read_text()
    joint = mean_and_spread([final["joint"] for final in runs["cf-rnn"]])
    assert f"| CF-RNN | {joint} [94.6] |" in text
    oracle = mean_and_spread([final["intervals"]["oracle"]["joint"] for final in runs["cf-rnn"]])
    assert f"| oracle (Kalman filter) | {oracle} |" in text
    assert "DP-RNN |" not in text and "epochs 1 (preset 20)" in text and "Left out" not in text
    for name in ("forecasting.png", "forecasting-curves.png"):
        assert (tmp_path / "report" / name).stat().st_size > 1000


def test_report_pools_what_is_comparable(tmp_path):
    """Neither the same seed twice nor other options; a run without masks loses no figure."""
    joint = [
        finished(tmp_path / "runs" / f"{seed}", "cf-rnn", seed=seed)["joint"] for seed in (1, 2)
    ]
    finished(tmp_path / "runs" / "again", "cf-rnn", seed=2)
    finished(tmp_path / "runs" / "wide", "cf-rnn", seed=3, hidden=7)
    finished(tmp_path / "runs" / "certain", "variational", dropout=0.0)
    text = write_report([tmp_path / "runs"], tmp_path / "report").read_text()
    assert f"| CF-RNN | {mean_and_spread(joint)} [94.6] |" in text
    assert "other options: again, wide." in text and "hidden 7" not in text
    assert "variational, max score |" in text and "variational, masks alone" not in text
    assert (tmp_path / "report" / "forecasting.png").stat().st_size > 1000
    preset = PRESETS["sentiment-lstm-bayesian"]
    config = {**vars(preset.config()), "experiment": "sentiment", "epochs": 77}
    other = Run("other", config, [], {"final": True}, preset)
    words = "\n".join(sections([*read_runs([tmp_path / "runs"]), other], tmp_path))
    assert words in text and "epochs 77" not in words

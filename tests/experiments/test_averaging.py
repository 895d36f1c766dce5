"""`bayesrnn experiment averaging`: each way against the evaluation that the runs themselves use."""

import math
from pathlib import Path

import pytest
import torch
from language_runs import start
from review_files import write_review_folder

from bayesrnn_cuda.__main__ import main
from bayesrnn_cuda.experiments.averaging import (
    ALONE,
    APPROXIMATION,
    ARITHMETIC,
    GEOMETRIC,
    TEMPERATURES,
    Way,
    _by_temperature,
    averaging,
)
from bayesrnn_cuda.experiments.language.evaluation import mc_evaluate, perplexity
from bayesrnn_cuda.experiments.sentiment.model import SentimentConfig
from bayesrnn_cuda.experiments.sentiment.task import SentimentTask
from bayesrnn_cuda.experiments.training.trainer import Trainer

SIZES = (1, 2, 6)
TRAINED = "as in training"


def by_name(path: Path) -> dict[tuple[str, float], Way]:
    return {(way.name, way.samples): way for way in averaging(path, SIZES, 1000)}


@pytest.mark.parametrize(("state", "mc_masks"), [("carry", "pass"), ("zero", "window")])
def test_ways_of_a_language_model_agree_with_its_test(state, mc_masks, tiny, corpus, tmp_path):
    trainer = start(tiny(state=state, mc_masks=mc_masks), corpus, tmp_path / "run")
    trainer.run()
    ways = by_name(tmp_path / "run")
    model, config = trainer.task.model, trainer.config
    settings = {"seq_len": config.seq_len, "state": state}
    assert ways[APPROXIMATION, 0].error == pytest.approx(
        perplexity(model, corpus.test, **settings), rel=1e-5
    )
    sampled = mc_evaluate(
        model,
        corpus.test,
        samples=6,
        seed=config.seed,
        embedding_dropout=True,
        masks_per=mc_masks,
        **settings,
    )
    # The masks of the validation text are drawn before from a generator of their own.
    trained = ways[f"{ARITHMETIC}, {TRAINED}", 6]
    assert trained.error == pytest.approx(sampled.perplexity, rel=1e-5)
    single = ways[f"{ARITHMETIC}, {TRAINED}", 1]
    assert ways[f"{GEOMETRIC}, {TRAINED}", 1].error == pytest.approx(single.error, rel=1e-5)
    # Jensen: the logarithm of a mean is at least the mean of logarithms, of every word.
    assert trained.error < ways[f"{ALONE}, {TRAINED}", 1].error
    names = {name for name, _ in ways}
    assert {f"{ARITHMETIC}, half of p", f"{GEOMETRIC}, words not dropped"} <= names
    assert math.isnan(ways[f"{ALONE}, {TRAINED}", 1].error_fitted)


def test_ways_of_a_sentiment_model(tmp_path):
    config = SentimentConfig(
        data=str(write_review_folder(tmp_path / "data")),
        embedding=5,
        hidden=6,
        epochs=2,
        batch_size=8,
        mc_samples=3,
        mc_samples_epoch=0,
        device="cpu",
    )
    trainer = Trainer.start(SentimentTask.load(config), tmp_path / "run")
    final = trainer.run().final
    ways = by_name(tmp_path / "run")
    assert ways[APPROXIMATION, 0].error == pytest.approx(final["test_rmse"], rel=1e-5)
    alone, most = ways[f"{ALONE}, {TRAINED}", 1].error, ways[f"{ARITHMETIC}, {TRAINED}", 6].error
    limit = ways[f"{ARITHMETIC}, {TRAINED}", math.inf].error
    # The mean square of a sample alone is that of the mean and the samples' variance.
    assert most < alone
    assert limit**2 == pytest.approx(most**2 - (alone**2 - most**2) / 5, rel=1e-6)


def test_temperature_divides_logits():
    logits, targets = torch.randn(4, 7, dtype=torch.float64), torch.tensor([[1], [0], [6], [2]])
    nats = _by_temperature(logits, targets)
    for index in (0, 7, 20):
        log_p = (logits / TEMPERATURES[index]).log_softmax(-1)
        torch.testing.assert_close(nats[index], -log_p.gather(-1, targets).sum())


def test_command_prints_a_table_and_refuses_by_name(tiny, corpus, tmp_path, capsys):
    start(tiny(epochs=1), corpus, tmp_path / "run").run()
    start(tiny(epochs=1, dropout_kind="naive"), corpus, tmp_path / "naive").run()
    capsys.readouterr()
    command = ["experiment", "averaging"]
    assert main([*command, str(tmp_path / "run"), "--samples", "3", "2", "--items", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "|---|---|---|---|---|"
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["", "2", "2"]
    for given, words in (
        ([str(tmp_path / "naive")], "argument RUN: expected Bayesian dropout"),
        ([str(tmp_path / "nothing")], "argument RUN: expected a checkpoint"),
        ([str(tmp_path)], "argument RUN: expected the folder of a run, got"),
        ([str(tmp_path / "run"), "--samples", "0"], "argument --samples: expected whole numbers"),
        ([str(tmp_path / "run"), "--items", "0"], "argument --items: expected whole numbers"),
    ):
        assert main([*command, *given]) == 2
        captured = capsys.readouterr()
        assert not captured.out
        assert words in captured.err

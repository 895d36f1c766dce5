"""`experiment calibrate`: coverage of ratings, calibration error of the next word, mistakes."""

from types import SimpleNamespace

import pytest
import torch
from review_files import write_review_folder

from bayesrnn_cuda.__main__ import main
from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.calibrate import (
    Scores,
    Settings,
    _fitted_temperature,
    calibration_error,
    ratings,
    table,
    words,
)

SIZES = ["--embedding", "5", "--hidden", "6", "--device", "cpu", "--mc-samples", "2"]


def test_calibration_error_by_hand():
    confidence = torch.tensor([0.05, 0.15, 0.62, 0.68, 1.0])
    right = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    # bins of a tenth: 0.05, 0.85, |1 - 1.3| over the two of one bin, 0
    expected = (0.05 + 0.85 + 0.3) / 5
    assert calibration_error(confidence, right, bins=10) == pytest.approx(expected)
    assert calibration_error(confidence, right, bins=1) == pytest.approx(0.1)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_temperature_makes_overconfident_words_right(temperature):
    """Words are drawn from probabilities, and shown with logits `temperature` times as large."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(40_000, 6)
    targets = torch.multinomial(logits.softmax(dim=1), 1).squeeze(1)
    shown = (temperature * logits).log_softmax(dim=1)
    fitted = _fitted_temperature(iter([(shown[:20_000], targets[:20_000])]))
    assert fitted == pytest.approx(temperature, rel=0.03)
    before, after = Scores(1.0), Scores(fitted)
    for part in (slice(20_000, 30_000), slice(30_000, None)):
        before.add(shown[part], targets[part])
        after.add(shown[part], targets[part])
    before, after = before.figures(), after.figures()
    assert after["calibration error, %"] < 1.5
    assert after["right, %"] == before["right, %"]
    assert after["perplexity"] <= before["perplexity"] + 1e-4
    if temperature != 1:
        assert before["calibration error, %"] > 5


def test_table_begins_anew_with_other_columns():
    rows = [{"run": "a", "x": 0.12345}, {"run": "b", "x": None}, {"run": "c", "y": 1.0}]
    assert table(rows).splitlines() == [
        *("| run | x |", "| --- | --- |", "| a | 0.1235 |", "| b | - |", ""),
        *("| run | y |", "| --- | --- |", "| c | 1 |"),
    ]


def run(name: str, out, *options: object) -> None:
    assert main(["experiment", "run", name, "--out", str(out), *SIZES, *map(str, options)]) == 0


def test_ratings_of_runs(tmp_path, capsys):
    data = write_review_folder(tmp_path / "data")
    options = ("--data", data, "--batch-size", 8, "--seq-len", 6, "--mc-samples-epoch", 0)
    for name in ("bayesian-0.25", "standard"):
        run(f"sentiment-lstm-{name}", tmp_path / name, *options, "--epochs", 1)
    capsys.readouterr()
    arguments = ["experiment", "calibrate", "--data", str(data), "--coverage", "0.6"]
    names = [str(tmp_path / name) for name in ("bayesian-0.25", "standard")]
    assert main([*arguments, *names]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "intervals", "coverage, %", "mean width"]
    kinds = [line[1] for line in lines[2:]]
    calibrated = ["with noise", "conformal", "conformal, sure"]
    assert kinds == ["masks alone", *calibrated, *calibrated]
    assert float(lines[2][3]) < float(lines[3][3])  # noise makes them wider


def test_words_of_runs(tmp_path, text, capsys):
    options = ("--data", text, "--batch-size", 4, "--seq-len", 5)
    for name in ("bayesian", "standard"):
        run(f"ptb-small-{name}", tmp_path / name, *options, "--epochs", 2)
    capsys.readouterr()
    arguments = [
        "experiment",
        "calibrate",
        "--data",
        str(text),
        "--mc-samples",
        "3",
        "--tokens",
        "40",
    ]
    names = [str(tmp_path / name) for name in ("bayesian", "standard")]
    assert main([*arguments, *names]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["bayesian"] * 4 + ["standard"] * 2
    assert lines[0][1] == "dropout approximation" and lines[2][1] == "MC, 3 samples"
    for line in lines:
        assert float(line[2]) > 1 and 0 <= float(line[3]) <= 100


def test_mistakes(tmp_path, text, capsys):
    forecasts, text_run, damaged = (tmp_path / name for name in ("forecasts", "text", "damaged"))
    run_options = ["--series", "20", "--test-series", "9", "--epochs", "1", "--passes", "1"]
    name = "forecasting-static-1/cf-rnn"
    assert main(["experiment", "run", name, "--out", str(forecasts), *run_options]) == 0
    options = ("--data", text, "--batch-size", 4, "--seq-len", 5, "--epochs", 1)
    run("ptb-small-bayesian", text_run, *options)
    (text_run / "best.pt").unlink()
    damaged.mkdir()
    for content in ("{", "[]"):
        (damaged / "config.json").write_text(content)
        for action in ("calibrate", "averaging"):
            word = "JSON" if content == "{" else "a JSON object"
            _refused(capsys, [action, damaged], f"argument RUN: expected {word} in '{damaged}")
    for action in ("calibrate", "averaging"):
        message = f"expected a run of language_model or sentiment, got '{forecasts}' of forecasting"
        _refused(capsys, [action, forecasts], message)
        message = (
            f"argument RUN: expected a checkpoint at '{text_run / 'best.pt'}', got no such file"
        )
        _refused(capsys, [action, text_run], message)
        message = "argument RUN: expected the checkpoint of a "
        _refused(capsys, [action, forecasts / "last.pt"], message)
    for arguments, message in (
        ([text_run, "--coverage", "90"], "argument --coverage: expected a probability in [0.01"),
        ([text_run, "--tokens", "39"], "argument --tokens: expected a whole number from 40"),
        ([tmp_path / "none"], "argument RUN: expected a checkpoint at"),
        ([tmp_path], "argument RUN: expected the folder of a run, got"),
    ):
        _refused(capsys, ["calibrate", *arguments], message)


def _refused(capsys, arguments, message: str) -> None:
    capsys.readouterr()
    assert main(["experiment", *map(str, arguments)]) == 2
    assert message in capsys.readouterr().err


def test_data_that_are_too_few():
    settings = Settings(samples=0, coverage=0.9, tokens=100)
    texts = SimpleNamespace(valid=torch.zeros(40), test=torch.zeros(39))
    with pytest.raises(UserError, match="--data: expected at least 40 tokens of test text, got 39"):
        words(SimpleNamespace(data=texts), settings)
    pieces = SimpleNamespace(tokens=torch.zeros(8, 3), ratings=torch.zeros(8))
    task = SimpleNamespace(data=SimpleNamespace(test=pieces), config=SimpleNamespace(seed=1))
    with pytest.raises(UserError, match=r"--data: expected test pieces .* 5 or more, got 8 pieces"):
        ratings(task, settings)

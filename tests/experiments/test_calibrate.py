"""`experiment calibrate`: coverage of ratings, calibration error of the next word, mistakes."""

import pytest
import torch
from review_files import write_review_folder

from bayesrnn_cuda.__main__ import main
from bayesrnn_cuda.experiments.calibrate import (
    Scores,
    _fitted_temperature,
    calibration_error,
    table,
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
    arguments = ["experiment", "calibrate", "--data", str(text), "--mc-samples", "3"]
    names = [str(tmp_path / name) for name in ("bayesian", "standard")]
    assert main([*arguments, *names]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["bayesian"] * 4 + ["standard"] * 2
    assert lines[0][1] == "dropout approximation" and lines[2][1] == "MC, 3 samples"
    for line in lines:
        assert float(line[2]) > 1 and 0 <= float(line[3]) <= 100


def test_mistakes(tmp_path, text, capsys):
    forecasts = tmp_path / "forecasts"
    run_options = ["--series", "20", "--test-series", "9", "--epochs", "1", "--passes", "1"]
    name = "forecasting-static-1/cf-rnn"
    assert main(["experiment", "run", name, "--out", str(forecasts), *run_options]) == 0
    capsys.readouterr()
    for arguments, message in (
        ([str(forecasts)], "argument RUN: expected runs of sentiment or language_model, got"),
        (
            [str(forecasts), "--coverage", "90"],
            "argument --coverage: expected a probability in [0.01",
        ),
        ([str(forecasts), "--tokens", "0"], "argument --tokens: expected a whole number from 1"),
        ([str(tmp_path / "none")], "argument RUN: expected the folder of a run, got"),
    ):
        assert main(["experiment", "calibrate", "--data", str(text), *arguments]) == 2
        assert message in capsys.readouterr().err

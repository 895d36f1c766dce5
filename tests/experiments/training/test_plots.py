"""Figures: real PNG files with the curves they should have."""

import sys

import pytest

from bayesrnn_cuda.experiments.training import runs
from bayesrnn_cuda.experiments.training.plots import (
    comparison_figure,
    make_axes,
    run_figure,
    save_figure,
)

HISTORY = [
    {"epoch": 1, "train_perplexity": 90.0, "valid_perplexity": 80.0},
    {"epoch": 2, "train_perplexity": 50.0, "valid_perplexity": 60.0},
    {"epoch": 3, "train_perplexity": 30.0, "valid_perplexity": 65.0},
]
CURVES = {"valid_perplexity": "validation", "train_perplexity": "training"}


def test_comparison_has_one_curve_a_model():
    figure = comparison_figure({"standard": HISTORY, "naive": HISTORY[:2], "Bayesian": HISTORY})
    (axes,) = figure.axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert list(curves) == ["standard", "naive", "Bayesian"]
    assert curves["standard"] == [[1, 80], [2, 60], [3, 65]]
    assert curves["naive"] == [[1, 80], [2, 60]]
    assert [tuple(dot.get_offsets()[0]) for dot in axes.collections] == [(2, 60)] * 3
    assert axes.get_xlabel() and axes.get_ylabel() and axes.get_legend()


def test_run_has_training_and_validation():
    (axes,) = run_figure(HISTORY, CURVES, "perplexity").axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[80, 60, 65], [90, 50, 30]]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    assert [text.get_text() for text in axes.get_legend().texts] == ["validation", "training"]
    assert (axes.get_ylabel(), axes.get_yscale()) == ("perplexity", "log")


def test_curve_of_a_figure_that_some_epochs_lack():
    """Sentiment's MC error is not measured in every run; an RMSE has a linear axis."""
    history = [{"epoch": 1, "rmse": 0.2}, {"epoch": 2, "rmse": 0.1, "rmse_mc": 0.1}]
    (axes,) = run_figure(history, {"rmse": "test", "rmse_mc": "test, MC"}, "RMSE").axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 0.2], [2, 0.1]], [[2, 0.1]]]
    assert (axes.get_ylabel(), axes.get_yscale()) == ("RMSE", "linear")


def test_file_is_a_png(tmp_path):
    from matplotlib.image import imread

    assert save_figure(tmp_path / "a.png", run_figure, HISTORY, CURVES, "perplexity")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(tmp_path / "a.png")
    assert pixels.shape[0] > 300 and pixels.shape[1] > 500
    assert pixels.std() > 0.05


def test_picture_grows_with_its_title(tmp_path):
    """A title or a legend that is longer than the figure is wide is not cut off."""
    from matplotlib.image import imread

    for name, title in (("short", "a"), ("long", "a" * 200)):
        save_figure(tmp_path / name, lambda title: make_axes("x", "y", title=title)[0], title)
    short, long = (imread(tmp_path / name, format="png") for name in ("short", "long"))
    assert long.shape[1] > 2 * short.shape[1] > 1000
    assert long[:, [0, -1], :3].min() == 1  # white: nothing runs out of the picture


@pytest.fixture
def forget_notes():
    runs.note_once.cache_clear()


def test_without_matplotlib_a_note_and_no_file(tmp_path, monkeypatch, capsys, forget_notes):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not save_figure(tmp_path / "a.png", run_figure, HISTORY, CURVES, "perplexity")
    assert list(tmp_path.iterdir()) == []
    (note,) = capsys.readouterr().err.splitlines()
    assert "a.png was not drawn: matplotlib is missing" in note
    assert "bayesrnn_cuda[train]" in note


def test_without_tqdm_one_note_and_no_bar(monkeypatch, capsys, forget_notes):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for _ in range(2):
        with runs.progress_bar("epoch", total=10, unit="tokens") as bar:
            bar.update(5)
            bar.set_postfix_str("loss 1", refresh=False)
    (note,) = capsys.readouterr().err.splitlines()
    assert "tqdm is missing" in note

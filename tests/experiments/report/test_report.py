"""The report: which runs, the paper's numbers beside ours, what differs, figures, bad folders."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.experiments import PRESETS, SWEEPS, find
from bayesrnn_cuda.experiments.report.figures import (
    approximation_figure,
    calibration_figure,
    curves_figure,
    sweep_figure,
)
from bayesrnn_cuda.experiments.report.records import read_runs
from bayesrnn_cuda.experiments.report.report import _groups, write_report
from bayesrnn_cuda.experiments.training import runs as runs_module

LENGTHS = SWEEPS["sentiment-lstm-lengths"]


def write_run(path: Path, name: str | None, records: list[dict], **given) -> Path:
    """A run folder of the preset `name` (of `train` if it is None)."""
    preset = find(name or "ptb-small-naive")
    config = asdict(preset.config(given)) | {"experiment": preset.experiment}
    if name is None:
        config["preset"] = None
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def language_records(valid: list[float], final: bool = True) -> list[dict]:
    """One epoch a perplexity; test is 10 below the best one, MC 12 below."""
    records = [
        {
            "epoch": number,
            "train_perplexity": value - 20,
            "valid_perplexity": value,
            "valid_perplexity_authors": value - 1,
            "seconds": 2.0,
            "tokens_per_second": 1234,
        }
        for number, value in enumerate(valid, start=1)
    ]
    best = min(valid)
    test = {
        "final": True,
        "best_epoch": valid.index(best) + 1,
        "valid_perplexity": best,
        "test_perplexity": best - 10,
        "test_perplexity_mc": best - 12,
        "mc_samples": 10,
        "mean_entropy": 4.25,
        "mean_mutual_information": 0.125,
        "mean_standard_deviation": 0.0625,
    }
    return records + [test] * final


def sentiment_records(test: list[float], mc: bool = True, final: bool = True) -> list[dict]:
    """One epoch an error; MC is 0.01 below."""
    records = [
        {"epoch": number, "train_rmse": value - 0.05, "test_rmse": value}
        | ({"test_rmse_mc": value - 0.01} if mc else {})
        for number, value in enumerate(test, start=1)
    ]
    figures = {"final": True, "best_epoch": 1, "test_rmse": test[-1], "baseline_rmse": 0.1915}
    sampled = {
        "test_rmse_mc": test[-1] - 0.015,
        "mc_samples": 50,
        "mean_standard_deviation": 0.0725,
        "error_rank_correlation": 0.312,
        "calibration": [{"predicted": 0.05, "rmse": 0.1, "pieces": 5}] * 2,
    }
    return records + [figures | (sampled if mc else {})] * final


@pytest.fixture
def report(tmp_path):
    """Writes the report on the runs below tmp_path/runs and returns its lines."""

    def write() -> list[str]:
        path = write_report([tmp_path / "runs"], tmp_path / "report")
        assert path == tmp_path / "report" / "report.md"
        return path.read_text().splitlines()

    return write


def rows(lines: list[str], heading: str) -> list[dict[str, str]]:
    """The table below the heading, a dict a row; of equal headings the last one counts."""
    start = next(i for i, line in enumerate(lines) if line.lstrip("# ").startswith(heading))
    table = [line for line in lines[start:] if line.startswith("|") or line.startswith("#")]
    stop = next((i for i, line in enumerate(table[1:], 1) if line.startswith("#")), len(table))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:stop]]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def raw_row(lines: list[str], first: str) -> list[str]:
    (line,) = [line for line in lines if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_have_paper_ours_and_difference(report, tmp_path):
    write_run(tmp_path / "runs" / "large", "ptb-large-untied", language_records([90.0, 80.0, 85.0]))
    lines = report()
    assert raw_row(lines, "ptb-large-untied") == [
        "ptb-large-untied",
        "large",
        *("77.9", "79.00", "+1.10"),
        *("75.2", "70.00", "-5.20"),
        *("73.4", "68.00", "-5.40"),
        *("80.00", "85.00", ""),
    ]
    assert raw_row(lines, "ptb-medium-tied")[1:] == [
        "-",
        *("81.8", "-", "-", "79.7", "-", "-", "79.0", "-", "-", "-", "-", "not run"),
    ]
    assert "## NIPS table 1" in lines
    assert any("73.319" in line for line in lines)  # the note on the authors' fixed code
    assert not any(line.startswith("## Table 1") for line in lines)  # none of its rows was run


def test_what_differs_is_said(report, tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "a", "ptb-small-naive", language_records([150.0]), epochs=1, hidden=20, seed=7)
    write_run(runs / "b", "ptb-small-standard", language_records([290.0, 280.0], final=False))
    write_run(runs / "c", "ptb-small-bayesian", language_records([126.0]))
    write_run(runs / "d", None, language_records([120.0]))
    write_run(runs / "e", "ptb-small-bayesian-tied", [])
    lines = report()
    found = {row["run"]: row for row in rows(lines, "ptb-small:") + rows(lines, "Other:")}
    assert found["a"]["differs"] == (
        "reduced or changed: epochs 1 (preset 180), hidden 20 (preset 200)"
    )
    assert found["a"]["model"] == "naive*"
    assert found["b"]["differs"] == "unfinished: 2 of 180 epochs"
    assert (found["b"]["model"], found["b"]["valid"], found["b"]["test"]) == (
        *("standard*", "280.00", "-"),
    )
    assert (found["c"]["model"], found["c"]["differs"]) == ("bayesian", "")
    assert (found["d"]["model"], found["d"]["differs"]) == ("d*", "no preset")
    assert (found["e"]["valid"], found["e"]["epochs"]) == ("-", "0")
    assert any("5 runs, 3 finished, 1 with the paper's settings" in line for line in lines)
    assert raw_row(lines, "ptb-small-naive")[1] == "a*"


def test_sweep_takes_its_members_from_other_runs_with_their_values(report, tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "s" / "20", "sentiment-lstm-lengths/20", sentiment_records([0.2, 0.17]))
    write_run(runs / "b", "sentiment-lstm-bayesian", sentiment_records([0.2, 0.14]))
    lines = report()
    table = rows(lines, "sentiment-lstm-lengths")
    assert [(row["model"], row["run"]) for row in table] == [
        ("length = 20", "s/20"),
        ("length = 200", "b"),
    ]
    assert [row["test RMSE"] for row in table] == ["0.1700", "0.1400"]
    assert [row["test RMSE, MC"] for row in table] == ["0.1550", "0.1250"]
    assert [row["run"] for row in rows(lines, "sentiment-lstm:")] == ["b"]
    # made for none of these
    assert not any(line.startswith("## sentiment-lstm-p-u") for line in lines)
    assert not any(line.startswith("## Other") for line in lines)


def test_member_has_the_runs_made_for_it_alone(tmp_path):
    write_run(tmp_path / "s", "sentiment-lstm-lengths/200", sentiment_records([0.2]))
    write_run(tmp_path / "b", "sentiment-lstm-bayesian", sentiment_records([0.2]))
    groups = {
        group.key: [run.name for _, run in group.runs] for group in _groups(read_runs([tmp_path]))
    }
    assert groups == {"sentiment-lstm": ["b"], "sentiment-lstm-lengths": ["s"]}


def test_runs_of_one_member_keep_their_names(tmp_path):
    for name in ("x", "y"):
        write_run(tmp_path / name, "sentiment-gru-naive", sentiment_records([0.2], mc=False))
    (group,) = _groups(read_runs([tmp_path]))
    assert [label for label, _ in group.runs] == ["naive (x)", "naive (y)"]
    (group,) = _groups(read_runs([tmp_path / "x", tmp_path / "y", tmp_path / "x"]))
    assert [run.name for _, run in group.runs] == ["x", "y"]


def test_uncertainty_is_reported(report, tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "ptb", "ptb-small-bayesian", language_records([126.0]))
    write_run(runs / "film", "sentiment-lstm-bayesian", sentiment_records([0.14]))
    write_run(runs / "naive", "sentiment-lstm-naive", sentiment_records([0.14], mc=False))
    lines = report()
    start = lines.index("## Predictive uncertainty (MC dropout, test)")
    assert raw_row(lines[start:], "ptb") == ["ptb", "10", "4.250", "0.1250", "0.0625"]
    assert raw_row(lines[start:], "film") == ["film", "50", "0.0725", "0.312"]
    assert not any("naive" in line for line in lines[start:])


def test_figures_are_files_that_the_report_shows(report, tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "l" / "50", "sentiment-lstm-lengths/50", sentiment_records([0.2, 0.15]))
    write_run(runs / "b", "sentiment-lstm-bayesian", sentiment_records([0.2, 0.14]))
    write_run(runs / "p", "ptb-small-naive", language_records([150.0]))
    shown = {line.split("(")[1].rstrip(")") for line in report() if line.startswith("![")}
    assert shown == {
        "ptb-small-curves.png",
        "sentiment-lstm-curves.png",
        "sentiment-lstm-mc.png",
        "sentiment-lstm-calibration.png",
        "sentiment-lstm-lengths-curves.png",
        "sentiment-lstm-lengths-sweep.png",
    }
    for name in shown:
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_what_a_record_lacks(report, tmp_path):
    """A figure that is null is no best one; a setting that is not there is the preset's."""
    records = language_records([150.0, 140.0], final=False)
    records[1]["valid_perplexity"] = None
    folder = write_run(tmp_path / "runs" / "line\nbreak", "sentiment-gru-lengths/50", [])
    config = json.loads((folder / "config.json").read_text())
    del config["seq_len"]
    (folder / "config.json").write_text(json.dumps(config))
    write_run(tmp_path / "runs" / "p", "ptb-small-naive", records)
    lines = report()
    assert any(line.startswith("| length = 50* | line break |") for line in lines)
    assert "150.00" in next(line for line in lines if line.startswith("| naive* | p |"))


def test_without_matplotlib_the_tables_and_a_note(report, tmp_path, monkeypatch, capsys):
    runs_module.note_once.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_run(tmp_path / "runs" / "p", "ptb-small-naive", language_records([150.0]))
    lines = report()
    assert "Not drawn (the command said why): ptb-small-curves.png." in lines
    assert not any(line.startswith("![") for line in lines)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.md"]
    assert "matplotlib is missing" in capsys.readouterr().err


def lines_of(axes) -> dict:
    """Label -> points, of the lines with points."""
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines if len(line._x)}


@pytest.fixture
def labelled(tmp_path):
    write_run(tmp_path / "a", "sentiment-lstm-lengths/400", sentiment_records([0.3, 0.2]))
    write_run(tmp_path / "b", "sentiment-lstm-lengths/20", sentiment_records([0.4, 0.3]))
    write_run(tmp_path / "c", "sentiment-lstm-naive", sentiment_records([0.5], mc=False), epochs=1)
    return [(run.name, run) for run in read_runs([tmp_path])]


def test_curves_are_test_and_training(labelled):
    (axes,) = curves_figure("title", labelled).axes
    curves = [line for line in axes.lines if len(line.get_xdata())]
    assert [line.get_linestyle() for line in curves] == ["-", "--"] * 3
    assert curves[0].get_xydata().tolist() == [[1, 0.3], [2, 0.2]]
    assert curves[1].get_ydata().tolist() == pytest.approx([0.25, 0.15])
    assert len({line.get_color() for line in curves[::2]}) == 3
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[:5] == ["a", "b", "c", "test", "training, with its dropout"]
    assert legend[5].startswith("* reduced")  # c is
    assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title() == "title"


def test_perplexity_that_overflows_is_left_out(tmp_path):
    records = language_records([150.0, float("inf"), 140.0])
    write_run(tmp_path / "a", "ptb-small-naive", records)
    (axes,) = curves_figure("title", [("a", read_runs([tmp_path])[0])]).axes
    assert axes.lines[0].get_xdata().tolist() == [1, 3]
    assert axes.get_yscale() == "log"


def test_approximation_beside_mc(labelled):
    (axes,) = approximation_figure("title", labelled).axes
    curves = [line for line in axes.lines if len(line.get_xdata())]
    values = [line.get_ydata().tolist() for line in curves]
    assert values == [
        [0.3, 0.2],
        pytest.approx([0.29, 0.19]),
        [0.4, 0.3],
        pytest.approx([0.39, 0.29]),
    ]


def test_sweep_is_in_the_order_of_its_values(labelled):
    (axes,) = sweep_figure("title", LENGTHS, labelled[:2]).axes
    found = lines_of(axes)
    assert found["dropout approximation"] == [[20, 0.3], [400, 0.2]]
    assert [y for _, y in found["MC dropout"]] == pytest.approx([0.285, 0.185])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["20", "400"]


def test_sweep_has_a_line_for_each_series(tmp_path):
    sweep = SWEEPS["sentiment-gru-p-u"]
    for number, (label, preset) in enumerate(sweep.members.items(), start=1):
        write_run(tmp_path / label, preset.name, sentiment_records([number / 10], mc=False))
    runs = [(run.name, run) for run in read_runs([tmp_path])]
    (axes,) = sweep_figure("title", sweep, runs).axes
    assert lines_of(axes) == {
        "p_E = 0, dropout approximation": [[0, 0.1], [0.25, 0.2], [0.5, 0.3]],
        "p_E = 0.5, dropout approximation": [[0, 0.4], [0.25, 0.5], [0.5, 0.6]],
    }


def test_calibration_has_the_diagonal(labelled):
    (axes,) = calibration_figure("title", labelled).axes
    found = lines_of(axes)
    assert found["a"] == [[0.05, 0.1], [0.05, 0.1]] and "c" not in found
    (x, y), (x_end, y_end) = found["error as predicted"]
    assert (x, y) == (0, 0) and x_end == y_end > 0.1
    assert axes.get_xlim() == axes.get_ylim()


def final(**figures) -> str:
    """The last line of a run that had one epoch."""
    return json.dumps(language_records([150.0])[-1] | figures)


GOOD = json.dumps(asdict(PRESETS["ptb-small-naive"].config()) | {"experiment": "language_model"})


@pytest.mark.parametrize(
    ("config", "metrics", "expected"),
    [
        ("{", "", "expected JSON in '.*config.json', got .* in line 1"),
        ("[]", "", "expected a JSON object in '.*config.json', got another value in line 1"),
        ('{"epochs": 1}', "", "expected one of the experiments language_model, .* got None"),
        ('{"experiment": "sentiment"}', "", "expected the number of epochs in .*, got None"),
        (GOOD, '{"epoch": 1}\n{"epo', "expected JSON in '.*metrics.jsonl', got .* in line 2"),
        (GOOD, '{"epoch": 2}', "expected the record of epoch 1 in line 1 of .*, got that of 2"),
        (GOOD, '{"epoch": 1, "lr": "x"}', "expected a number for lr in line 1 of .*, got 'x'"),
        (GOOD, "3", "expected a JSON object in '.*metrics.jsonl', got another value in line 1"),
        (GOOD, final(test_perplexity="x"), "expected a number for test_perplexity in .*, got 'x'"),
        (GOOD, final(mc_samples=1.5), "expected a whole number for mc_samples in .*, got 1.5"),
        (GOOD, final(best_epoch=None), "expected a whole number for best_epoch in .*, got None"),
    ],
)
def test_malformed_runs(tmp_path, config, metrics, expected):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "metrics.jsonl").write_text(metrics)
    with pytest.raises(UserError, match=f"^argument RUNS: {expected}") as caught:
        write_report([tmp_path], tmp_path / "report")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_no_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")  # of something else: no metrics.jsonl beside it
    with pytest.raises(UserError, match=r"expected a run with config\.json and metrics\.jsonl in"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match=r"expected a folder with runs, got '.*none'"):
        read_runs([tmp_path / "none"])

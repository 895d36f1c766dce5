"""`bayesrnn experiment` as its users meet it: list, run, resume, report, mistakes."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from review_files import write_review_folder

from bayesrnn_cuda.__main__ import main
from bayesrnn_cuda.experiments.experiments import PRESETS, SWEEPS
from bayesrnn_cuda.experiments.training.trainer import Trainer

SIZES = [*("--embedding", "5"), *("--hidden", "6"), *("--epochs", "2")]
SIZES += [*("--device", "cpu"), *("--mc-samples", "3")]
TIMES = ("seconds", "tokens_per_second", "pieces_per_second")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    return write_review_folder(tmp_path_factory.mktemp("reviews") / "data")


@pytest.fixture
def ptb(text) -> list[str]:
    """Options that make a preset of the language model tiny."""
    return ["--data", str(text), *SIZES, "--batch-size", "4", "--seq-len", "5"]


@pytest.fixture
def sentiment(reviews) -> list[str]:
    """Likewise of the sentiment analysis."""
    return ["--data", str(reviews), *SIZES, "--batch-size", "8", "--mc-samples-epoch", "2"]


def experiment(*arguments: str | Path) -> int:
    return main(["experiment", *map(str, arguments)])


def mistake(capsys, *arguments: str | Path) -> str:
    """Runs a command line that must fail: exit code 2 and one line, which is returned."""
    try:
        code = experiment(*arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    (line,) = captured.err.splitlines()
    assert line.startswith("bayesrnn: error: ")
    return line.removeprefix("bayesrnn: error: ")


def metrics(path: Path) -> list[dict]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def test_list_has_every_name_and_the_papers_numbers(capsys):
    assert experiment("list") == 0
    out = capsys.readouterr().out
    first = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert first == ["PRESET", *PRESETS, "SWEEP", *SWEEPS]
    assert "paper: valid, as the authors count 77.9; test 75.2; test, MC 73.4" in out
    assert "main_new_dropout_SOTA_v3.lua" in out
    assert "members: 20, 50, 200, 400" in out


def test_list_of_a_pattern(capsys):
    assert experiment("list", "FIG. 5") == 0
    out = capsys.readouterr().out
    assert "sentiment-lstm-lengths" in out and "ptb" not in out and "PRESET" not in out
    words = "argument PATTERN: expected text in a name, a summary or a source"
    assert mistake(capsys, "list", "xyzzy") == f"{words}, got 'xyzzy'"
    line = mistake(capsys, "list", "forcasting")
    assert line.startswith(f"{words} (closest: forecasting-") and line.endswith(
        ", got 'forcasting'"
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["report", "--help"]])
def test_help(capsys, arguments):
    try:
        assert experiment(*arguments) == 0
    except SystemExit as stop:
        assert stop.code == 0
    assert "usage: bayesrnn experiment" in capsys.readouterr().out


def test_help_of_a_preset_has_its_values(capsys):
    with pytest.raises(SystemExit) as stop:
        experiment("run", "ptb-large-untied", "--help")
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "usage: bayesrnn experiment run ptb-large-untied [OPTION ...]",
        "hidden units a layer (preset: 1500)",
        "(preset: 0.04)",
        "run folder, new or empty (default: runs/ptb",
        "--max-minutes",
    ):
        assert words in out
    assert "--pieces" not in out and "--preset" not in out
    with pytest.raises(SystemExit):
        experiment("run", "sentiment-gru-lengths", "--help")
    out = " ".join(capsys.readouterr().out.split())
    assert "--pieces" in out and "(preset: varied)" in out and "(preset: gru)" in out


@pytest.mark.parametrize("name", [*PRESETS, *SWEEPS])
def test_help_of_every_name(capsys, name):
    """Members of a sweep of forecasts set different fields."""
    names = [f"{name}/{label}" for label in SWEEPS[name].members] if name in SWEEPS else []
    for one in (name, *names):
        with pytest.raises(SystemExit) as stop:
            experiment("run", one, "--help")
        assert stop.value.code == 0
        assert f"experiment run {one} [OPTION ...]" in " ".join(capsys.readouterr().out.split())


TINY_FORECASTS = ["--series", "20", "--test-series", "9", "--hidden", "2", "--epochs", "1"]
TINY_FORECASTS += ["--passes", "1", "--mc-samples", "2", "--mc-samples-epoch", "0"]


def test_mistyped_words_are_answered_with_the_closest(capsys):
    assert mistake(capsys, "lst").endswith(" (closest: list)")
    assert "closest" not in mistake(capsys, "xyzzy")
    with pytest.raises(SystemExit):
        main(["trian"])
    assert capsys.readouterr().err.endswith(" (closest: train)\n")


def test_run_of_forecasts(capsys, tmp_path):
    sweep = "forecasting-static-1"
    with pytest.raises(SystemExit):
        experiment("run", f"{sweep}/cf-rnn", f"{sweep}/mq-rnn", "--help")  # a queue of two
    out = " ".join(capsys.readouterr().out.split())
    assert "(preset: varied)" in out
    with pytest.raises(SystemExit):
        experiment("run", sweep, "--help")
    out = " ".join(capsys.readouterr().out.split())
    for words in ("training series, of one epoch (default: 50)", "(preset: static)"):
        assert words in out
    assert out.count("(preset: varied)") == 4  # method, dropout, epochs, drawn_batches
    assert experiment("run", sweep, *TINY_FORECASTS, "--out", tmp_path / "sweep") == 0
    assert "\nwidth: infinite\n" in capsys.readouterr().out  # of so few held-out series
    members = SWEEPS[sweep].members
    for label in members:
        assert metrics(tmp_path / "sweep" / label)[-1]["final"]


def test_run_of_a_preset(capsys, monkeypatch, ptb, text, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert experiment("run", "ptb-small-bayesian", *ptb) == 0
    out = capsys.readouterr().out
    folder = Path("runs") / "ptb-small-bayesian"
    assert "reduced or changed: epochs 2 (preset 180), embedding 5 (preset 200)" in out
    assert "note: The authors drop tokens here" in out
    config = json.loads((folder / "config.json").read_text())
    assert config["experiment"] == "language_model" and config["preset"] == "ptb-small-bayesian"
    assert config["data"] == str(text) and config["hidden"] == 6
    assert (config["weight_decay"], config["state"], config["lr"]) == (1e-5, "zero", 1)
    *history, final = metrics(folder)
    best = history[final["best_epoch"] - 1]
    for words in (
        f"valid perplexity authors: {best['valid_perplexity_authors']:.5g} (paper 126)",
        f"test perplexity: {final['test_perplexity']:.5g} (paper 115)",
        f"test perplexity mc: {final['test_perplexity_mc']:.5g}\n",
    ):
        assert words in out
    assert final["mc_samples"] == 3
    before = (folder / "metrics.jsonl").read_bytes()
    assert mistake(capsys, "run", "ptb-small-bayesian", *ptb).startswith("argument --out: expected")
    line = mistake(capsys, "run", "ptb-small-naive", "--resume", "--out", folder)
    assert (
        line == f"argument NAME: expected ptb-small-bayesian as in '{folder}', got ptb-small-naive"
    )
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert experiment("run", "ptb-small-bayesian", "--resume", "--epochs", "3") == 0
    assert [record["epoch"] for record in metrics(folder)[:-1]] == [1, 2, 3]


def test_member_of_a_sweep_is_a_preset_too(capsys, sentiment, tmp_path):
    name, out = "sentiment-lstm-lengths/20", tmp_path / "run"
    assert experiment("run", name, *sentiment, "--out", out) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["experiment"], config["preset"], config["seq_len"]) == ("sentiment", name, 20)
    assert "test_rmse_mc" in metrics(out)[-1]


@pytest.fixture(scope="module")
def whole_sweep(reviews, tmp_path_factory) -> Path:
    """The sweep of `SIZES`, uninterrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    options = ["--data", str(reviews), *SIZES, "--batch-size", "8", "--mc-samples-epoch", "2"]
    assert experiment("run", "sentiment-lstm", *options, "--out", out) == 0
    return out


def test_sweep_has_a_folder_for_each_member(whole_sweep):
    members = SWEEPS["sentiment-lstm"].members
    assert sorted(path.name for path in whole_sweep.iterdir()) == sorted([*members, "sweep.json"])
    for label, preset in members.items():
        config = json.loads((whole_sweep / label / "config.json").read_text())
        assert config["preset"] == preset.name and config["hidden"] == 6
        assert config["dropout_kind"] == preset.values["dropout_kind"]
        assert metrics(whole_sweep / label)[-1]["final"]


def test_sweep_goes_on_with_what_is_not_finished(
    capsys, monkeypatch, whole_sweep, sentiment, tmp_path
):
    """Ctrl-C in the second member; resumed without options, it is as if never stopped."""
    out, step, updates = tmp_path / "sweep", Trainer.step, []

    def stopped_at_11(trainer):  # four updates an epoch, two epochs a member
        updates.append(step(trainer))
        if len(updates) == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return updates[-1]

    command = ["run", "sentiment-lstm", "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped_at_11)
        assert experiment(*command, *sentiment) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "stopped by SIGINT in epoch 1, after update 3 of 4" in line
    assert line.endswith(f"experiment run sentiment-lstm --resume --out {out}")
    assert sorted(path.name for path in out.iterdir()) == ["naive", "standard", "sweep.json"]

    before = (out / "sweep.json").read_bytes()
    line = mistake(capsys, *command, "--resume", "--hidden", "7")
    assert line == "argument --hidden: expected 6 as in the run to resume, got 7"
    assert (out / "sweep.json").read_bytes() == before

    stamp = (out / "standard" / "last.pt").stat().st_mtime_ns
    assert experiment(*command, "--resume") == 0
    assert (out / "standard" / "last.pt").stat().st_mtime_ns == stamp
    for label in SWEEPS["sentiment-lstm"].members:
        assert metrics(out / label) == metrics(whole_sweep / label)


def test_finished_sweep_is_trained_on_for_more_epochs(capsys, sentiment, tmp_path):
    command = ["run", "sentiment-gru-p-e-50", "--out", tmp_path / "sweep"]
    assert experiment(*command, *sentiment, "--epochs", "1", "--mc-samples", "0") == 0
    assert "infinite" not in capsys.readouterr().out  # no figure of MC dropout is another thing
    assert experiment(*command, "--resume", "--max-minutes", "90") == 0
    assert capsys.readouterr().out.count("finished before") == 3
    assert experiment(*command, "--resume", "--epochs", "2") == 0
    assert "finished before" not in capsys.readouterr().out
    for label in ("0", "0.25", "0.5"):
        assert len(metrics(tmp_path / "sweep" / label)) == 3
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["given"]["epochs"] == 2


def test_max_minutes_bounds_the_whole_sweep(monkeypatch, sentiment, tmp_path):
    run, deadlines = Trainer.run, []

    def spy(trainer, deadline=None):
        deadlines.append(deadline)
        return run(trainer, deadline)

    monkeypatch.setattr(Trainer, "run", spy)
    options = [*sentiment, "--epochs", "1", "--mc-samples", "0"]
    out = ["--out", tmp_path / "sweep"]
    assert experiment("run", "sentiment-gru-p-e-50", *options, "--max-minutes", "90", *out) == 0
    assert len(deadlines) == 3 and len(set(deadlines)) == 1
    assert 0 < deadlines[0] - time.monotonic() < 90 * 60


def test_report_of_real_runs(capsys, ptb, whole_sweep, tmp_path):
    run, out = tmp_path / "ptb", tmp_path / "report"
    assert experiment("run", "ptb-small-bayesian", *ptb, "--out", run) == 0
    capsys.readouterr()
    assert experiment("report", run, whole_sweep, "--out", out) == 0
    assert capsys.readouterr().out == f"{out / 'report.md'}\n"
    lines = (out / "report.md").read_text().splitlines()
    final = metrics(run)[-1]
    (row,) = [line for line in lines if line.startswith("| ptb-small-bayesian |")]
    difference = final["test_perplexity"] - 115
    assert f"| 115 | {final['test_perplexity']:.2f} | {difference:+.2f} |" in row
    assert f"{final['test_perplexity_mc']:.2f}" in row and "epochs 2 (preset 180)" in row
    (uncertainty,) = [line for line in lines if line.startswith("| ptb* | 3 |")]
    assert f"{final['mean_entropy']:.3f}" in uncertainty
    assert "| whole/bayesian* | 3 |" in "\n".join(lines)
    for name in ("ptb-small-curves.png", "sentiment-lstm-mc.png", "sentiment-lstm-calibration.png"):
        assert (out / name).is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lst"], "argument ACTION: invalid choice: 'lst'"),
        (["run"], "the following arguments are required: NAME"),
        (["run", "--data", "x"], "argument NAME: expected a preset or a sweep before the options"),
        (["run", "ptb-large-untid"], "argument NAME: expected a preset or a sweep (closest: ptb-l"),
        (["run", "ptb-large-tied"], "argument --data: expected the Penn Treebank's folder"),
        (["run", "sentiment-gru"], "argument --data: expected the folder of the Cornell scale"),
        (["run", "ptb-large-tied", "--data", "no"], "argument --data: expected a folder with tra"),
        (["run", "ptb-large-tied", "--hiden", "3"], "unrecognized arguments: --hiden 3"),
        (["run", "ptb-large-tied", "--hidd", "3"], "unrecognized arguments: --hidd 3"),
        (["run", "ptb-large-tied", "--pieces", "3"], "unrecognized arguments: --pieces 3"),
        (["run", "ptb-large-tied", "--preset", "x"], "unrecognized arguments: --preset x"),
        (["run", "ptb-large-tied", "x"], "argument NAME: expected a preset or a sweep ('bayes"),
        (["run", "ptb-large-tied", "--data", "x", "--lr", "a"], "argument --lr: expected a number"),
        (
            ["run", "ptb-large-tied", "--data", "x", "--lr", "-1"],
            "argument --lr: expected a number",
        ),
        (["run", "ptb-large-tied", "--resume"], "argument --resume: expected a run in 'runs"),
        (["run", "sentiment-gru", "--resume"], "argument --resume: expected sweep.json of an exp"),
        (
            ["run", "sentiment-gru-lengths", "--data", "x", "--seq-len", "9"],
            "argument --seq-len: expected none, 'sentiment-gru-lengths' varies it",
        ),
        (
            ["run", "sentiment-gru-dropout", "--data", "x", "--embedding-dropout", "0.1"],
            "argument --embedding-dropout: expected none",
        ),
        *(
            (
                ["run", *names, option, value],
                f"argument {option}: expected none, '{names[0]}' {verb}",
            )
            for names, option, value, verb in (
                (["forecasting-static-1"], "--method", "naive", "varies it"),
                (["forecasting-static-1", "--jobs", "1"], "--method", "naive", "varies it"),
                (["forecasting-static-1"], "--dropout", "0.1", "varies it"),
                (["forecasting-static-1"], "--noise", "time", "fixes it"),
                (["forecasting-time-2"], "--level", "1", "fixes it"),
                (["forecasting-n-100"], "--series", "20", "fixes it"),
                (["ptb-small", "--data", "x"], "--dropout-kind", "naive", "varies it"),
            )
        ),
        (["run", "sentiment-gru", "--data", "x", "--hidden", "0"], "argument --hidden: expected a"),
        (["report", "x"], "the following arguments are required: --out"),
        (["report", "x", "--out", "y"], "argument RUNS: expected a folder with runs, got 'x'"),
    ],
)
def test_mistakes(capsys, monkeypatch, tmp_path, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert mistake(capsys, *arguments).startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_run_that_ended_before_its_first_checkpoint_begins_anew(capsys, ptb, tmp_path):
    """As a full disk leaves it. Records without a checkpoint are somebody's results, and stay."""
    out = tmp_path / "a folder"
    out.mkdir()
    (out / "config.json").write_text('{"experiment": "language_model"}')
    (out / "metrics.jsonl").write_text("")
    (out / "last.pt.tmp").write_text("half")
    line = mistake(capsys, "run", "ptb-small-naive", "--resume", "--out", out)
    assert line == f"argument --resume: expected a run in '{out}', got no last.pt there"
    assert experiment("run", "ptb-small-naive", *ptb, "--max-minutes", "0.0001", "--out", out) == 3
    assert f"experiment run ptb-small-naive --resume --out '{out}'" in capsys.readouterr().err
    for file, text in (("metrics.jsonl", '{"epoch": 1}\n'), ("config.json", '{"other": "tool"}')):
        (out / "last.pt").unlink(missing_ok=True)
        (out / "metrics.jsonl").write_text("")
        (out / file).write_text(text)
        line = mistake(capsys, "run", "ptb-small-naive", *ptb, "--out", out)
        assert line == (
            f"argument --out: expected a new or empty folder, got '{out}' with files in it"
        )


def test_folders_of_something_else(capsys, whole_sweep, ptb, tmp_path):
    line = mistake(capsys, "run", "sentiment-gru", "--resume", "--out", whole_sweep)
    assert (
        line == f"argument NAME: expected sentiment-lstm as in '{whole_sweep}', got sentiment-gru"
    )
    line = mistake(capsys, "run", "sentiment-gru", "--data", "x", "--out", whole_sweep)
    assert line.startswith("argument --out: expected a new or empty folder")
    plain = tmp_path / "plain"
    assert main(["train", *ptb, "--out", str(plain)]) == 0
    line = mistake(capsys, "run", "ptb-small-naive", "--resume", "--out", plain)
    assert line.startswith("argument NAME: expected no preset, as 'train' leaves it, as in")
    (plain / "config.json").write_text("{")
    line = mistake(capsys, "run", "ptb-small-naive", "--resume", "--out", plain)
    assert line.startswith(f"argument --resume: expected JSON in '{plain / 'config.json'}', got")

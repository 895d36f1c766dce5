"""The command line as its users meet it: help, work, mistakes, signals."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bayesrnn_cuda.__main__ import main
from bayesrnn_cuda.experiments.language.model import LanguageModelConfig
from bayesrnn_cuda.experiments.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "tokens_per_second")
LONG = ("--epochs", "25")


def tiny_options(text: Path) -> list[str]:
    """The small configuration as a command line."""
    sizes = "--embedding 6 --hidden 7 --layers 2 --seq-len 5 --batch-size 4 --epochs 2"
    rest = "--optimizer adam --lr 0.01 --mc-samples 3 --device cpu"
    return [*sizes.split(), *rest.split(), "--data", str(text)]


@pytest.fixture
def tiny_arguments(text: Path) -> list[str]:
    return tiny_options(text)


def mistake(capsys, arguments: list[str]) -> str:
    """Runs a command line that must fail: exit code 2 and one line, which is returned."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    (line,) = captured.err.splitlines()
    assert line.startswith("bayesrnn: error: ")
    return line.removeprefix("bayesrnn: error: ")


@pytest.fixture(scope="module")
def run_folder(text, tmp_path_factory) -> Path:
    """A finished small run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *tiny_options(text), "--out", str(path)]) == 0
    return path


def test_without_a_verb_prints_help(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("train", "sample", "plan", "info"))


def test_output_that_nobody_reads():
    command = f"'{sys.executable}' -m bayesrnn_cuda experiment list | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("PRESET") and done.stderr == ""


@pytest.mark.parametrize("verb", ["train", "sample", "plan", "info"])
def test_help_of_every_verb(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"usage: bayesrnn {verb}" in capsys.readouterr().out


def test_every_field_is_an_option_with_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    for field in dataclasses.fields(LanguageModelConfig):
        # a preset is chosen by its name, not by an option
        assert ("--" + field.name.replace("_", "-") in out) == (field.name != "preset")
        assert field.metadata["help"]


def test_options_reach_the_configuration(capsys, text, tiny_arguments, tmp_path):
    out = tmp_path / "run"
    changed = ["--cell", "gru", "--tie-gates", "--recurrent-dropout", "0.1", "--patience", "3"]
    assert main(["train", *tiny_arguments, *changed, "--epochs", "1", "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["cell"] == "gru" and config["tie_gates"] is True
    assert config["recurrent_dropout"] == 0.1 and config["patience"] == 3
    assert config["data"] == str(text)
    printed = capsys.readouterr().out
    assert "360 train, 90 valid, 72 test tokens" in printed
    assert "MC dropout with 3 samples" in printed
    assert f"run folder: {out}" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "argument VERB: invalid choice: 'trian'"),
        (["train", "--hiden", "3"], "unrecognized arguments: --hiden 3 (closest: --hidden)"),
        (["train", "--hidd", "3"], "unrecognized arguments: --hidd 3"),
        (["train", "--hidden", "many"], "argument --hidden: expected a whole number, got 'many'"),
        (["train", "--lr", "fast"], "argument --lr: expected a number, got 'fast'"),
        (["train", "--lr"], "argument --lr: expected one argument"),
        (["train", "--hidden", "-3"], "argument --hidden: expected a whole number from 1 to"),
        (["train", "--cell", "rnn"], "argument --cell: expected one of lstm, gru, got 'rnn'"),
        (["train", "--input-dropout", "1.5"], "argument --input-dropout: expected a probability"),
        (["train", "--data", "nowhere"], "argument --data: expected a folder"),
        (["train", "--device", "gpu"], "argument --device: expected cpu, cuda or cuda:N"),
        (
            ["train", "--batch-size", "99999"],
            "arguments --batch-size, --seq-len: expected at least",
        ),
        (["train", "--max-minutes", "0"], "argument --max-minutes: expected a number above 0"),
        (["train", "--precision", "half"], "argument --precision: expected one of float32, bf"),
        (["train", "--resume"], "argument --resume: expected --out DIR"),
        (
            ["train", "--resume", "--out", "nowhere"],
            "argument --resume: expected a run in 'nowhere'",
        ),
        (
            ["train", "--compare", "--resume", "--out", "x"],
            "argument --resume: expected a comparison",
        ),
        (["train", "--compare", "--dropout-kind", "none"], "argument --compare: expected no"),
        (["sample"], "the following arguments are required: --checkpoint"),
        (
            ["sample", "--checkpoint", "no.pt"],
            "argument --checkpoint: expected a checkpoint at 'no.pt'",
        ),
        (["sample", "--checkpoint", "x", "--length", "0"], "argument --length: expected a whole"),
        (["sample", "--checkpoint", "x", "--temperature", "0"], "argument --temperature: expected"),
        (["sample", "--checkpoint", "x", "--top-k", "-1"], "argument --top-k: expected a whole"),
        (["plan", "mlp", "1", "1", "1", "1"], "cell: expected one of lstm, gru, rnn, got 'mlp'"),
        (["plan", "lstm", "1", "1", "1", "1", "--device", "foo"], "device: expected cpu, cuda,"),
        (["plan", "lstm", "0", "1", "1", "1"], "T: expected an integer of at least 1, got 0"),
        (
            ["plan", "lstm", "1", "1", "1", "1", "--dtype", "int"],
            "argument --dtype: expected one of",
        ),
    ],
)
def test_mistakes(capsys, monkeypatch, tmp_path, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert mistake(capsys, arguments).startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(capsys, tiny_arguments, tmp_path):
    (tmp_path / "file").write_text("")
    line = mistake(capsys, ["train", *tiny_arguments, "--out", str(tmp_path / "file" / "run")])
    assert line.startswith("argument --out: expected a folder that can be made, got '")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory\nat x")],
)
def test_out_of_memory(capsys, monkeypatch, tiny_arguments, tmp_path, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(Trainer, "start", fail)
    line = mistake(capsys, ["train", *tiny_arguments, "--out", str(tmp_path / "run")])
    assert line.startswith("out of memory, lower the sizes: ")


def test_other_errors_of_the_program_keep_their_traceback(monkeypatch, tiny_arguments, tmp_path):
    monkeypatch.setattr(Trainer, "start", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", *tiny_arguments, "--out", str(tmp_path / "run")])


def test_diverged_run(capsys, monkeypatch, tiny_arguments, tmp_path):
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda trainer: step(trainer) * torch.nan)
    assert main(["train", *tiny_arguments, "--out", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bayesrnn: error: the loss is not finite in epoch 1")


def test_used_folder(capsys, run_folder, tiny_arguments, folder_bytes):
    before = folder_bytes(run_folder)
    line = mistake(capsys, ["train", *tiny_arguments, "--out", str(run_folder)])
    assert line.startswith("argument --out: expected a new or empty folder")
    line = mistake(capsys, ["train", "--hidden", "9", "--resume", "--out", str(run_folder)])
    assert line == "argument --hidden: expected 7 as in the run to resume, got 9"
    assert folder_bytes(run_folder) == before


def test_damaged_and_foreign_checkpoints(capsys, run_folder, tmp_path):
    for name in ("sample.pt", "last.pt"):
        (tmp_path / name).write_bytes((run_folder / "last.pt").read_bytes()[:5000])
    assert "damaged" in mistake(capsys, ["sample", "--checkpoint", str(tmp_path / "sample.pt")])
    line = mistake(capsys, ["train", "--resume", "--out", str(tmp_path)])
    assert line.startswith("argument --resume: expected a checkpoint") and "damaged" in line
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    line = mistake(capsys, ["sample", "--checkpoint", str(tmp_path / "foreign.pt")])
    assert "got another program's file" in line


def test_sample_prints_text(capsys, run_folder):
    arguments = ["sample", "--checkpoint", str(run_folder), "--length", "12", "--prompt", "the dog"]
    assert main(arguments) == 0
    plain = capsys.readouterr().out
    assert plain.startswith("the dog") and len(plain.split()) <= 14
    assert main([*arguments, "--mc", "--seed", "3"]) == 0
    assert capsys.readouterr().out != plain


def test_mc_sample_of_a_model_without_masks(capsys, tiny_arguments, tmp_path):
    out = str(tmp_path / "run")
    assert main(["train", *tiny_arguments, "--dropout-kind", "naive", "--out", out]) == 0
    capsys.readouterr()
    line = mistake(capsys, ["sample", "--checkpoint", out, "--mc"])
    assert line.startswith("argument --mc: expected a model with Bayesian dropout")


def test_plan_and_info(capsys):
    assert main(["plan", "gru", "35", "20", "200", "200"]) == 0
    assert "gru T=35 B=20 I=200 H=200" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "torch: " + torch.__version__ in capsys.readouterr().out


def test_comparison(capsys, tiny_arguments, tmp_path):
    out = tmp_path / "three"
    command = ["train", "--compare", "--out", str(out)]
    assert main([*command, *tiny_arguments]) == 0
    printed = capsys.readouterr().out
    table = printed[printed.index("\nperplexity ") + 1 :].splitlines()
    assert [row.split()[0] for row in table[1:4]] == ["standard", "naive", "Bayesian"]
    figures = json.loads((out / "comparison.json").read_text())
    assert list(figures) == ["none", "naive", "bayesian"]
    assert f"{figures['bayesian']['test_perplexity_mc']:.2f}" in table[3]
    assert figures["none"]["test_perplexity_mc"] is None and table[1].endswith("-")
    assert f"learning curves: {out / 'curves.png'}" in printed
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    for folder, kind in (("standard", "none"), ("naive", "naive"), ("bayesian", "bayesian")):
        config = json.loads((out / folder / "config.json").read_text())
        assert config["dropout_kind"] == kind and config["hidden"] == 7

    (out / "comparison.json").unlink()
    shutil.rmtree(out / "bayesian")
    assert main([*command, "--resume"]) == 0
    assert json.loads((out / "comparison.json").read_text()) == figures


def metrics(path: Path) -> list[dict]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


@pytest.fixture(scope="module")
def whole_run(text, tmp_path_factory) -> Path:
    """The run of `LONG`, uninterrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", *tiny_options(text), *LONG, "--out", str(path)]) == 0
    return path


def test_time_limit(capsys, text, run_folder, tmp_path):
    """Status 3 and how to continue; then the same run as without a limit."""
    out = str(tmp_path / "run")
    assert main(["train", *tiny_options(text), "--out", out, "--max-minutes", "1e-9"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bayesrnn: stopped by --max-minutes in epoch 1, after update 1 of 17; ")
    assert line.endswith(f" train --resume --out {out}")
    assert main(["train", "--resume", "--out", out, "--max-minutes", "60"]) == 0
    assert metrics(tmp_path / "run") == metrics(run_folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_to_a_real_process_and_resume(text, whole_run, tmp_path, number, code):
    """Ctrl-C leaves a run from which --resume goes on with the losses of an uninterrupted one."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "bayesrnn_cuda", "train", *tiny_options(text), *LONG, "--out", out],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any(line.startswith("epoch   1/") for line in process.stdout)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    (line,) = errors.splitlines()
    assert f"stopped by {number.name} in epoch " in line
    assert line.endswith(f"-m bayesrnn_cuda train --resume --out {out}")
    done = metrics(out)
    assert 1 <= len(done) < 25 and done == metrics(whole_run)[: len(done)]

    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert metrics(out) == metrics(whole_run)

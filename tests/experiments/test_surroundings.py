"""What a run meets: full disks, closed streams and terminals, other processes, moved data."""

import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_command_line import ROOT, mistake, tiny_options

from bayesrnn_cuda.__main__ import main
from bayesrnn_cuda.experiments.training.checkpoint import load_checkpoint, save_checkpoint
from bayesrnn_cuda.experiments.training.runs import Interrupted, Interruption, RunFolder
from bayesrnn_cuda.experiments.training.trainer import Trainer


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *tiny_options(text), "--out", str(path)]) == 0
    return path


@contextmanager
def disk_of(size: int):
    """No file grows beyond `size` bytes: the error is that of a full disk but for its number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- Full disks


def test_a_checkpoint_is_whole_or_the_old_one_wherever_the_disk_ends(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, "test", {"weights": torch.zeros(3)})
    document = {"weights": torch.randn(3000), "more": list(range(50))}
    save_checkpoint(tmp_path / "whole.pt", "test", document)
    size = (tmp_path / "whole.pt").stat().st_size
    for room in (0, 1, 63, 100, 1000, 4096, 8192, 12_000, size - 300, size - 22, size - 1):
        with disk_of(room), pytest.raises(OSError, match=r"File too large: '.*/last\.pt'"):
            save_checkpoint(path, "test", document)
        assert load_checkpoint(path, "test")["weights"].shape == (3,)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "whole.pt"]
    with disk_of(size):
        save_checkpoint(path, "test", document)
    assert torch.equal(load_checkpoint(path, "test")["weights"], document["weights"])


@pytest.mark.parametrize("name", ["config.json", "last.pt", "best.pt"])
def test_a_full_disk_is_one_line(capsys, text, finished, tmp_path, name):
    with disk_of((finished / name).stat().st_size - 1):
        line = mistake(capsys, ["train", *tiny_options(text), "--out", str(tmp_path / "run")])
    assert line.startswith("[Errno 27] File too large: ")


def test_a_full_disk_leaves_a_run_that_goes_on(capsys, text, finished, tmp_path, monkeypatch):
    """The metrics are what does not fit: last.pt has all that they say."""
    out = tmp_path / "run"
    write = RunFolder.write_metrics

    def full(folder, records):
        with disk_of(100):
            write(folder, records)

    monkeypatch.setattr(RunFolder, "write_metrics", full)
    assert "metrics.jsonl" in mistake(capsys, ["train", *tiny_options(text), "--out", str(out)])
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    ends = [(path / "metrics.jsonl").read_text().splitlines()[-1] for path in (out, finished)]
    assert json.loads(ends[0]) == json.loads(ends[1])


def test_output_on_a_full_device(tmp_path):
    done = subprocess.run(
        f"'{sys.executable}' -m bayesrnn_cuda info > /dev/full",
        shell=True, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2, "bayesrnn: error: [Errno 28] No space left on device\n"
    )  # fmt: skip


# ---- Plots


def test_a_plot_costs_no_result(capsys, text, tmp_path, monkeypatch):
    def broken(*arguments):
        raise ValueError("no such\nbackend")

    monkeypatch.setattr("bayesrnn_cuda.experiments.training.trainer.run_figure", broken)
    out = tmp_path / "run"
    assert main(["train", *tiny_options(text), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "curves.png was not drawn: ValueError: no such backend" in said.err
    assert f"run folder: {out}" in said.out


# ---- Streams


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_and_the_backend_of_a_notebook(text, tmp_path, closed):
    """Descriptors that are closed must not become those of a checkpoint."""
    options = "' '".join(tiny_options(text))
    command = f"'{sys.executable}' -m bayesrnn_cuda train '{options}' --out ünï {closed}"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://no.such_backend",
        },
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (r"run folder: \xfcn\xef" in done.stdout) == (">&-" not in closed.split())
    lines = (tmp_path / "ünï" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["final"]
    assert (tmp_path / "ünï" / "curves.png").read_bytes().startswith(b"\x89PNG")
    load_checkpoint(tmp_path / "ünï" / "last.pt", "language model")


# ---- Other processes


def test_a_folder_has_one_run_at_a_time(capsys, text, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train = ["train", *tiny_options(text), "--out", str(out)]
    out.mkdir()
    with RunFolder(out).locked():
        assert "no other process is at work in" in mistake(capsys, train)
        assert list(out.iterdir()) == []
    shutil.copytree(finished, out, dirs_exist_ok=True)
    resume = ["train", "--resume", "--out", str(out), "--epochs", "3"]
    with RunFolder(out).locked():
        assert "no other process is at work in" in mistake(capsys, resume)
    assert main(resume) == 0


def test_a_lock_ends_with_its_process(tmp_path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from bayesrnn_cuda.experiments.training.runs import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="no other process"), RunFolder(tmp_path).locked():
            pass
        process.kill()
    with RunFolder(tmp_path).locked():
        pass


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_that_another_process_made_meanwhile(
    capsys, text, finished, tmp_path, monkeypatch, resumed
):
    """Both have read the folder; the second to lock it finds that it is no longer as it was."""
    out = tmp_path / "run"
    options = ["--resume", "--epochs", "3"] if resumed else tiny_options(text)
    if resumed:
        shutil.copytree(finished, out)
    run = Trainer.run

    def later(trainer, *deadline):
        monkeypatch.setattr(Trainer, "run", run)
        assert main(["train", *options, "--out", str(out)]) == 0
        capsys.readouterr()
        return run(trainer, *deadline)

    monkeypatch.setattr(Trainer, "run", later)
    line = mistake(capsys, ["train", *options, "--out", str(out)])
    assert ("by another process" if resumed else "a new or empty folder") in line


# ---- Data that moved


def test_resume_with_data_that_moved(capsys, text, finished, tmp_path):
    out, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished, out)
    shutil.copytree(text, moved)
    resume = ["train", "--resume", "--out", str(out), "--epochs", "3", "--data", str(moved)]
    assert main(resume) == 0
    assert json.loads((out / "config.json").read_text())["data"] == str(moved)
    with (moved / "train.txt").open("a") as file:
        file.write("the dog sees the dog\n")
    assert "--data: expected the data that" in mistake(capsys, [*resume[:-3], "4", *resume[-2:]])


# ---- Closed terminals


def test_a_hangup_saves_as_a_signal_does_and_nohup_ignores_it():
    before = signal.getsignal(signal.SIGHUP)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Interrupted) as stop:
            interruption.check()
    assert stop.value.status == 129
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            interruption.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_closing_the_terminal_saves_the_run(text, tmp_path):
    """Whatever is written to the terminal fails from then on: that must not come before."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "bayesrnn_cuda", "train", *tiny_options(text)]
    command += ["--epochs", "100000", "--out", str(out)]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, command)
    said = b""
    while b"epoch   2/" not in said:  # the report, which pads the number; the bar does not
        said += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    progress = load_checkpoint(out / "last.pt", "language model")["training"]["progress"]
    assert progress["epoch"] >= 3


@pytest.mark.parametrize("start", ["-m bayesrnn_cuda", "bayesrnn"])
def test_an_interrupt_while_torch_loads_is_one_line(tmp_path, start):
    """A torch that takes long stands before the real one."""
    (tmp_path / "torch").mkdir()
    loading = "import time; print('loading', flush=True); time.sleep(60)"
    (tmp_path / "torch/__init__.py").write_text(loading)
    (tmp_path / "bayesrnn").write_text("from bayesrnn_cuda.__main__ import main; main()")
    process = subprocess.Popen(
        [sys.executable, *start.split(), "info"], cwd=tmp_path, text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell's background job ignores the signal, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "bayesrnn: interrupted\n"

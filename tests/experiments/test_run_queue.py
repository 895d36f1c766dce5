"""`bayesrnn experiment run NAME [NAME ...] --jobs N`: a queue that goes on where it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from review_files import write_review_folder

from bayesrnn_cuda.__main__ import main
from bayesrnn_cuda.experiments import run_queue
from bayesrnn_cuda.experiments.experiments import SWEEPS
from bayesrnn_cuda.experiments.training.configuration import UserError
from bayesrnn_cuda.experiments.training.runs import RunFolder

NAMES = ["sentiment-lstm-lengths/20", "sentiment-lstm-p-e-50"]
MEMBERS = [NAMES[0], *(f"{NAMES[1]}/{label}" for label in SWEEPS[NAMES[1]].members)]
PAIR = MEMBERS[:2]
TIMES = ("seconds", "pieces_per_second")
OPTIONS = ["--data", "none", "--epochs", "1", "--jobs", "2", "--out", "runs"]

# Stands for a member's process: a run of one epoch, which fails where p_E is 0.25.
STUB = """
import json, os, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
assert set(os.listdir(out)) <= {"config.json", "metrics.jsonl", "last.pt.tmp"}
if out.name == "0.25":
    sys.exit(7)
if "--pieces" in sys.argv:
    time.sleep(600)
seen = [sys.argv[1:], os.nice(0), os.environ["OMP_NUM_THREADS"]]
(out / "seen.json").write_text(json.dumps(seen))
(out / "config.json").write_text(json.dumps({"data": os.path.abspath("none"), "epochs": 1}))
records = [{"epoch": 1, "seconds": 1.0}, {"final": True, "ended": "patience"}]
(out / "metrics.jsonl").write_text("".join(json.dumps(record) + "\\n" for record in records))
(out / "last.pt").touch()
"""


EPOCHS = 10
# What a run leaves that ended before its first checkpoint.
BEGINNING = {"config.json": '{"experiment": "x"}', "metrics.jsonl": "", "last.pt.tmp": "{"}


def queue(*arguments: str | Path) -> int:
    return main(["experiment", "run", *map(str, arguments)])


def metrics(path: Path) -> list[dict]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def wait_for(what) -> None:
    end = time.monotonic() + 300
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_free(folder: Path) -> bool:
    try:
        with RunFolder(folder).locked():
            return True
    except UserError:
        return False


@pytest.fixture
def stub(monkeypatch, tmp_path) -> Path:
    """Members are STUBs; the folder of their runs."""
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_queue, "_PROGRAM", [sys.executable, str(tmp_path / "stub.py")])
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """Make real members of 80 updates an epoch, whose end is seconds after their first epoch's."""
    reviews = write_review_folder(tmp_path_factory.mktemp("reviews") / "data", 200)
    sizes = [
        *("--embedding", "5"),
        *("--hidden", "6"),
        *("--epochs", str(EPOCHS)),
        *("--batch-size", "2"),
    ]
    return ["--data", str(reviews), *sizes, "--device", "cpu", "--mc-samples", "3"]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory) -> dict[str, list[dict]]:
    """Metrics of the members, each run by itself."""
    out = tmp_path_factory.mktemp("alone")
    for number, name in enumerate(PAIR):
        assert queue(name, *options, "--out", out / str(number)) == 0
    return {name: metrics(out / str(number)) for number, name in enumerate(PAIR)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_queue_goes_on_exactly(capfd, monkeypatch, alone, options, tmp_path, number):
    """Stopped in the first member, it continues that one and begins the other."""
    monkeypatch.setattr(run_queue, "_NICENESS", 0)  # a busy machine would never get to it
    arguments = ["experiment", "run", *PAIR, *options, "--out", str(tmp_path)]
    program = (
        "import sys; from bayesrnn_cuda.__main__ import main; from bayesrnn_cuda.experiments "
        f"import run_queue; run_queue._NICENESS = 0; sys.exit(main({[*arguments, '--jobs', '1']}))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    wait_for(lambda: list(tmp_path.rglob("last.pt")))
    os.kill(process.pid, number)
    process.wait(timeout=120)
    # What kill -9 leaves behind saves itself, and then the folder is free.
    wait_for(lambda: is_free(tmp_path))
    assert not (tmp_path / PAIR[1]).exists()
    assert len(metrics(tmp_path / PAIR[0])) < EPOCHS + 1  # the last record is the test's
    if number == signal.SIGINT:
        assert process.returncode == 130
        (line,) = capfd.readouterr().err.splitlines()
        assert "stopped by SIGINT with 0 of 2 ended" in line
        assert f"experiment run {' '.join(PAIR)} --jobs 1 --out {tmp_path} --data " in line
    assert main([*arguments, "--jobs", "2"]) == 0
    assert "2 of 2 members finished" in capfd.readouterr().out
    assert {name: metrics(tmp_path / name) for name in PAIR} == alone


def test_members_have_one_thread_and_the_lowest_priority(capsys, stub):
    assert queue(NAMES[0], *OPTIONS) == 0
    arguments, niceness, threads = json.loads((stub / NAMES[0] / "seen.json").read_text())
    given = ["--data", str(Path("none").resolve()), "--epochs", "1"]
    assert arguments == ["experiment", "run", NAMES[0], "--out", f"runs/{NAMES[0]}", *given]
    assert (niceness, threads) == (19, "1")
    assert f"{NAMES[0]}: finished by patience, 1 of 1 epochs" in capsys.readouterr().out


def test_finished_members_are_not_run_again(capsys, stub):
    assert queue(NAMES[0], *OPTIONS) == 0
    assert queue(NAMES[0], *OPTIONS) == 0  # a second run of the stub would fail
    assert "1 members, 1 finished before" in capsys.readouterr().out


def test_failed_member_stops_no_other_and_is_named(capsys, stub):
    assert queue(*NAMES, *OPTIONS) == 1
    captured = capsys.readouterr()
    name = f"{NAMES[1]}/0.25"
    text = f"{name}: failed with status 7 after 0 of 1 epochs: runs/{name}.log\n"
    assert captured.err == f"bayesrnn: {text}"
    assert "3 of 4 members finished" in captured.out
    assert sorted(path.parent.name for path in stub.rglob("last.pt")) == ["0", "0.5", "20"]


def test_second_queue_is_refused(capsys, stub):
    stub.mkdir()
    with RunFolder(stub).locked():
        assert queue(*NAMES, *OPTIONS) == 2
        assert capsys.readouterr().err == (
            "bayesrnn: error: argument --out: expected a folder that no other process is at work "
            "in, got 'runs'\n"
        )
    assert queue(NAMES[0], *OPTIONS) == 0


def test_run_killed_before_its_first_checkpoint_begins_anew(stub):
    (stub / NAMES[0]).mkdir(parents=True)
    for left, text in BEGINNING.items():
        (stub / NAMES[0] / left).write_text(text)
    assert queue(NAMES[0], *OPTIONS) == 0


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.jsonl", b'{"fin'),
        ("config.json", b"{"),
        ("config.json", b"\xff"),
        ("metrics.jsonl", b"\xff"),
        ("metrics.jsonl", b'{"epoch": 1}\n'),
    ],
)
def test_damaged_file_of_a_member_stops_no_other(stub, file, text):
    """Its process says what is wrong, or makes the file anew."""
    assert queue(NAMES[0], *OPTIONS) == 0
    (stub / NAMES[0] / file).write_bytes(text)
    assert not RunFolder(stub / NAMES[0]).finished({})
    (stub / NAMES[0] / "seen.json").unlink()
    queue(NAMES[0], "sentiment-lstm-lengths/50", *OPTIONS)
    assert (stub / "sentiment-lstm-lengths" / "50" / "seen.json").is_file()


def test_members_with_the_same_values_are_run_once(capsys, stub):
    names = ["sentiment-lstm-bayesian", "sentiment-lstm-lengths/200", "sentiment-lstm-p-e-200/0.5"]
    assert queue(*names, *OPTIONS) == 0
    out = capsys.readouterr().out
    for name in names[1:]:
        assert f"{name}: the same run as {names[0]}\n" in out
        assert not (stub / name).exists()


def test_time_is_up(capsys, stub):
    assert queue(*NAMES, *OPTIONS, "--pieces", "9", "--max-minutes", "0.01") == 3
    err = capsys.readouterr().err
    assert f"stopped by --max-minutes with 0 of 4 ended; {NAMES[0]} 0/1, " in err


def test_time_left_counts_members_side_by_side(monkeypatch):
    """Two at a time, of 10 s an epoch: 30 s and 50 s run, then 40 s wait."""
    names = ("a", "b", "c")
    members = [run_queue.Member(name, None, Path(name), 9) for name in names]
    done = dict(zip(names, (6, 4, 5), strict=True))
    monkeypatch.setattr(
        run_queue.Member, "records", lambda self: [{"seconds": 10}] * done[self.name]
    )
    waiting = run_queue._Queue(members, {}, 2, None)
    waiting.running, waiting.waiting = members[:2], members[2:]
    assert waiting._seconds_left() == 30 + 40
    assert waiting._progress() == "0 of 3 ended; a 6/9, b 4/9; 0 h 01 min left at most"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([NAMES[0], "--jobs", "0"], "argument --jobs: expected a whole number from 1, got 0"),
        ([NAMES[0], "--jobs", "2", "--resume"], "argument --resume: expected none, a queue goes"),
        (
            ["ptb-small-naive", NAMES[0], "--jobs", "2"],
            "argument NAME: expected names of one experiment, whose data are in one folder, got "
            f"ptb-small-naive of language_model, {NAMES[0]} of sentiment",
        ),
        (
            ["sentiment-lstm", "sentiment-lstm-lengths", "--data", "x", "--seq-len", "9"],
            "argument --seq-len: expected none, 'sentiment-lstm-lengths' varies it",
        ),
    ],
)
def test_mistakes(capsys, monkeypatch, tmp_path, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert queue(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"bayesrnn: error: {expected}")
    assert list(tmp_path.iterdir()) == []


def test_under_torchrun(capsys, monkeypatch, stub):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert queue(*NAMES, *OPTIONS) == 2
    assert "argument --jobs: expected none under torchrun" in capsys.readouterr().err

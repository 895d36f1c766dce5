"""bench/gpu rehearsed without a GPU: its jobs and programs pass, fail, hang, crash, say nothing, or
leave a worker without a CUDA context, and nothing that was known before is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from bench.gpu import names, pool, runner, stages, summary  # noqa: E402
from bench.gpu.__main__ import failed_before  # noqa: E402
from bench.gpu.pool import Pool  # noqa: E402
from bench.gpu.stages import Stage  # noqa: E402
from bench.gpu.summary import Outcome  # noqa: E402
from building import cuda_toolkit  # noqa: E402

STAND_INS = str(ROOT / "tests/tools/gpu_stand_ins.py")
NEVER = 100.0  # seconds that no job here takes, unless it hangs
HANGS = 1.5


def jobs(*names, how="well", **options):
    """A pool of stand-ins."""
    settings = {"silence": NEVER, "start": NEVER} | options
    return Pool(pool.python(STAND_INS, how, *names), **settings)


@pytest.fixture
def done(tmp_path):
    """Does the jobs of a pool: (rows, jobs not begun, what the workers printed)."""

    def run(work, seconds=NEVER):
        rows = []
        with open(tmp_path / "log", "w+b") as log:
            left = pool.run(work, stages.environment(), rows.append, log, seconds)
            log.seek(0)
            return rows, left, log.read().decode()

    return run


def told(rows):
    """What each job said, without numbers of processes."""
    return {(row["job"], row.get("error", "")) for row in rows}


# ---- jobs


@pytest.mark.parametrize("workers", [1, 3])
def test_every_ending_but_hanging(done, workers):
    wanted = ["pass 1", "fail", "crash", "pass 2", "exit", "nothing", "sticky", "pass 3"]
    rows, left, log = done(jobs(*wanted, workers=workers))
    assert not left
    assert told(rows) == {
        ("pass 1", ""), ("pass 2", ""), ("pass 3", ""), ("sticky", ""),
        ("fail", "ValueError: expected 1, got 2"),
        ("crash", "died of SIGSEGV: Segmentation fault soon"),
        ("exit", "ended with status 3"), ("nothing", "said nothing"),
        ("sticky", "lost its CUDA context: RuntimeError: CUDA error: an illegal memory access "
                   "was encountered"),
    }  # fmt: skip
    assert "Segmentation fault soon" in log


def test_a_worker_that_dies_is_not_told_by_what_an_earlier_job_printed(done):
    rows, _, log = done(jobs("fail", "exit"))
    assert ("exit", "ended with status 3") in told(rows)
    assert "expected 1, got 2" in log


def test_a_worker_is_kept_until_it_is_of_no_use(done):
    rows, _, _ = done(jobs("pass 1", "pass 2", "sticky", "pass 3", "pass 4"))
    first, second, third, fourth = (row["pid"] for row in rows if "pid" in row)
    assert first == second != third == fourth


def test_a_worker_of_its_own_for_each_job(done):
    rows, _, _ = done(jobs("pass 1", "pass 2", "pass 3", fresh=True, workers=3))
    assert len({row["pid"] for row in rows}) == 3


def test_what_hangs_is_told_and_the_others_go_on(done):
    rows, left, _ = done(jobs("hang", "half", "pass", silence=HANGS))
    silent = f"no answer in {HANGS:g} s"
    assert told(rows) == {("hang", silent), ("half", ""), ("half", silent), ("pass", "")}
    assert not left


def test_the_rest_of_a_job_comes_again_without_what_hung(done):
    rows, left, _ = done(jobs("parts", "pass", silence=HANGS))
    seen = [(row.get("variant"), row.get("doing"), "error" in row) for row in rows]
    assert seen[:2] == [("a", None, False), (None, "b", True)]
    assert seen[2:] == [("a", None, False), ("c", None, False), (None, None, False)]
    assert not left


def test_some_of_the_jobs(done):
    rows, _, _ = done(jobs("pass 1", "crash", "pass 2", only=("pass 2", "nosuch")))
    assert told(rows) == {("pass 2", "")}


def test_workers_that_do_not_start(done):
    rows, _, _ = done(jobs("pass", how="broken", workers=2))
    cannot = "ended with status 1: ImportError: libcudart.so.13: cannot open shared object file"
    assert told(rows) == {("start", cannot)}
    assert 3 <= len(rows) <= 4
    rows, _, _ = done(jobs("pass", how="late"), seconds=0.3)
    assert told(rows) == {("start", "no worker was ready in all the time")}
    rows, _, _ = done(jobs("pass", how="late", start=0.1))
    assert told(rows) == {("start", "no answer in 0.1 s")}


def test_the_time_of_all_jobs_ends(done):
    began = time.monotonic()
    rows, left, _ = done(jobs("pass", "half", "pass 2", "pass 3"), seconds=4.0)
    assert time.monotonic() - began < NEVER / 2
    assert left == ["pass 2", "pass 3"]
    assert rows[-1] == {"job": "half", "outcome": "unfinished"}


# ---- tests as jobs

TESTS = """
import os, signal, sys, time, types
import pytest

def test_passes(record_property):
    print("a" * 100)
    record_property("kernels", ["k"])

def test_fails():
    assert [1] == [2]

@pytest.mark.skip(reason="no such GPU")
def test_skips(): ...

def test_has_no_fixture(nosuch): ...

def test_crashes():
    os.kill(os.getpid(), signal.SIGABRT)

def test_loses_its_context():
    import gpu_stand_ins_of_a_context

@pytest.mark.parametrize("n", range(3))
def test_more(n): ...
"""
CONTEXT = """
import sys, types
def synchronize(): raise RuntimeError("CUDA error: unspecified launch failure")
cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
"""


def test_tests_as_jobs(done, tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "test_inner.py").write_text(TESTS)
    (folder / "gpu_stand_ins_of_a_context.py").write_text(CONTEXT)
    options = ("--rootdir", str(folder), "-c", os.devnull, str(folder / "test_inner.py"))
    rows, left, _ = done(stages.tests(*options, workers=2, silence=NEVER))
    assert not left
    by_name = {}
    for row in rows:
        by_name.setdefault(row["job"].split("::")[-1], []).append(row)
    assert by_name.keys() == {
        "test_passes", "test_fails", "test_skips", "test_has_no_fixture", "test_crashes",
        "test_loses_its_context", "test_more[0]", "test_more[1]", "test_more[2]",
    }  # fmt: skip
    (passes,) = by_name["test_passes"]
    assert (passes["outcome"], passes["kernels"]) == ("passed", ["k"])
    (fails,) = by_name["test_fails"]
    assert fails["outcome"] == "failed"
    assert fails["error"].startswith("assert [1] == [2]")
    (skips,) = by_name["test_skips"]
    assert skips["outcome"] == "skipped" and "no such GPU" in skips["reason"]
    (missing,) = by_name["test_has_no_fixture"]
    assert missing["error"].startswith("in setup: ") and "nosuch" in missing["error"]
    (crashes,) = by_name["test_crashes"]
    assert crashes["error"].startswith("died of SIGABRT")
    assert by_name["test_loses_its_context"][-1]["error"] == (
        "lost its CUDA context: RuntimeError: CUDA error: unspecified launch failure"
    )


# ---- programs


def test_programs(tmp_path, capsys):
    def script(text):
        return pool.python("-c", text)

    table = [
        Stage("passes", NEVER, script("print('all of it')")),
        Stage("silent", NEVER, script("")),
        Stage("fails", NEVER, script("import sys; print('wrong'); sys.exit(9)")),
        Stage("crashes", NEVER, script("import os; os.abort()")),
        Stage("hangs", 2, script("import time; print('begun', flush=True); time.sleep(1000)")),
        Stage("lacks", NEVER, ("no-such-program",)),
        Stage("marked", NEVER, script("print('========= TOOL\\n========= Invalid write')")),
    ]
    status = runner.Runner(tmp_path, "part1", NEVER).run(table)
    printed = capsys.readouterr().out
    verdicts = dict(line.split()[:2] for line in summary_of(printed)[1:8])
    assert verdicts == {
        "passes": "passed", "silent": "passed", "fails": "failed", "crashes": "failed",
        "hangs": "failed", "lacks": "skipped", "marked": "passed",
    }  # fmt: skip
    assert status == 1
    texts = ("fails: ended with status 9", "crashes: died of SIGABRT", "Invalid write",
             "hangs: not finished in 2 s", "no-such-program is not there", "all of it")  # fmt: skip
    assert not [text for text in texts if text not in printed]
    log = (tmp_path / "part1.log").read_text()
    assert "begun" in log and "wrong" in log
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part1.jsonl", "part1.log", "part1.txt"]


def summary_of(printed):
    """The lines of the last thing that was printed."""
    return printed[printed.rindex("\npart1") + 1 :].splitlines()


# ---- a part that is stopped

PART = """
import sys
sys.path[:0] = [{root!r}, {tools!r}]
from pathlib import Path
import test_gpu_harness as t
table = [
    t.Stage("first", t.NEVER, t.jobs("pass", "fail")),
    t.Stage("second", t.NEVER, t.jobs("half", "pass")),
    t.Stage("third", t.NEVER, t.jobs("pass")),
]
sys.exit(t.runner.Runner(Path({out!r}), "part1", t.NEVER).run(table))
"""


def gone(pid):
    """Whether a process ends within a while."""
    end = time.monotonic() + NEVER
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_part_that_is_stopped_has_said_what_it_knew(tmp_path, number):
    program = PART.format(root=str(ROOT), tools=str(ROOT / "tests/tools"), out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    rows = tmp_path / "part1.jsonl"
    while not rows.exists() or "known" not in rows.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=NEVER)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert told(found) >= {("pass", ""), ("fail", "ValueError: expected 1, got 2"), ("half", "")}
    assert gone(next(row["pid"] for row in found if "known" in row))
    saved = (tmp_path / "part1.txt").read_text()
    assert "first          failed" in saved
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert "stopped by SIGTERM" in saved
        assert printed.endswith(saved)
        assert "second         unfinished" in saved
        assert "third" not in saved


def test_the_time_of_a_part_ends(tmp_path, capsys):
    table = [Stage("long", NEVER, jobs("half")), Stage("never", NEVER, jobs("pass"))]
    assert runner.Runner(tmp_path, "part1", runner.RESERVE + 4).run(table) == 1
    lines = summary_of(capsys.readouterr().out)
    assert lines[1].split()[:2] == ["long", "unfinished"]
    assert lines[2].split() == ["never", "unfinished", "0", "s", "not", "begun"]


def test_nothing_follows_where_there_is_no_gpu(tmp_path, capsys):
    table = [
        Stage("first", NEVER, jobs("skip", "skip 2"), essential=True),
        Stage("second", NEVER, jobs("pass")),
    ]
    assert runner.Runner(tmp_path, "part1", NEVER).run(table) == 1
    printed = capsys.readouterr().out
    assert "part1, stopped after first" in printed
    assert "nothing passed: needs a GPU" in printed
    assert "second" not in printed


# ---- the summary


def test_the_summary_fits_and_begins_with_the_verdicts():
    rows = [{"stage": "kernels", "job": f"t[{i}]", "error": "x" * 300 + str(i)} for i in range(900)]
    rows += [{"stage": "kernels", "job": f"t[{i}]", "error": "alike"} for i in range(900)]
    for cell in ("lstm", "gru"):
        for i in range(100):
            for name in ("torch", "auto"):
                rows.append({"stage": "speed", "job": f"{cell} {i}/16/768/768 float32+tf32",
                             "variant": name, "T": 1024, "forward_ms": 1.5})  # fmt: skip
    outcomes = [Outcome("kernels"), Outcome("speed")]
    outcomes[0].count(rows[:1800])
    outcomes[1].count(rows[1800:])
    text = summary.text("part1, results in /out", outcomes, rows)
    assert len(text.encode()) <= summary.LENGTH
    lines = text.splitlines()
    assert lines[1].split() == ["kernels", "failed", "0", "s", "900", "failed"]
    assert lines[2].split() == ["speed", "passed", "0", "s", "200", "passed"]
    assert "other errors" in text and "more lines: see the rows" in lines[-1]


def test_nothing_but_skipped_is_no_success():
    outcome = Outcome("kernels")
    outcome.count([{"job": "a", "outcome": "skipped", "reason": "needs a GPU"}])
    assert outcome.bad and "needs a GPU" in str(outcome)


def test_a_line_of_speed_has_what_was_measured():
    base = {"stage": "speed", "job": "lstm 1024/16/768/768 bfloat16", "T": 1024}
    rows = [
        base | {"variant": "torch", "forward_ms": 2.0, "forward_backward_ms": 5.0},
        base | {"variant": "torch float16", "error": "out of memory"},
        base | {"variant": "auto", "forward_ms": 1.0, "forward_backward_ms": 2.5, "engine": "grid",
                "norm_error": 0.004},
        base | {"variant": "auto", "graph_forward_ms": 0.512, "graph_forward_backward_ms": 1.024},
    ]  # fmt: skip
    _, line = summary.speed(rows)
    assert line.split("|")[0].split() == ["lstm", "1024/16/768/768", "bf16", "grid", "0.98", "2.44"]
    assert [part.split() for part in line.split("|")[1:]] == [
        ["0.50", "1.00"], ["0.50", "0.50"], ["-", "-"], ["4e-03"]
    ]  # fmt: skip


# ---- which kernels ran


def test_kernels_that_did_not_run(monkeypatch, tmp_path):
    first, second = "_ZN4brnn4cuda5firstEv", "_ZN4brnn4cuda6secondEv"
    monkeypatch.setattr(names, "kernels", lambda path: frozenset({first, second}))
    monkeypatch.setattr(stages, "LIBRARY", tmp_path)
    missing = stages.kernels_that_did_not_run
    assert missing([{"kernels": [first]}, {"kernels": [second]}]) == []
    assert missing([{"kernels": [first]}, {}]) == ["did not run: second()"]
    assert missing([{"kernels": []}]) == ["the profiler saw none of 2 kernels"]
    monkeypatch.setattr(stages, "LIBRARY", tmp_path / "nosuch.so")
    assert "which kernels it has is not known" in missing([])[0]


def test_a_profiler_that_fails_leaves_the_kernels_to_be_tested(tmp_path, capsys):
    def show(rows):
        return stages.without_a_broken_profiler(rows)

    job = {"stage": "engines", "job": stages.PROFILER}
    broken = {"BAYESRNN_PROFILER": "0"}
    assert show([job | {"outcome": "passed"}]) == {}
    assert show([job | {"error": "died of SIGSEGV"}]) == show([]) == broken
    assert show([job | {"outcome": "failed", "error": "assert set()"}]) == broken
    print_it = "import os; print('profiler', os.environ.get('BAYESRNN_PROFILER'))"
    table = [Stage("kernels", NEVER, pool.python("-c", print_it), settings=show)]
    assert runner.Runner(tmp_path, "part1", NEVER).run(table) == 0
    assert "profiler 0" in capsys.readouterr().out
    path, _, name = stages.PROFILER.partition("::")
    assert f"def {name}()" in (ROOT / path).read_text()


def test_names_that_a_profiler_shows():
    name = "_ZN4brnn4cuda5firstEv"
    assert names.demangle(name) == "brnn::cuda::first()"
    shown = ["brnn::cuda::first()", "void at::native::fill<float>()"]
    assert names.mangled(shown, [name]) == [name, "void at::native::fill<float>()"]


# ---- the tables


def test_the_parts_fit_their_time():
    first, second = stages.part_1(), stages.part_2({})
    *others, last = first
    assert last.name == "memcheck"  # takes what is left
    assert sum(s.seconds for s in others if s.name != "card") + runner.RESERVE <= 330
    assert second[-1].name == "compile"
    assert sum(s.seconds for s in second) <= 330
    for stage in (*first, *second):
        command = stage.work.command if isinstance(stage.work, Pool) else stage.work
        for part in command:
            assert not part.startswith("tests/") or (ROOT / part).exists(), part


def test_part_2_begins_with_what_failed(tmp_path):
    path = tmp_path / "part1.jsonl"
    rows = [
        {"stage": "kernels", "job": "a", "error": "wrong"},
        {"stage": "kernels", "job": "b", "outcome": "passed"},
        {"stage": "kernels", "job": "", "error": "did not run: k"},
        {"stage": "speed", "job": "lstm", "variant": "grid", "error": "off"},
        {"stage": "memcheck", "job": "", "error": "not finished"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, *_ = stages.part_2(failed_before(path))
    assert (first.name, first.work.only) == ("kernels again", ("a",))
    assert (second.name, second.work.only) == ("speed again", ("lstm",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "nosuch"), "--only: expected some of card, engines, "),
        (("--part", "3"), "--part: invalid choice"),
        (("--before", "/nosuch"), "--before: expected rows of an earlier part, got "),
    ],
)
def test_mistakes_are_told(arguments, message):
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


# ---- probes

PROBES = """
import ctypes, json, sys
from pathlib import Path
from bench.gpu import probes
probes.build("90a", Path(sys.argv[1]))
library = probes.load(Path(sys.argv[1]))
error = library.probe(ctypes.byref(probes.Call(b"nosuch")))
try:
    probes.build("1x", Path(sys.argv[1]))
except probes.BuildError as refused:
    print(json.dumps([error.decode(), str(refused), list(probes.jobs())]))
"""


@pytest.mark.skipif(cuda_toolkit.cuda_home() is None, reason="no nvcc")
def test_probes_compile_and_say_what_is_wrong(tmp_path):
    environment = stages.environment() | {"CUDA_HOME": str(cuda_toolkit.cuda_home())}
    command = [sys.executable, "-c", PROBES, str(tmp_path / "libprobes.so")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    error, refused, jobs = json.loads(done.stdout)
    assert error == "name: expected a probe, got 'nosuch'"
    assert "compute_1x" in refused
    assert len(jobs) == len(set(jobs)) > 20

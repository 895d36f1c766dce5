"""Every benchmark that needs no GPU, on one small layer: its JSON, its figure, its mistakes."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import bayesrnn_cuda as brnn

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--cell", "gru", "--shape", "3,2,4,5", "--threads", "1", "--default-heap")
TIMES = {"forward", "forward_backward"}
# module: variants, what is compared, further options
BENCHMARKS = {
    "vs_cudnn": (
        ["torch.nn.GRU", "bayesrnn untied", "bayesrnn tied", "bayesrnn none"],
        TIMES,
        ("--runs", "2"),
    ),
    "vs_loop": (["eager masked loop", "bayesrnn untied"], TIMES, ("--runs", "1")),
    "vs_resets": (
        [
            "bayesrnn untied, no resets",
            "bayesrnn untied, 0.5",
            "nn.GRU, padded, 0.5",
            "nn.GRU, loop",
        ],
        TIMES,
        ("--runs", "1", "--rate", "0.5", "--no-torchrl"),
    ),
    "memory": (["torch.nn.GRU", "bayesrnn untied", "bayesrnn none"], {"peak"}, ("--runs", "1")),
    "mc_predict": (["4 calls", "mc_predict"], {"forward"}, ("--runs", "2", "--samples", "4")),
}
PEAK = "vs_cudnn"  # tells the part of what the processor can do at most


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs a benchmark in this process: (exit status, what it prints, its errors)."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(os, "execve", None)  # would start pytest again, for another heap
    threads = torch.get_num_threads()

    def run(module: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        torch.manual_seed(0)  # the check of mc_predict is one of chance
        try:
            importlib.import_module(f"bench.{module}").main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("module", BENCHMARKS)
def test_results(bench, tmp_path, module):
    variants, compared, options = BENCHMARKS[module]
    path = tmp_path / "new" / "results.json"
    status, printed, errors = bench(module, *SMALL, *options, "--out", path, "--no-figure")
    assert (status, errors) == (0, "")
    document = json.loads(path.read_text())
    assert document["machine"]["threads"] == 1
    assert document["machine"]["processor"]
    (record,) = document["results"]
    sizes = {"cell": "gru", "T": 3, "B": 2, "I": 4, "H": 5, "dtype": "float32", "p": 0.25}
    assert {key: record[key] for key in sizes} == sizes
    assert [row["variant"] for row in record["rows"]] == variants
    for row in record["rows"]:
        assert set(row["ratio"]) == compared
        assert set(row["of_peak"]) == set(row["gflops"]) == (compared if module == PEAK else set())
        for what in compared - {"peak"}:
            assert row[f"{what}_ms"] > 0
            assert (row[f"{what}_spread"] is None) == ("1" in options)
            first = record["rows"][0][f"{what}_ms"]
            assert row["ratio"][what] == pytest.approx(row[f"{what}_ms"] / first)
        assert (row["peak_bytes"] is not None) == ("peak" in compared)
        assert row["variant"] in printed
    assert list(path.parent.iterdir()) == [path]
    assert bench("report", path)[0] == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_part_of_the_peak(bench, tmp_path):
    """The peak that is printed, times the part of it, is the flop of the products over time."""
    path = tmp_path / "results.json"
    status, printed, _ = bench("vs_cudnn", *SMALL, "--runs", "3", "--out", path)
    assert status == 0
    record = json.loads(path.read_text())["results"][0]
    flop = {"forward": 2 * 3 * 2 * 3 * 5 * (4 + 5), "forward_backward": 6 * 3 * 2 * 3 * 5 * (4 + 5)}
    peaks = re.search(r"peak (\d+) and (\d+) GFLOP/s", printed)
    for row in record["rows"]:
        for (what, products), peak in zip(flop.items(), peaks.groups(), strict=True):
            rate = products / row[f"{what}_ms"] * 1e-6
            assert row["gflops"][what] == pytest.approx(rate)
            assert row["of_peak"][what] == pytest.approx(rate / float(peak), rel=0.1)
    assert path.with_suffix(".png").stat().st_size


def test_phases(bench):
    """They and the rest are all of the time that the threads had."""
    arguments = ("--cell", "lstm", "--shape", "20,16,64,64", "--threads", "1", "--runs", "3")
    status, printed, errors = bench("phases", *arguments, "--default-heap")
    assert (status, errors) == (0, "")
    line = r"^    {} +(-?[\d.]+) ms +(-?[\d.]+)%"
    for phase in ("gates", "recurrent product", "the rest"):
        assert len(re.findall(line.format(phase), printed, re.M)) == 2
    assert len(re.findall(line.format("weight products"), printed, re.M)) == 1
    shares = [float(share) for _, share in re.findall(line.format(r"[a-z ]+?"), printed, re.M)]
    assert sum(shares) == pytest.approx(200, abs=2)  # they are rounded


def test_loss_on_the_last_step(bench, tmp_path):
    path = tmp_path / "results.json"
    options = ("--loss", "last", "--runs", "1", "--no-figure", "--out", path)
    assert bench("vs_cudnn", *SMALL, *options)[0] == 0
    assert json.loads(path.read_text())["results"][0]["loss"] == "last"
    harness = importlib.import_module("bench.harness")
    dy = harness.Case("gru", 3, 2, 4, 5, loss="last").cotangent(torch.device("cpu"))
    assert dy[:2].count_nonzero() == 0 and dy[2].count_nonzero() == 10


def test_cost_of_a_call(bench, tmp_path):
    """Every way of calling is measured, and compared with torch's layer called that way."""
    path = tmp_path / "results.json"
    options = ("--cell", "gru", "--cell", "rnn", "--shape", "2,1,3,4", "--runs", "2", "--out", path)
    status, printed, errors = bench("call_cost", *options)
    assert (status, errors) == (0, "")
    records = json.loads(path.read_text())["results"]
    assert [(record["cell"], record["H"]) for record in records] == [("gru", 4), ("rnn", 4)]
    for record, name in zip(records, ("torch.nn.GRU", "torch.nn.RNN"), strict=True):
        calls = record["calls"]
        for way in ("no grad", "grad", "grad, backward"):
            (first, *others) = [call for call in calls if call["way"] == way]
            assert (first["name"], first["ratio"]) == (name, 1)
            assert len(others) == 5 + (way == "no grad")
            assert all(call["microseconds"] > 0 and call["ratio"] > 0 for call in others)
        assert all(call["name"] in printed for call in calls)


def test_command_line_keeps_its_heap(tmp_path):
    """The program starts itself again with malloc's settings, and with the options given."""
    path = tmp_path / "results.json"
    options = [*SMALL[:-1], "--runs", "1", "--no-figure", "--out", path]
    command = [sys.executable, "-m", "bench.vs_loop", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())["machine"]["retained_heap"]
    assert list(tmp_path.iterdir()) == [path]


class FakeHaste(nn.Module):
    """Haste's layer by its names: gates i g f o, weights transposed."""

    def __init__(self, input_size: int, hidden_size: int, wrong: bool = False) -> None:
        super().__init__()
        rows = 4 * hidden_size
        self.kernel = nn.Parameter(torch.randn(input_size, rows))
        self.recurrent_kernel = nn.Parameter(torch.randn(hidden_size, rows))
        self.bias = nn.Parameter(torch.randn(rows))
        self.order = (0, 1, 2, 3) if wrong else (0, 2, 1, 3)  # of its gates in i f g o

    def forward(self, x):
        def ours(columns):
            parts = columns.chunk(4, -1)
            return torch.cat([parts[i] for i in self.order], -1).t().contiguous()

        weights = brnn.LayerWeights(
            ours(self.kernel), ours(self.recurrent_kernel), ours(self.bias), None
        )
        zero = x.new_zeros(x.shape[1], self.recurrent_kernel.shape[0])
        y, h, c = brnn.reference.lstm(x, zero, zero, weights)
        return y, (h, c)


@pytest.mark.parametrize("wrong", [False, True])
def test_peers_are_checked_and_compared_in_the_shapes_given(bench, monkeypatch, tmp_path, wrong):
    haste = ModuleType("haste_pytorch")
    haste.LSTM = lambda *sizes: FakeHaste(*sizes, wrong=wrong)
    monkeypatch.setitem(sys.modules, "haste_pytorch", haste)
    monkeypatch.setitem(sys.modules, "flashrnn", None)  # not installed
    path = tmp_path / "results.json"
    options = ["--device", "cpu", "--shape", "3,2,4,5", *SMALL[4:], "--runs", "1", "--out", path]
    status, printed, _ = bench("vs_peers", *options)
    assert status == wrong
    assert path.with_suffix(".png").exists() != wrong
    assert "flashrnn: not measured" in printed
    (record,) = json.loads(path.read_text())["results"]
    assert (record["cell"], record["T"], record["H"]) == ("lstm", 3, 5)
    if wrong:
        assert "Haste is off by" in record["error"]
    else:
        variants = ["Haste, no masks", "bayesrnn untied"]
        assert [row["variant"] for row in record["rows"]] == variants


def test_case_that_fails_leaves_the_others(bench, monkeypatch, tmp_path):
    from bench import harness

    monkeypatch.setattr(harness, "tolerance", lambda dtype, device: -1.0)
    path = tmp_path / "results.json"
    options = [*SMALL, "--shape", "2,1,3,4", "--runs", "1", "--no-figure", "--out", path]
    status, printed, _ = bench("vs_loop", *options)
    assert status == 1
    results = json.loads(path.read_text())["results"]
    assert [record["T"] for record in results] == [3, 2]
    for record in results:
        assert "of its largest value" in record["error"]
        assert record["error"] in printed


def test_one_step_whose_recurrent_gradient_is_zero(bench):
    status, printed, _ = bench("vs_cudnn", "--shape", "1,1,3,4", *SMALL[4:], "--runs", "1")
    assert status == 0, printed


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("vs_cudnn", ["--shape", "1,a,3,4"], "--shape: expected T,B,I,H, each at least 1, got "),
        ("vs_loop", ["--shape", "0,1,3,4"], "--shape: expected T,B,I,H, each at least 1, got "),
        ("memory", ["--shape", "1,3,4"], "--shape: expected T,B,I,H, each at least 1, got '1,3,4'"),
        ("vs_cudnn", ["--runs", "0"], "--runs: expected a whole number of at least 1, got '0'"),
        ("memory", ["--threads", "x"], "--threads: expected a whole number of at least 1, got 'x'"),
        ("mc_predict", ["--samples", "0"], "--samples: expected a whole number of at least 1"),
        ("vs_cudnn", ["--device", "gpu"], "--device: expected cpu, cuda or cuda:N, got 'gpu'"),
        ("vs_cudnn", ["--device", "mps"], "--device: expected cpu, cuda or cuda:N, got 'mps'"),
        ("vs_loop", ["--device", "cuda:99"], " CUDA devices, got 'cuda:99'"),
        ("vs_loop", ["--cell", "elman"], "--cell: invalid choice: 'elman'"),
        ("memory", ["--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        ("memory", ["--out", "."], "--out: expected a file, got the folder '.'"),
        ("report", [], "required: FILE"),
        ("report", ["nosuch.json"], "expected results of a benchmark in 'nosuch.json', got File"),
    ],
)
def test_mistake_is_one_line(bench, module, arguments, message):
    status, printed, errors = bench(module, *arguments)
    assert (status, printed) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"results": [{"T": 3}]}', "\xff"])
def test_report_of_another_file_is_one_line(bench, tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="latin-1")
    status, _, errors = bench("report", path)
    assert status == 2
    assert f"expected results of a benchmark in '{path}'" in errors
    assert errors.count("\n") == 1


# ---- Two builds in turns


@pytest.fixture
def vs_build():
    """`python -m bench.vs_build OTHER` on one small layer: what it printed, its errors."""

    def run(other: Path) -> tuple[str, str]:
        command = [sys.executable, "-m", "bench.vs_build", str(other), "--cell", "gru"]
        command += ["--shape", "3,2,4,5", "--seconds", "0", "--runs", "3", "--threads", "1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return done.stdout, done.stderr

    return run


def test_build_against_itself(vs_build):
    printed, errors = vs_build(ROOT)
    heading, row = printed.splitlines()
    assert errors == ""
    assert heading.split() == ["sample_masks", "forward", "forward_backward"]
    assert row.startswith("gru 3/2/4/5 float32")
    assert all(float(ratio) > 0 for ratio in row.split()[-3:])


OTHER_BUILD = """
import torch
class BayesianLSTM(torch.nn.LSTM):
    def __init__(self, *sizes, dtype, **dropout): super().__init__(*sizes, dtype=dtype)
class BayesianGRU(torch.nn.GRU):
    def __init__(self, *sizes, dtype, **dropout): super().__init__(*sizes, dtype=dtype)
    def forward(self, x): y, h = super().forward(x); return 2 * y, h
"""


def test_builds_that_differ_are_not_timed(vs_build, tmp_path):
    (tmp_path / "bayesrnn_cuda").mkdir()
    (tmp_path / "bayesrnn_cuda" / "__init__.py").write_text(OTHER_BUILD)
    printed, errors = vs_build(tmp_path)
    assert "gru 3/2/4/5 float32: outputs differ" in errors
    assert len(printed.splitlines()) == 1


def test_other_build_that_is_none(vs_build, tmp_path):
    _, errors = vs_build(tmp_path)
    assert "argument OTHER: expected a checkout with bayesrnn_cuda/" in errors
    assert errors.count("\n") == 1


SMALL_JOB = ["--words", "11", "--hidden", "8", "--steps", "3", "--batch", "2", "--runs", "1"]


def test_alternatives_agree_on_their_losses_and_are_timed(bench, tmp_path):
    path = tmp_path / "results.json"
    status, printed, errors = bench("vs_alternatives", *SMALL_JOB, "--out", path)
    assert (status, errors) == (0, "")
    (record,) = json.loads(path.read_text())["results"]
    assert (record["words"], record["steps"], record["batch"], record["hidden"]) == (11, 3, 2, 8)
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows)[:2] == ["torch.nn.LSTM, no dropout", "bayesrnn untied"]
    for name, row in rows.items():
        assert name in printed
        if row["skipped"]:
            assert "No module named" in row["skipped"] and name in ("JAX, scan", "Keras on JAX")
        else:
            assert row["update_ms"] > 0 and row["first_s"] > 0 and row["ratio"] > 0


def test_an_alternative_with_another_loss_is_not_timed(bench, monkeypatch):
    alternatives = importlib.import_module("bench.vs_alternatives")

    class Wrong(alternatives.CellLoop):
        def forward(self, x):
            return 1.1 * super().forward(x)[0], None

    monkeypatch.setattr(alternatives, "CellLoop", Wrong)
    with pytest.raises(AssertionError, match="loop over LSTMCell has the losses"):
        bench("vs_alternatives", *SMALL_JOB)

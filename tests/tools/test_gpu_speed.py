"""The speed stage of bench/gpu on a CPU: its rows, and that a variant which fails is one row."""

import functools
import os
import sys
from pathlib import Path

import pytest
import torch

import bayesrnn_cuda as brnn

sys.path.append(str(Path(__file__).resolve().parents[2]))
from bench.gpu import speed
from bench.gpu.device import Cpu

LAYERS = [speed.Layer("lstm", 3, 5, 4, 6), speed.Layer("gru", 3, 5, 4, 6)]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


@pytest.fixture
def timed(monkeypatch):
    """Times a layer quickly: (rows, what was said before each step)."""
    monkeypatch.setattr(speed, "ROUNDS", 2)
    monkeypatch.setattr(speed, "TURN", 0.0)
    speed.numbers.cache_clear()

    def run(layer, dtype=torch.bfloat16, skip=(), device=None):
        messages = []
        case = speed.Case(layer, dtype, device or Cpu(), skip, lambda **m: messages.append(m))
        case.run()
        return ([m["row"] for m in messages if "row" in m],
                list(dict.fromkeys(m["doing"] for m in messages if "doing" in m)))  # fmt: skip

    return run


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows(timed, layer, dtype):
    rows, doing = timed(layer, dtype)
    names = ["torch", "torch float16", "auto"]
    if dtype == torch.float16:
        names.remove("torch float16")
    assert [row["variant"] for row in rows] == names + names
    assert doing == [*names, *(f"graph {name}" for name in names)]
    for row in rows:
        prefix = "graph_" if "graph_forward_ms" in row else ""
        assert {f"{prefix}{k}" for k in ("forward_ms", "forward_spread", "forward_backward_ms",
                                         "forward_backward_spread")} < row.keys()  # fmt: skip
        assert row["T"] == 3
        assert ("norm_error" in row) == (row["variant"] == "auto")
    error = rows[names.index("auto")]["norm_error"]
    assert 0 < error <= speed.LIMIT[dtype]


@every_layer
def test_the_reference_is_the_same_in_pieces_and_its_numbers_are_exact_in_16_bit(
    monkeypatch, layer
):
    speed.numbers.cache_clear()
    whole = speed.numbers(layer, "cpu")
    monkeypatch.setattr(speed, "PIECE", 2)
    for got, want in zip(speed.exact(layer, whole), whole.results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    for t in (whole.x, whole.dy, *whole.weights):
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(t.to(dtype).double(), t)


@every_layer
def test_resets(timed, monkeypatch, layer):
    """The shape that has them is checked against a reference that has them too."""
    monkeypatch.setattr(speed, "RESETS", {(3, 5, 4, 6): 0.5})
    rows, _ = timed(layer)
    assert [row["variant"] for row in rows if "error" in row] == []
    monkeypatch.setattr(speed, "RESETS", {})
    with_them = speed.numbers(layer, "cpu")
    assert with_them.resets["resets"].any()
    speed.numbers.cache_clear()
    assert not torch.equal(speed.numbers(layer, "cpu").results[0], with_them.results[0])


@every_layer
def test_what_is_wrong_is_not_timed_and_the_others_are(timed, monkeypatch, layer):
    honest = layer.layers.ours.forward
    monkeypatch.setattr(
        layer.layers.ours, "forward", lambda *a, **o: (honest(*a, **o)[0] * 1.3, None)
    )
    rows, _ = timed(layer)
    (wrong,) = (row for row in rows if row["variant"] == "auto")
    assert wrong["error"].startswith("AssertionError: off by 3.0e-01 of the reference's norm")
    assert [row["variant"] for row in rows if "error" not in row] == 2 * ["torch", "torch float16"]


def test_nan_is_wrong(timed, monkeypatch):
    layer = LAYERS[0]
    honest = layer.layers.ours.forward
    monkeypatch.setattr(
        layer.layers.ours, "forward", lambda *a, **o: (honest(*a, **o)[0] * float("nan"), None)
    )
    rows, _ = timed(layer)
    assert any("off by nan" in row.get("error", "") for row in rows)


def test_an_engine_that_refuses_is_a_row(timed, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(speed, "made", refuse)
    rows, _ = timed(LAYERS[0])
    assert [(row["variant"], row["error"]) for row in rows] == [
        (name, "RuntimeError: no") for name in ("torch", "torch float16", "auto")
    ]


def test_a_graph_that_cannot_be_captured_keeps_the_times(timed):
    class NoGraphs(Cpu):
        def captured(self, function):
            raise RuntimeError("operation not permitted when stream is capturing")

    rows, _ = timed(LAYERS[0], device=NoGraphs())
    assert [row["variant"] for row in rows if "forward_ms" in row] == [
        "torch", "torch float16", "auto"
    ]  # fmt: skip
    assert sum("not permitted" in row.get("error", "") for row in rows) == 3


def test_parts_that_are_left_out(timed):
    rows, doing = timed(LAYERS[0], skip=["torch float16", "graph auto"])
    assert "torch float16" not in doing and "graph auto" not in doing
    assert [row["variant"] for row in rows] == ["torch", "auto", "torch"]


def test_a_setting_holds_while_its_variant_runs(timed, monkeypatch):
    """In every call of it, and in no other's."""
    layer = LAYERS[0]
    names = ["auto", *speed.SETTINGS]
    monkeypatch.setattr(
        speed, "variants", lambda *a: (functools.partial(speed.made, n, *a) for n in names)
    )
    names_set = {name for values in speed.SETTINGS.values() for name in values}
    own = {"BAYESRNN_GRID_STEPS": "7"}  # of who runs it
    monkeypatch.delenv("BAYESRNN_BACKWARD_AHEAD", raising=False)
    monkeypatch.setenv("BAYESRNN_GRID_STEPS", "7")
    seen = []
    honest = layer.layers.ours.forward

    def forward(*arguments, **options):
        seen.append({k: os.environ[k] for k in names_set if k in os.environ})
        return honest(*arguments, **options)

    monkeypatch.setattr(layer.layers.ours, "forward", forward)
    rows, _ = timed(layer)
    assert [row["variant"] for row in rows] == names + names
    each = [seen.count(own | values) for values in ({}, *speed.SETTINGS.values())]
    assert sum(each) == len(seen) and len(set(each)) == 1
    assert {k: os.environ[k] for k in names_set if k in os.environ} == own


def test_jobs_are_the_shapes_and_dtypes_that_count():
    table = speed.jobs()
    assert len(table) == len(speed.SHAPES) * 2 * 4
    assert next(iter(table)) == "lstm 1024/16/768/768 bfloat16"
    first = list(table)[: len(speed.SHAPES) * 2]
    assert all(name.endswith(" bfloat16") for name in first)
    assert brnn.engines.ON_CUDA  # which of them are forced is known only on a GPU

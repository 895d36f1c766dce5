"""Bad input: every check names the argument, what was expected and what came."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from cases import CELLS, Case, backward_arguments, leaves, op_arguments, outputs, sample
from torch import Tensor
from torch._subclasses import FakeTensorMode

from bayesrnn_cuda import engines, functional

CASES = {cell: Case(cell, T=3, B=2, I=5, H=4, lengths=True, resets="random") for cell in CELLS}
KINDS = ("lstm", "gru", "rnn")  # of which each has ops of its own


@dataclass(frozen=True)
class Bad:
    """A change to one argument and the message it must give. GH is G*H, GH1 is G*H + 1, ..."""

    argument: str
    change: Callable[[Tensor], Tensor | None]
    message: str

    def __str__(self) -> str:
        return self.message.replace(" ", "_")

    def expected(self, case: Case) -> str:
        G, H = case.gates, case.H
        text = self.message.format(G=G, G1=G + 1, GH=G * H, GH1=G * H + 1)
        return re.sub(r"(\[.*?\]) or \1", r"\1", text)  # one gate: its masks are tied ones


def longer(dim: int) -> Callable[[Tensor], Tensor]:
    """One row more along a dimension."""
    return lambda t: torch.cat([t, t.narrow(dim, 0, 1)], dim)


BAD = [
    Bad("x", lambda t: t[0], "x: expected 3 dimensions (T, B, I), got [2, 5]"),
    Bad("x", lambda t: t[:0], "x: expected a sequence of at least 1 step (T, B, I), got [0, 2, 5]"),
    Bad(
        "x",
        lambda t: t[..., :0],
        "x: expected an input size of at least 1 (T, B, I), got [3, 2, 0]",
    ),
    Bad("h0", lambda t: t[None], "h0: expected 2 dimensions (B, H), got [1, 2, 4]"),
    Bad("h0", lambda t: t[:, :0], "h0: expected a hidden size of at least 1 (B, H), got [2, 0]"),
    Bad("h0", longer(0), "h0: expected shape [2, 4] (B, H), got [3, 4]"),
    Bad("c0", longer(0), "c0: expected shape [2, 4] (B, H), got [3, 4]"),
    Bad("c0", longer(1), "c0: expected shape [2, 4] (B, H), got [2, 5]"),
    Bad("c0", lambda t: t[0], "c0: expected shape [2, 4] (B, H), got [4]"),
    Bad("weight_ih", longer(1), "weight_ih: expected shape [{GH}, 5] (G*H, I), got [{GH}, 6]"),
    Bad("weight_ih", longer(0), "weight_ih: expected shape [{GH}, 5] (G*H, I), got [{GH1}, 5]"),
    Bad("weight_ih", Tensor.t, "weight_ih: expected shape [{GH}, 5] (G*H, I), got [5, {GH}]"),
    Bad("weight_hh", longer(1), "weight_hh: expected shape [{GH}, 4] (G*H, H), got [{GH}, 5]"),
    Bad("weight_hh", longer(0), "weight_hh: expected shape [{GH}, 4] (G*H, H), got [{GH1}, 4]"),
    Bad("bias_ih", longer(0), "bias_ih: expected shape [{GH}] (G*H), got [{GH1}]"),
    Bad("bias_hh", longer(0), "bias_hh: expected shape [{GH}] (G*H), got [{GH1}]"),
    Bad("bias_hh", lambda t: t[None], "bias_hh: expected shape [{GH}] (G*H), got [1, {GH}]"),
    Bad("bias_ih", lambda t: None, "bias_ih: expected both biases or neither, got None"),
    Bad("bias_hh", lambda t: None, "bias_hh: expected both biases or neither, got None"),
    Bad(
        "keep_x",
        longer(1),  # masks for another batch
        "keep_x: expected shape [{G}, 2, 5] or [1, 2, 5] (G or 1, B, I), got [{G}, 3, 5]",
    ),
    Bad(
        "keep_x",
        longer(0),
        "keep_x: expected shape [{G}, 2, 5] or [1, 2, 5] (G or 1, B, I), got [{G1}, 2, 5]",
    ),
    Bad(
        "keep_x",
        lambda t: t[0],
        "keep_x: expected shape [{G}, 2, 5] or [1, 2, 5] (G or 1, B, I), got [2, 5]",
    ),
    Bad(
        "keep_h",
        longer(1),
        "keep_h: expected shape [{G}, 2, 4] or [1, 2, 4] (G or 1, B, H), got [{G}, 3, 4]",
    ),
    Bad(
        "keep_h",
        lambda t: torch.cat([t, t])[:2],
        "keep_h: expected shape [{G}, 2, 4] or [1, 2, 4] (G or 1, B, H), got [2, 2, 4]",
    ),
    Bad(
        "keep_h",
        longer(2),
        "keep_h: expected shape [{G}, 2, 4] or [1, 2, 4] (G or 1, B, H), got [{G}, 2, 5]",
    ),
    Bad("keep_x", Tensor.float, "keep_x: expected dtype bool, got float32"),
    Bad("keep_h", Tensor.long, "keep_h: expected dtype bool, got int64"),
    Bad("lengths", Tensor.int, "lengths: expected dtype int64, got int32"),
    Bad("lengths", Tensor.float, "lengths: expected dtype int64, got float32"),
    Bad("lengths", longer(0), "lengths: expected shape [2] (B), got [3]"),
    Bad("lengths", lambda t: t[None], "lengths: expected shape [2] (B), got [1, 2]"),
    Bad("lengths", lambda t: t * 0 + 4, "lengths: expected values from 0 to 3 (T), got 4"),
    Bad("lengths", lambda t: t * 0 - 1, "lengths: expected values from 0 to 3 (T), got -1"),
    Bad("resets", Tensor.long, "resets: expected dtype bool, got int64"),
    Bad("resets", longer(0), "resets: expected shape [3, 2] (T, B), got [4, 2]"),
    Bad("resets", longer(1), "resets: expected shape [3, 2] (T, B), got [3, 3]"),
    Bad("resets", Tensor.t, "resets: expected shape [3, 2] (T, B), got [2, 3]"),
    Bad("resets", lambda t: t[0], "resets: expected shape [3, 2] (T, B), got [2]"),
    # x decides dtype and device, so a changed x shows at h0
    Bad("x", Tensor.double, "h0: expected dtype float64 as x, got float32"),
    *(
        Bad(name, Tensor.double, f"{name}: expected dtype float32 as x, got float64")
        for name in ("h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ),
    Bad("h0", Tensor.bfloat16, "h0: expected dtype float32 as x, got bfloat16"),
    Bad("weight_hh", Tensor.half, "weight_hh: expected dtype float32 as x, got float16"),
    *(
        Bad(name, lambda t: t.to("meta"), f"{name}: expected device cpu as x, got meta")
        for name in (
            "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "keep_x", "keep_h",
            "lengths", "resets",
        )
    ),
]  # fmt: skip


def call_op(case: Case, inputs) -> None:
    op, arguments = op_arguments(case, inputs)
    op(*arguments)


ROUTES = {
    "op": call_op,
    "functional": lambda case, inputs: outputs(case, inputs, "cpu"),
    "functional, a gradient wanted": lambda case, inputs: outputs(
        case, wanted(case, inputs), "cpu"
    ),
    "functional, reverse": lambda case, inputs: outputs(replace(case, reverse=True), inputs, "cpu"),
    "functional, reference": lambda case, inputs: functional_reference(case, inputs),
}


def wanted(case: Case, inputs):
    return inputs._replace(weights=leaves(case, inputs).weights)


def functional_reference(case: Case, inputs) -> None:
    options = {"lengths": inputs.lengths, "resets": inputs.resets, "engine": "reference"}
    options |= {"reverse": True} | case.flags
    layer = getattr(functional, case.kind.name)
    layer(inputs.x, *inputs.states(), inputs.weights, inputs.masks, **options)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("bad", "cell"),
    [(b, cell) for b in BAD for cell in KINDS if cell == "lstm" or b.argument != "c0"],
    ids=str,
)
def test_bad_argument(bad, cell, route):
    case = CASES[cell]
    good = sample(case, torch.float32)
    changed = bad.change(good.tensors()[bad.argument])
    with pytest.raises(RuntimeError) as error:
        ROUTES[route](case, good.replace_tensors({bad.argument: changed}))
    assert bad.expected(case) in str(error.value)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("cell", CASES)
def test_the_good_arguments_pass(cell, route):
    ROUTES[route](CASES[cell], sample(CASES[cell], torch.float32))


def test_lengths_are_read_with_their_stride():
    """The values between those of a strided tensor are nobody's lengths."""
    case = CASES["lstm"]
    inputs = sample(case, torch.float32)
    lengths = torch.tensor([3, 99, 0, -99])[::2]
    y = outputs(case, inputs._replace(lengths=lengths), "cpu")["y"]
    assert torch.equal(y, outputs(case, inputs._replace(lengths=lengths.clone()), "cpu")["y"])


BAD_BACKWARD = [
    Bad("dy", longer(0), "dy: expected shape [3, 2, 4] (T, B, H), got [4, 2, 4]"),
    Bad("dy", Tensor.double, "dy: expected dtype float32 as x, got float64"),
    Bad("dh_n", longer(1), "dh_n: expected shape [2, 4] (B, H), got [2, 5]"),
    Bad("dh_n", Tensor.double, "dh_n: expected dtype float32 as x, got float64"),
    Bad("dc_n", longer(1), "dc_n: expected shape [2, 4] (B, H), got [2, 5]"),
    Bad("dc_n", Tensor.double, "dc_n: expected dtype float32 as x, got float64"),
    Bad("y", longer(1), "y: expected shape [3, 2, 4] (T, B, H), got [3, 3, 4]"),
    Bad("y", Tensor.double, "y: expected dtype float32 as x, got float64"),
    Bad("gates", longer(2), "gates: expected shape [3, 2, {GH}] (T, B, G*H), got [3, 2, {GH1}]"),
    Bad(
        "gates", lambda t: t[:0], "gates: expected shape [3, 2, {GH}] (T, B, G*H), got [0, 2, {GH}]"
    ),
    Bad("gates", Tensor.double, "gates: expected dtype float32 as x, got float64"),
    Bad("cells", longer(0), "cells: expected shape [3, 2, 4] (T, B, H), got [4, 2, 4]"),
    Bad("cells", Tensor.double, "cells: expected dtype float32 as x, got float64"),
    Bad("hidden_n", lambda t: t[:0], "hidden_n: expected shape [3, 2, 4] (T, B, H), got [0, 2, 4]"),
    Bad("hidden_n", Tensor.double, "hidden_n: expected dtype float32 as x, got float64"),
    Bad("x", lambda t: t[0], "x: expected 3 dimensions (T, B, I), got [2, 5]"),
    Bad("h0", longer(0), "h0: expected shape [2, 4] (B, H), got [3, 4]"),
    Bad("c0", longer(0), "c0: expected shape [2, 4] (B, H), got [3, 4]"),
    Bad("weight_ih", longer(1), "weight_ih: expected shape [{GH}, 5] (G*H, I), got [{GH}, 6]"),
    Bad("weight_hh", longer(1), "weight_hh: expected shape [{GH}, 4] (G*H, H), got [{GH}, 5]"),
    Bad("keep_x", Tensor.float, "keep_x: expected dtype bool, got float32"),
    Bad("keep_h", Tensor.float, "keep_h: expected dtype bool, got float32"),
    Bad("lengths", lambda t: t * 0 + 4, "lengths: expected values from 0 to 3 (T), got 4"),
    Bad("resets", Tensor.float, "resets: expected dtype bool, got float32"),
    Bad("resets", longer(0), "resets: expected shape [3, 2] (T, B), got [4, 2]"),
    Bad("engine", lambda name: "gpu", "engine: expected auto or cpu for x on the CPU, got 'gpu'"),
    *(
        Bad(name, lambda t: t.to("meta"), f"{name}: expected device cpu as x, got meta")
        for name in ("dy", "dh_n", "dc_n", "y", "gates", "cells", "hidden_n", "weight_ih", "keep_x")
    ),
]


def named_backward_arguments(case: Case, dtype: torch.dtype = torch.float32):
    op, arguments = backward_arguments(case, sample(case, dtype))
    names = [argument.name for argument in op.default._schema.arguments]
    return op, dict(zip(names, arguments, strict=True))


ONLY = {"c0": "lstm", "dc_n": "lstm", "cells": "lstm", "hidden_n": "gru"}


@pytest.mark.parametrize(
    ("bad", "cell"),
    [(bad, cell) for bad in BAD_BACKWARD for cell in KINDS if ONLY.get(bad.argument, cell) == cell],
    ids=str,
)
def test_bad_argument_of_backward(bad, cell):
    op, arguments = named_backward_arguments(CASES[cell])
    arguments[bad.argument] = bad.change(arguments[bad.argument])
    with pytest.raises(RuntimeError) as error:
        op(**arguments)
    assert bad.expected(CASES[cell]) in str(error.value)


def test_gru_that_resets_before_keeps_no_hidden_n():
    op, arguments = named_backward_arguments(CASES["gru_reset_before"])
    arguments["hidden_n"] = torch.zeros(3, 2, 4)
    with pytest.raises(RuntimeError) as error:
        op(**arguments)
    message = "hidden_n: expected shape [0, 2, 4] (T, B, H), got [3, 2, 4]"
    assert message in str(error.value)


# ---- Engines


def float16(case: Case):
    return sample(case, torch.float16)


@pytest.mark.parametrize("cell", CASES)
def test_float16_has_no_cpu_engine(cell):
    case = CASES[cell]
    message = "x: expected dtype float32, float64 or bfloat16 on the CPU, got float16"
    for route in ("op", "functional"):
        with pytest.raises(RuntimeError) as error:
            ROUTES[route](case, float16(case))
        assert message in str(error.value)
    op, arguments = named_backward_arguments(case)
    arguments = {
        k: t.half() if isinstance(t, Tensor) and t.is_floating_point() else t
        for k, t in arguments.items()
    }
    with pytest.raises(RuntimeError) as error:
        op(**arguments)
    assert message in str(error.value)
    assert outputs(case, float16(case), "auto")["y"].dtype == torch.float16  # by the reference


@pytest.mark.parametrize("cell", CASES)
def test_unknown_engine(cell):
    case = CASES[cell]
    inputs = sample(case, torch.float32)
    with pytest.raises(ValueError) as error:
        outputs(case, inputs, "warp")
    names = "auto, cpu, block, cluster, grid, grid_flags, stepwise, reference"
    assert str(error.value) == f"engine: expected one of {names}, got 'warp'"
    op, arguments = op_arguments(case, inputs)
    with pytest.raises(RuntimeError) as error:
        op(*arguments[:-1], "warp")
    assert "engine: expected auto or cpu for x on the CPU, got 'warp'" in str(error.value)


@pytest.mark.parametrize("cell", CASES)
def test_cpu_engine_needs_x_on_the_cpu(cell):
    case = CASES[cell]
    inputs = sample(case, torch.float32)
    with pytest.raises(ValueError) as error:
        outputs(case, inputs._replace(x=inputs.x.to("meta")), "cpu")
    assert str(error.value) == "engine: expected x on the CPU for 'cpu', got x on meta"


@pytest.mark.parametrize("engine", engines.ON_CUDA)
@pytest.mark.parametrize("cell", CASES)
def test_cuda_engine_needs_x_on_cuda(cell, engine):
    case = CASES[cell]
    inputs = sample(case, torch.float32)
    with pytest.raises(ValueError) as error:
        outputs(case, inputs, engine)
    assert str(error.value) == f"engine: expected x on CUDA for '{engine}', got x on cpu"
    op, arguments = op_arguments(case, inputs, engine=engine)
    with pytest.raises(RuntimeError) as error:
        op(*arguments)
    assert f"engine: expected auto or cpu for x on the CPU, got '{engine}'" in str(error.value)


def test_cuda_engine_needs_a_build_with_cuda(monkeypatch):
    monkeypatch.setattr(engines, "CUDA_BUILT", False)
    with FakeTensorMode(), pytest.raises(ValueError) as error:
        engines.resolve("grid", torch.empty(1, 1, 1, device="cuda"))
    assert str(error.value) == "engine: expected a build with CUDA for 'grid', got one without"


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_x_on_another_device_than_the_rest(engine):
    case = CASES["lstm"]
    inputs = sample(case, torch.float32)
    with pytest.raises(RuntimeError) as error:
        functional.lstm(inputs.x.to("meta"), inputs.h0, inputs.c0, inputs.weights, engine=engine)
    assert "h0: expected device meta as x, got cpu" in str(error.value)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("cell", KINDS)
def test_masks_that_are_no_layermasks(cell, engine):
    inputs = sample(CASES[cell], torch.float32)
    with pytest.raises(TypeError) as error:
        getattr(functional, cell)(
            inputs.x, *inputs.states(), inputs.weights, tuple(inputs.masks), engine=engine
        )
    assert str(error.value) == "masks: expected LayerMasks or None, got tuple"

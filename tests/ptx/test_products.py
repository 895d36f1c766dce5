"""The masked tensor-core products over all time steps against float64.

All numbers are small integers and powers of two, so every sum is exact in fp32 and a result must
be the exact one, rounded once: a term too many or too few shows in any dtype.
"""

from dataclasses import replace
from typing import NamedTuple

import cases
import layer
import machine
import pytest
import torch
from cases import Case, Inputs
from machine import Machine
from torch import Tensor

from bayesrnn_cuda.masks import LayerMasks

PRECISIONS = ("bfloat16", "float16", "tf32")
SLOTS_A = {"lstm": (0, 1, 2, 3), "gru": (1, 2, 0), "gru_reset_before": (0, 1, 2), "rnn": (0,)}
SLOTS_Q = {"lstm": (0, 1, 2, 3), "gru": (1, 2, 3), "gru_reset_before": (0, 1, 2), "rnn": (0,)}


class Problem(NamedTuple):
    """A layer with what forward left and the recurrence of backward made, in float64."""

    case: Case
    inputs: Inputs
    y: Tensor  # [T, B, H]
    gates: Tensor  # [T, B, G*H]
    dz: Tensor  # [T, B, slots*H]

    @property
    def outside(self) -> Tensor:
        """[T, B]"""
        T, B = self.case.T, self.case.B
        none = torch.zeros(T, B, dtype=torch.bool)
        return none if self.inputs.lengths is None else layer.outside(T, self.inputs.lengths)


def sample(case: Case, seed: int = 0) -> Problem:
    inputs = cases.sample(case, seed=seed)
    rng = torch.Generator().manual_seed(seed)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=rng).double()

    exact = {k: integers(*t.shape) for k, t in inputs.differentiable().items()}
    inputs = inputs.replace_tensors(exact)
    if inputs.masks is not None:
        inputs = inputs._replace(masks=inputs.masks._replace(scale_x=1.5, scale_h=0.75))
    T, B, H = case.T, case.B, case.H
    slots = max(SLOTS_Q[case.cell]) + 1
    gates = 2.0 ** torch.randint(-2, 1, (T, B, case.gates * H), generator=rng).double()
    problem = Problem(case, inputs, integers(T, B, H), gates, integers(T, B, slots * H))
    problem.dz[problem.outside] = 0
    return problem


def masked(problem: Problem, v: Tensor, keep: Tensor | None, scale: float) -> list[Tensor]:
    """What each gate sees of v [T, B, K]."""
    v = (v * scale).masked_fill(problem.outside.unsqueeze(2), 0)
    if keep is None:
        return [v] * problem.case.gates
    return [v * m for m in keep.expand(problem.case.gates, -1, -1)]


def slots_of(problem: Problem, table: dict[str, tuple]) -> list[Tensor]:
    """dz [T*B, H] of each gate."""
    slots = problem.dz.flatten(0, 1).split(problem.case.H, 1)
    return [slots[i] for i in table[problem.case.cell]]


def state_before(problem: Problem) -> Tensor:
    """[T, B, H]: h that each step starts from."""
    T, h0 = problem.case.T, problem.inputs.h0
    if problem.case.reverse:
        lengths = problem.inputs.lengths
        ends = torch.full((problem.case.B,), T) if lengths is None else lengths
        h = torch.cat([problem.y[1:], h0.unsqueeze(0)])
        starts = torch.arange(T).unsqueeze(1) == ends - 1
        h = torch.where(starts.unsqueeze(2), h0, h)
    else:
        h = torch.cat([h0.unsqueeze(0), problem.y[:-1]])
    resets = layer.resets_of(problem.case, problem.inputs)
    return h if resets is None else h.masked_fill(resets.unsqueeze(2), 0)


def expected(problem: Problem) -> dict[str, Tensor]:
    case, inputs = problem.case, problem.inputs
    masks = inputs.masks or LayerMasks()
    x = [v.flatten(0, 1) for v in masked(problem, inputs.x, masks.keep_x, masks.scale_x)]
    h = masked(problem, state_before(problem), masks.keep_h, masks.scale_h)
    h = [v.flatten(0, 1) for v in h]
    if case.cell == "gru_reset_before":
        h[2] = h[2] * problem.gates.flatten(0, 1)[:, : case.H]
    w = inputs.weights.weight_ih.chunk(case.gates)
    bias = torch.zeros(case.gates * case.H, dtype=torch.float64)
    if case.bias:
        bias_hh = inputs.weights.bias_hh.clone()
        if case.cell == "gru":
            bias_hh[2 * case.H :] = 0
        bias = inputs.weights.bias_ih + bias_hh
    da, dq = slots_of(problem, SLOTS_A), slots_of(problem, SLOTS_Q)
    ones = torch.ones_like(inputs.x)
    kept = [m.flatten(0, 1) for m in masked(problem, ones, masks.keep_x, masks.scale_x)]
    results = {
        "gates": torch.cat([x[k] @ w[k].T for k in range(case.gates)], 1) + bias,
        "dx": sum((da[k] @ w[k]) * kept[k] for k in range(case.gates)),
        "dweight_ih": torch.cat([da[k].T @ x[k] for k in range(case.gates)]),
        "dweight_hh": torch.cat([dq[k].T @ h[k] for k in range(case.gates)]),
    }
    if case.bias:
        results["dbias_ih"] = torch.cat([d.sum(0) for d in da])
        results["dbias_hh"] = torch.cat([d.sum(0) for d in dq])
    return results


def actual(machine: Machine, problem: Problem, precision: str) -> dict[str, Tensor]:
    """What the kernels make of the same numbers, with NaN wherever none may be read."""
    dtype = layer.DTYPES[precision]
    case, inputs = problem.case, with_nan_where_dropped(problem).to(dtype)
    memory = layer.Memory(machine, dtype)
    TB, GH = case.T * case.B, case.gates * case.H
    results = {
        "gates": memory.new("gates", TB, GH),
        "dx": memory.new("dx", TB, case.I),
        "dweight_ih": memory.new("dweight_ih", GH, case.I),
        "dweight_hh": memory.new("dweight_hh", GH, case.H),
    }
    if case.bias:
        results |= {k: memory.new(k, GH) for k in ("dbias_ih", "dbias_hh")}
    y = memory.copy("y", problem.y.to(dtype))
    layer.poison_outside(y, inputs.lengths)
    r, dz = (memory.copy(k, t.to(dtype)) for k, t in (("r", problem.gates), ("dz", problem.dz)))
    fields = layer.read_fields(case, inputs, memory)
    layer.products(machine, case, precision, fields | {"gates": results["gates"]})
    gradients = {k: t for k, t in results.items() if k != "gates"}
    layer.products(machine, case, precision, fields | {"y": y, "gates": r} | gradients, dz)
    return results


def with_nan_where_dropped(problem: Problem) -> Inputs:
    """x is NaN where no gate keeps it, h0 likewise."""
    inputs, masks = problem.inputs, problem.inputs.masks or LayerMasks()
    if masks.keep_x is not None:
        x = inputs.x.masked_fill(~masks.keep_x.any(0), torch.nan)
        inputs = inputs._replace(x=x)
    if masks.keep_h is not None:
        h0 = inputs.h0.masked_fill(~masks.keep_h.any(0), torch.nan)
        inputs = inputs._replace(h0=h0)
    return inputs


def differences(machine: Machine, case: Case, precision: str) -> list[str]:
    """A line for each result that is not the exact one, rounded."""
    problem = sample(case)
    results = actual(machine, problem, precision)
    lines = []
    for name, exact in expected(problem).items():
        wrong = results[name] != exact.float().to(results[name].dtype)
        if wrong.any():
            at = wrong.nonzero()[0].tolist()
            lines.append(f"{name}: {wrong.sum().item()} of {wrong.numel()} wrong, first at {at}")
    return lines


SMALL = Case("lstm", T=5, B=3, I=5, H=7)
EVERY = [
    replace(case, masks=masks, bias=not case.reverse, resets=("none", "random")[(i + j) % 2])
    for i, case in enumerate(cases.product(
        cell=cases.CELLS, T=(5,), B=(3,), I=(6,), H=(7,), lengths=(False, True),
        reverse=(False, True),
    ))
    for j, masks in enumerate(("none", "tied", "untied", "scaled"))
]  # fmt: skip
EVERY += [
    Case(cell, T=4, B=B, I=10, H=9, masks=masks, lengths=B > 0, reverse=True)
    for cell in cases.CELLS
    for masks in ("only_x", "only_h", "tied_x_untied_h", "all_dropped")
    for B in (0, 5)
]
MIXED = (("lstm", "untied", True), ("gru", "tied", True), ("gru_reset_before", "untied", False),
         ("gru", "untied", False))  # fmt: skip
# T, B, I, H: rows of 16 bytes, of 8, of 4, odd ones; one row; several tiles of rows, I, H, k
SIZES = [
    replace(SMALL, cell=cell, T=T, B=B, I=I, H=H, masks=masks, bias=bias, lengths=True,
            resets="random" if masks == "untied" else "none")
    for T, B, I, H in (  # noqa: E741
        (1, 1, 1, 1), (13, 5, 8, 16), (7, 9, 3, 70), (9, 20, 70, 6), (11, 6, 20, 12),
        (40, 5, 40, 24)
    )
    for cell, masks, bias in MIXED
]  # fmt: skip
# More than one tile along every dimension, whole and ragged.
WIDE = [
    Case("lstm", T=5, B=33, I=136, H=144, masks="untied"),
    Case("gru", T=3, B=50, I=131, H=130, masks="untied", lengths=True, reverse=True,
         resets="random"),
    Case("gru_reset_before", T=9, B=15, I=140, H=133, masks="tied", lengths=True),
]  # fmt: skip


# Whole large tiles, chosen where there are enough of them.
LARGE = Case("lstm", T=2, B=2048, I=512, H=256, masks="untied", lengths=True)


def numbered(listed: list[Case]):
    """Types take turns."""
    turns = [(case, PRECISIONS[i % 3]) for i, case in enumerate(listed)]
    return pytest.mark.parametrize(("case", "precision"), turns, ids=str)


@numbered(EVERY + SIZES + WIDE)
def test_products(engines, case, precision):
    assert not differences(engines, case, precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", EVERY + SIZES + WIDE, ids=str)
def test_products_in_every_type(engines, case, precision):
    assert not differences(engines, case, precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_tiles(engines, precision):
    engines.configure(races=False, yields=0.001)
    assert not differences(engines, LARGE, precision)
    assert "Li128ELi128E" in " ".join(engines.launched())  # Shape<128, 128, ..>


def test_many_rows_are_split(engines):
    case = Case("lstm", T=70, B=30, I=9, H=8, masks="untied")
    assert not differences(engines, case, "bfloat16")
    assert "sum_partials" in " ".join(engines.launched())


@pytest.mark.parametrize("schedule", machine.schedules(), ids=str)
def test_schedules(engines, schedule):
    engines.configure(**schedule, late_copies=0.7)
    for case, precision in zip(SIZES[-3:], PRECISIONS, strict=True):
        assert not differences(engines, case, precision)


@numbered(SIZES[-6:])
def test_rounding(engines, case, precision):
    """Numbers that are no integers: as near as operands and results of that type allow."""
    dtype = layer.own_dtype(precision)
    problem = sample(case)
    inputs = cases.sample(case).to(dtype).to(torch.float64)
    inputs = inputs._replace(masks=problem.inputs.masks)
    y, dz = (torch.randn(t.shape, dtype=torch.float64) for t in (problem.y, problem.dz))
    dz[problem.outside] = 0
    dz, y = (t.to(dtype).double() for t in (dz, y))
    problem = problem._replace(inputs=inputs, y=y, dz=dz)
    results = actual(engines, problem, precision)
    for name, exact in expected(problem).items():
        error = (results[name].double() - exact).norm()
        # A truncated tf32 operand would exceed it.
        assert error <= cases.EPS[dtype] / 2 * exact.norm(), name


# A wrong parameter: how a call is made wrong, and a result that this spoils.
WRONG_CALLS = {
    "mask of another gate": (lambda f: f["keep_x"].copy_(f["keep_x"].roll(1, 0)), "gates"),
    "another scale": (lambda f: f.update(scale_x=f["scale_x"] * 2), "dx"),
    "the other direction": (lambda f: f["y"].copy_(f["y"].flip(0)), "dweight_hh"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls_are_found(engines, monkeypatch, name):
    change, spoiled = WRONG_CALLS[name]
    right = layer.products

    def wrong(machine, case, precision, fields, dz=None):
        if (dz is None) == (spoiled == "gates"):
            change(fields)
        right(machine, case, precision, fields, dz)

    monkeypatch.setattr(layer, "products", wrong)
    case = Case("gru", T=9, B=5, I=24, H=16, masks="untied")
    found = differences(engines, case, "bfloat16")
    assert any(line.startswith(spoiled) for line in found), found

"""The masked tensor-core products over all time steps against float64.

All numbers are small integers and powers of two, so every sum is exact in fp32 and a result must
be the exact one, rounded once: a term too many or too few shows in any dtype.
"""

from dataclasses import replace
from typing import NamedTuple

import build
import cases
import layer
import pytest
import torch
from cases import Case, Inputs
from torch import Tensor

from bayesrnn_cuda.masks import LayerMasks

DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # float32: TF32
SLOTS_A = {"lstm": (0, 1, 2, 3), "gru": (1, 2, 0), "gru_reset_before": (0, 1, 2)}
SLOTS_Q = {"lstm": (0, 1, 2, 3), "gru": (1, 2, 3), "gru_reset_before": (0, 1, 2)}


# Members of Forward and Backward that the products leave alone.
OTHERS = (
    *("y", "h_n", "c_n", "gates", "saved", "dy", "dh_n", "dc_n", "dx", "dh0", "dc0"),
    *("dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh"),
)


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
    if not problem.case.reverse:
        return torch.cat([h0.unsqueeze(0), problem.y[:-1]])
    lengths = problem.inputs.lengths
    ends = torch.full((problem.case.B,), T) if lengths is None else lengths
    h = torch.cat([problem.y[1:], h0.unsqueeze(0)])
    starts = torch.arange(T).unsqueeze(1) == ends - 1
    return torch.where(starts.unsqueeze(2), h0, h)


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


def actual(problem: Problem, dtype: torch.dtype, module, tiles: str, splits: int) -> dict:
    """What the kernels make of the same numbers, with NaN wherever none may be read."""
    case, inputs = problem.case, with_nan_where_dropped(problem).to(dtype)
    memory = layer.Memory(dtype)
    TB, GH = case.T * case.B, case.gates * case.H
    results = {
        "gates": memory.new("gates", TB, GH),
        "dx": memory.new("dx", TB, case.I),
        "dweight_ih": memory.new("dweight_ih", GH, case.I),
        "dweight_hh": memory.new("dweight_hh", GH, case.H),
        "dbias_ih": memory.new("dbias_ih", GH) if case.bias else None,
        "dbias_hh": memory.new("dbias_hh", GH) if case.bias else None,
    }
    y = memory.copy("y", problem.y)
    layer.poison_outside(y, inputs.lengths)
    r, dz = memory.copy("r", problem.gates), memory.copy("dz", problem.dz)
    fields = dict.fromkeys(OTHERS) | layer.read_fields(case, inputs, memory)

    def call(run, given: dict[str, Tensor | None], *arguments: object) -> object:
        every = fields | given
        addresses = {k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in every.items()}
        return run(case.cell, str(dtype).removeprefix("torch."), addresses, tiles, *arguments)

    call(module.input_part, {"gates": results["gates"]})
    call(module.input_gradient, {"dx": results["dx"]}, dz.data_ptr())
    gradients = {k: t for k, t in results.items() if k.startswith(("dweight", "dbias"))}
    given = {"y": y, "gates": r} | gradients
    results["splits"] = call(module.weight_gradients, given, dz.data_ptr(), splits)
    memory.check()
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


def differences(
    case: Case, dtype: torch.dtype, module, tiles: str = "auto", splits: int = 1
) -> list[str]:
    """A line for each result that is not the exact one, rounded."""
    problem = sample(case)
    results = actual(problem, dtype, module, tiles, splits)
    lines = []
    for name, exact in expected(problem).items():
        wrong = results[name] != exact.float().to(dtype)
        if wrong.any():
            at = wrong.nonzero()[0].tolist()
            lines.append(f"{name}: {wrong.sum().item()} of {wrong.numel()} wrong, first at {at}")
    return lines


SMALL = Case("lstm", T=5, B=3, I=5, H=7)
EVERY = [
    replace(case, masks=masks, bias=not case.reverse)
    for case in cases.product(
        cell=cases.CELLS, T=(5,), B=(3,), I=(6,), H=(7,), lengths=(False, True),
        reverse=(False, True),
    )
    for masks in ("none", "tied", "untied", "scaled")
]  # fmt: skip
EVERY += [
    Case(cell, T=4, B=B, I=10, H=9, masks=masks, lengths=B > 0, reverse=True)
    for cell in cases.CELLS
    for masks in ("only_x", "only_h", "tied_x_untied_h", "all_dropped")
    for B in (0, 5)
]
MIXED = (("lstm", "untied", True), ("gru", "tied", True), ("gru_reset_before", "untied", False),
         ("gru", "untied", False))  # fmt: skip
SIZES = [  # T, B, I, H: 16-byte rows, pairs, odd ones; one row; several tiles of rows, I, H, k
    replace(SMALL, cell=cell, T=T, B=B, I=I, H=H, masks=masks, bias=bias, lengths=True)
    for T, B, I, H in (  # noqa: E741
        (1, 1, 1, 1), (13, 5, 8, 16), (7, 9, 3, 70), (9, 20, 70, 6), (40, 5, 40, 24)
    )
    for cell, masks, bias in MIXED
]  # fmt: skip
# More than one large tile along every dimension, whole and ragged.
WIDE = [
    Case("lstm", T=5, B=33, I=136, H=144, masks="untied"),
    Case("gru", T=3, B=50, I=131, H=130, masks="untied", lengths=True, reverse=True),
    Case("gru_reset_before", T=9, B=15, I=140, H=133, masks="tied", lengths=True),
]


@pytest.fixture(scope="module")
def products():
    module = build.module("bind_gate_gemm")
    module.configure()
    return module


dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@dtypes
@pytest.mark.parametrize("case", EVERY + SIZES, ids=str)
def test_products(products, case: Case, dtype: torch.dtype) -> None:
    assert not differences(case, dtype, products)


@dtypes
@pytest.mark.parametrize("case", EVERY[::5] + SIZES + WIDE, ids=str)
def test_large_tiles(products, case: Case, dtype: torch.dtype) -> None:
    assert not differences(case, dtype, products, "large")


@dtypes
@pytest.mark.parametrize("tiles", ("large", "small"))
@pytest.mark.parametrize("case", SIZES[-8:], ids=str)
def test_split_sums(products, case: Case, tiles: str, dtype: torch.dtype) -> None:
    assert not differences(case, dtype, products, tiles, splits=3)


def test_many_rows_are_split(products) -> None:
    """The choice of tiles and splits, through the public functions."""
    case = Case("lstm", T=70, B=30, I=9, H=8, masks="untied")
    problem = sample(case)
    assert actual(problem, torch.bfloat16, products, "auto", 0)["splits"] == 4
    assert not differences(case, torch.bfloat16, products)


@pytest.mark.parametrize("schedule", build.schedules(), ids=lambda s: s["schedule"])
@pytest.mark.parametrize("tiles", ("large", "small"))
def test_schedules(products, schedule: dict, tiles: str) -> None:
    products.configure(**schedule)
    try:
        for case, dtype in zip(SIZES[-3:], DTYPES, strict=True):
            assert not differences(case, dtype, products, tiles, splits=2)
    finally:
        products.configure()


@dtypes
@pytest.mark.parametrize("case", SIZES[-4:], ids=str)
def test_rounding(products, case: Case, dtype: torch.dtype) -> None:
    """Numbers that are no integers: as near as operands and results of that type allow."""
    problem = sample(case)
    inputs = cases.sample(case).to(dtype).to(torch.float64)
    inputs = inputs._replace(masks=problem.inputs.masks)
    y, dz = (torch.randn(t.shape, dtype=torch.float64) for t in (problem.y, problem.dz))
    dz[problem.outside] = 0
    dz, y = (t.to(dtype).double() for t in (dz, y))
    problem = problem._replace(inputs=inputs, y=y, dz=dz)
    eps = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    results = actual(problem, dtype, products, "auto", 1)
    for name, exact in expected(problem).items():
        error = (results[name].double() - exact).norm()
        assert error <= eps * exact.norm(), name  # a truncated tf32 operand would exceed it


BUGS = {  # and what it spoils, if not everything
    "no barrier": "",
    "no wait": "",
    "late wait": "",
    "mask of another gate": "gates",
    "another slot": "dx",
    "mask too late": "dx",
    "row of the wrong step": "dweight_hh",
    "a split too few": "dweight_ih",
}


@pytest.mark.parametrize("bug", ["none", *BUGS])
def test_seeded_bugs_are_found(bug: str) -> None:
    module = build.module("bind_gate_gemm_bugs")
    module.configure(schedule="random", seed=1)
    module.seed(bug)
    case = Case("gru", T=40, B=5, I=72, H=40, masks="untied")
    try:
        found = differences(case, torch.bfloat16, module, "small", splits=3)
    except build.EmulatorError as error:
        found = [f"{BUGS[bug]}: {error}"]
    assert bool(found) == (bug != "none"), found
    assert bug == "none" or any(line.startswith(BUGS[bug]) for line in found), found

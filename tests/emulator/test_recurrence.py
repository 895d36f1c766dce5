"""The persistent recurrence, forward and backward, against the reference: every cell, exchange,
dtype, kind of mask, direction and lengths, executed; and under random schedules with the race
detector, where every run must give the same bits.
"""

import functools
from dataclasses import dataclass

import build
import cases
import layer
import pytest
import torch
from cases import Case, Inputs
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # float32: TF32 tensor cores
SCHEDULES = 20


@dataclass(frozen=True)
class Cut:
    """How a recurrence is cut. Tilings: chunks of k, k warps, unit tiles of a block, looped."""

    name: str
    engine: str
    forward: tuple[int, int, int, bool]
    backward: tuple[int, int, int, bool]
    chunks: int  # of k that the layer has
    B: int = 5
    I: int = 5  # noqa: E741
    groups: int = 1  # of batch tiles
    fused_input: bool = False

    def __str__(self) -> str:
        return self.name

    def of(self, tiling: tuple[int, int, int, bool], dtype: torch.dtype, fused: bool) -> dict:
        """The argument of the binding. A block has a unit tile for each 16 units."""
        chunks, k_warps, unit_tiles, looped = tiling
        if self.engine == "block" and dtype == torch.float32:
            unit_tiles //= 2
        return {
            "engine": self.engine, "tiling": (chunks, k_warps, unit_tiles, int(looped)),
            "groups": self.groups, "fused_input": fused,
        }  # fmt: skip


def cut(name: str, engine: str, forward: tuple, backward: tuple | None = None, **sizes) -> Cut:
    return Cut(name, engine, forward, backward or forward, **sizes)


# What the whole matrix runs: small, both ways of every exchange.
CUTS = [
    cut("grid", "grid", (1, 2, 1, False), chunks=2),
    cut("grid_looped", "grid", (2, 2, 1, True), chunks=2, B=9),
    cut("flags", "grid_flags", (1, 2, 1, False), chunks=2),
    cut("block", "block", (1, 1, 2, False), chunks=1),
    cut("fused", "block", (1, 1, 2, False), chunks=1, fused_input=True),
    cut("cluster", "cluster", (1, 2, 2, False), chunks=2),
]
# Further shapes: tilings that a GPU runs, several groups of batch tiles, operands in pieces,
# warps whose slices of k overlap.
MORE_CUTS = [
    cut("grid_8_warps", "grid", (1, 8, 1, False), (1, 8, 1, True), chunks=3, B=9),
    cut("grid_in_pieces", "grid", (5, 2, 1, True), chunks=7),
    cut("grid_two_groups", "grid", (2, 2, 1, True), chunks=3, B=26, groups=2),
    cut("grid_too_wide", "grid", (2, 2, 1, True), chunks=1),
    cut("flags_looped", "grid_flags", (2, 2, 1, True), chunks=3, B=17),
    cut("block_2", "block", (2, 1, 4, False), chunks=2, B=9),
    cut("block_4", "block", (4, 1, 8, False), chunks=4),
    cut("fused_2", "block", (2, 1, 4, False), chunks=2, I=23, B=9, fused_input=True),
    cut("fused_aligned", "block", (1, 1, 2, False), chunks=1, I=24, fused_input=True),
    cut("cluster_of_2", "cluster", (1, 4, 2, False), chunks=4, B=9),
]


def module(variant: str | None = None):
    types = ("bfloat16", "float16", "tf32")
    sources = [f"tests/emulator/recurrence_{t}.cpp" for t in types]
    return build.module("bind_recurrence", "csrc/cuda/plan/plan.cpp", *sources, variant=variant)


@pytest.fixture(scope="module")
def kernels():
    return module()


def case_of(cut: Cut, dtype: torch.dtype, *, aligned: bool = False, **fields) -> Case:
    """H ends inside the last chunk; `aligned`: at its end."""
    units = 16 if dtype == torch.float32 else 32
    H = cut.chunks * units - (0 if aligned else 13)
    return Case(**{"T": 3, "B": cut.B, "I": cut.I, "H": H, **fields})


def run(kernels, cut: Cut, case: Case, inputs: Inputs, *, save: bool = True) -> dict[str, Tensor]:
    dtype = inputs.x.dtype
    forward = functools.partial(
        with_last, kernels.forward, cut.of(cut.forward, dtype, cut.fused_input)
    )
    backward = functools.partial(with_last, kernels.backward, cut.of(cut.backward, dtype, False))
    return layer.run(case, inputs, forward, backward, save=save)


def with_last(function, last, *arguments):
    return function(*arguments, last)


def differences(kernels, cut: Cut, case: Case, dtype: torch.dtype) -> list[str]:
    """Where the kernels disagree with the float64 reference: error at most twice what the reference
    itself has in that dtype. TF32 has float16's mantissa, so it is held to float16's error."""
    own_dtype = torch.float16 if dtype == torch.float32 else dtype
    samples = [cases.sample(case, own_dtype, seed) for seed in range(2)]
    return cases.low_precision_differences(
        [run(kernels, cut, case, inputs.to(dtype)) for inputs in samples],
        [cases.run(case, inputs, "reference") for inputs in samples],
        [cases.run(case, inputs.to(torch.float64), "reference") for inputs in samples],
        own_dtype,
    )


def matrix(test):
    """Every cell, dtype, kind of mask, direction and lengths."""
    for name, values in {
        "lengths": (False, True),
        "reverse": (False, True),
        "masks": ("none", "tied", "untied"),
        "dtype": DTYPES,
        "cell": ("lstm", "gru"),
    }.items():
        ids = layer_id if name == "dtype" else None
        test = pytest.mark.parametrize(name, values, ids=ids)(test)
    return test


def layer_id(dtype: torch.dtype) -> str:
    return "tf32" if dtype == torch.float32 else str(dtype).removeprefix("torch.")


@matrix
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_matches_reference(kernels, cut, cell, dtype, masks, reverse, lengths):
    case = case_of(cut, dtype, cell=cell, masks=masks, reverse=reverse, lengths=lengths)
    kernels.configure()
    assert not differences(kernels, cut, case, dtype)


@pytest.mark.parametrize("masks", ("tied", "untied"))
@pytest.mark.parametrize("dtype", DTYPES, ids=layer_id)
@pytest.mark.parametrize("cell", ("lstm", "gru"))
@pytest.mark.parametrize("cut", MORE_CUTS, ids=str)
def test_other_tilings_match_reference(kernels, cut, cell, dtype, masks):
    aligned = cut.name == "fused_aligned"
    case = case_of(cut, dtype, aligned=aligned, cell=cell, masks=masks, lengths=True, T=4)
    kernels.configure(schedule="random", seed=5, yields=0.05)
    assert not differences(kernels, cut, case, dtype)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("cell", ("lstm", "gru"))
@pytest.mark.parametrize(
    "fields",
    (
        {"T": 1},
        {"bias": False},
        {"masks": "all_dropped"},
        {"masks": "scaled"},
        {"loss_of": ("y",)},
        {"loss_of": ("h_n",)},
        {"frozen": ("x",)},
        {"B": 1},
    ),
    ids=lambda f: "-".join(map(str, f)),
)
def test_variations_match_reference(kernels, cut, cell, fields):
    kernels.configure()
    case = case_of(cut, torch.float32, cell=cell, **fields)
    assert not differences(kernels, cut, case, torch.float32)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_forward_without_saving_gives_the_same(kernels, cut, cell):
    kernels.configure()
    case = case_of(cut, torch.bfloat16, cell=cell, lengths=True)
    inputs = cases.sample(case, torch.bfloat16)
    saving = run(kernels, cut, case, inputs)
    for name, value in run(kernels, cut, case, inputs, save=False).items():
        assert torch.equal(value, saving[name]), name


@pytest.mark.parametrize("where", ("h0", "x", "weight_hh"))
@pytest.mark.parametrize("value", (torch.nan, torch.inf), ids=("nan", "inf"))
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_nan_and_inf_stall_nobody(kernels, cut, where, value):
    """No result can look like an empty slot. A NaN reaches what it reaches in the reference."""
    case = case_of(cut, torch.float16, cell="lstm", masks="untied", T=4)
    inputs = cases.sample(case, torch.float16)
    getattr(inputs.weights if where == "weight_hh" else inputs, where)[..., 1] = value
    if where == "h0" and value != value:  # the bits that mean "not there yet"
        inputs.h0.view(torch.int16)[..., 1] = -1
    kernels.configure(schedule="random", seed=1)
    results = run(kernels, cut, case, inputs)
    expected = cases.run(case, inputs.to(torch.float64), "reference")
    for name in ("y", "h_n", "c_n"):
        assert torch.equal(results[name].isnan(), expected[name].isnan()), name


@matrix
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_every_schedule_gives_the_same_bits_and_no_race(cut, cell, dtype, masks, reverse, lengths):
    """20 random schedules each, all accesses of the kernels watched."""
    kernels = module("race" if build.current_variant() == "plain" else None)
    case = case_of(cut, dtype, cell=cell, masks=masks, reverse=reverse, lengths=lengths)
    inputs = cases.sample(case, dtype)
    kernels.configure()
    expected = run(kernels, cut, case, inputs)
    for seed in range(SCHEDULES):
        schedule = ("random", "block_priority")[seed % 2]
        kernels.configure(schedule=schedule, seed=seed, yields=0.02)
        for name, value in run(kernels, cut, case, inputs).items():
            assert torch.equal(value, expected[name]), f"{name}, seed {seed}"


def test_blocks_that_wait_for_each_other_must_be_resident(kernels):
    cut = CUTS[0]
    case = case_of(cut, torch.bfloat16, cell="lstm")
    kernels.configure(resident_blocks=3)
    with pytest.raises(build.EmulatorError, match="cooperative"):
        run(kernels, cut, case, cases.sample(case, torch.bfloat16))


# ---- the harness can fail


def bug_names() -> tuple[str, ...]:
    return (
        "missing mask",
        "mask of another gate",
        "lengths off by one",
        "no barrier before the sum over warps",
        "one buffer of sums",
        "data not awaited",
        "data in a ring, not refilled",
        "data published in halves",
        "no barrier before the release",
        "flag of the step before",
        "one slot, flags",
        "no block barrier",
        "one slot, block",
        "block barrier in a cluster",
        "cluster not started",
        "one slot, cluster",
    )


def findings(bug: str, variant: str) -> set[str]:
    """What twelve schedules of a seeded bug show."""
    kernels = build.module("bind_seeded_bugs", "csrc/cuda/plan/plan.cpp", variant=variant)
    case = Case("lstm", T=6, B=7, I=3, H=51, lengths=True)
    inputs = cases.sample(case, torch.bfloat16)
    exact = [cases.run(case, inputs.to(torch.float64), "reference")]
    own = [cases.run(case, inputs, "reference")]
    found = set()
    for schedule in build.schedules(seeds=6):
        kernels.configure(**schedule)
        try:
            results = layer.run(
                case, inputs, lambda cell, dtype, fields: kernels.forward(bug, fields), None,
                save=False,
            )  # fmt: skip
        except build.EmulatorError as error:
            found.add(str(error).split(":")[0])
            continue
        exact_outputs = [{k: exact[0][k] for k in results}]
        own_outputs = [{k: own[0][k] for k in results}]
        if cases.low_precision_differences([results], own_outputs, exact_outputs, torch.bfloat16):
            found.add("wrong numbers")
    return found


@pytest.mark.parametrize("bug", bug_names())
def test_seeded_bug_is_found(bug):
    assert findings(bug, "plain") | findings(bug, "race")


@pytest.mark.parametrize("variant", ("plain", "race"))
@pytest.mark.parametrize("engine", ("grid", "grid_flags", "block", "cluster"))
def test_without_a_bug_nothing_is_found(engine, variant):
    assert not findings(f"none, {engine}", variant)

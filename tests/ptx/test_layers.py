"""Whole layers through the host code and the kernels that ship, forward and backward, against the
reference in float64: every cell, engine, dtype, kind of mask, direction and lengths, with all
accesses watched for races.
"""

import itertools
from dataclasses import replace

import cases
import layer
import pytest
import torch
from cases import Case, Inputs
from layer import How

TYPES = ("bfloat16", "float16", "tf32")  # that have kernels of their own
WAYS = ((False, False), (True, False), (True, True), (False, True))  # lengths, reverse
GRID = (1, 8, 1, False)


def narrow(H: int, precision: str) -> int:
    """Chunks of k have half the units in tf32."""
    return max(1, H // 2) if precision == "tf32" else H


# Name: engine, H in 16 bit, I, B, and what else is special. `few` multiprocessors: the grid loops
# over batch tiles.
ENGINES = {
    "grid": ("grid", 45, 24, 5, False),
    "looped": ("grid", 72, 24, 17, True),
    "flags": ("grid_flags", 100, 23, 5, False),
    "block": ("block", 51, 80, 9, False),
    "fused": ("block", 64, 37, 5, False),
    "block_wide": ("block", 115, 8, 3, False),
    "cluster": ("cluster", 128, 16, 9, False),
    "stepwise": ("stepwise", 37, 24, 5, False),
}


def case_of(name: str, cell: str, precision: str, masks: str, **fields) -> tuple[Case, How]:
    engine, H, I, B, few = ENGINES[name]  # noqa: E741
    H = narrow(H, precision)
    if name == "fused":
        I = narrow(I, precision)  # noqa: E741
    how = How(engine, multiprocessors=(H + 15) // 16 + 1 if few else 0)
    return Case(cell, **{"T": 3, "B": B, "I": I, "H": H, "masks": masks} | fields), how


def combinations():
    """Cells and masks of every engine and type; direction and lengths take turns."""
    every = itertools.product(ENGINES, cases.CELLS, TYPES, ("none", "tied", "untied"))
    for i, (name, cell, precision, masks) in enumerate(every):
        if name != "stepwise" and (cell, precision) not in layer.KERNELS:
            continue  # stepwise alone has it
        yield name, cell, precision, masks, *WAYS[i % 4]


COMBINATIONS = list(combinations())


def check(engines, name, cell, precision, masks, lengths, reverse, **fields) -> None:
    case, how = case_of(name, cell, precision, masks, lengths=lengths, reverse=reverse, **fields)
    made: list[layer.Run] = []
    assert not layer.differences(engines, case, precision, how, made)
    planned, kernels = made[0].plans[0]["forward"], " ".join(made[0].kernels)
    assert planned["engine"] == how.engine
    assert planned.get("fused_input", False) == (name == "fused")
    assert planned.get("looped", False) == (name == "looped")
    if how.engine != "stepwise":
        assert "forward_kernel" in kernels
    if how.engine not in ("stepwise", "cluster"):  # a cluster has no backward of its own
        assert "backward_kernel" in kernels


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(map(str, c)))
def test_matches_reference(engines, combination):
    check(engines, *combination)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(map(str, c)))
def test_every_combination_matches_reference(engines, combination, way):
    check(engines, *combination[:4], *way)


PLAIN = [
    (cell, precision, masks, *WAYS[i % 4])
    for i, (cell, precision, masks) in enumerate(
        itertools.product(cases.CELLS, ("float32", "float64"), ("none", "tied", "untied"))
    )
]


@pytest.mark.parametrize("combination", PLAIN, ids=lambda c: "-".join(map(str, c)))
def test_types_without_tensor_cores(engines, combination):
    check(engines, "stepwise", *combination)


VARIATIONS = (
    {"T": 1},
    {"bias": False},
    {"masks": "all_dropped"},
    {"masks": "scaled"},
    {"loss_of": ("y",)},
    {"loss_of": ("h_n",)},
    {"frozen": ("x",)},
    {"B": 1},
)


@pytest.mark.parametrize("fields", VARIATIONS, ids=lambda f: "-".join(map(str, f)))
@pytest.mark.parametrize("name", ("grid", "fused", "stepwise"))
def test_variations_match_reference(engines, name, fields):
    i = VARIATIONS.index(fields)
    case, how = case_of(name, ("lstm", "gru")[i % 2], TYPES[i % 3], "untied", lengths=i % 2 == 0)
    case = Case(**vars(case) | fields)
    assert not layer.differences(engines, case, TYPES[i % 3], how)


# ---- resets

# Where segments begin takes turns too.
KINDS = ("random", "first", "random", "last", "every", "random", "nowhere")
RESETTING = [(*c, kind) for c, kind in zip(COMBINATIONS[2::5], itertools.cycle(KINDS))]


def test_resetting_combinations_have_everything():
    *columns, kinds = zip(*RESETTING, strict=True)
    assert list(map(set, columns)) == list(map(set, zip(*COMBINATIONS, strict=True)))
    assert set(kinds) == set(cases.RESETS)


@pytest.mark.parametrize("combination", RESETTING, ids=lambda c: "-".join(map(str, c)))
def test_resets_match_reference(engines, combination):
    check(engines, *combination[:-1], resets=combination[-1], T=5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", cases.RESETS)
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(map(str, c)))
def test_every_combination_resets_as_the_reference(engines, combination, kind):
    check(engines, *combination, resets=kind, T=5)


@pytest.mark.parametrize("kind", cases.RESETS)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_resets_of_types_without_tensor_cores(engines, cell, kind):
    i = cases.CELLS.index(cell) + cases.RESETS.index(kind)
    masks = ("none", "tied", "untied")[i % 3]
    check(engines, "stepwise", cell, "float64", masks, *WAYS[i % 4], resets=kind)


@pytest.mark.parametrize("cell", ("lstm", "gru", "rnn"))
@pytest.mark.parametrize("name", ENGINES)
def test_nan_ends_with_its_segment(engines, name, cell):
    """Neither a state nor a gradient of one segment reaches another, not even as 0 * NaN."""
    case, how = case_of(name, cell, "bfloat16", "untied", T=4, resets="random")
    inputs = cases.sample(case, torch.bfloat16)
    inputs.resets.copy_(torch.arange(case.T).unsqueeze(1) == 2)
    inputs.x[1] = torch.nan
    made = layer.run(engines, case, "bfloat16", inputs, how).results
    assert made["y"][1].isnan().all()
    assert not made["y"][2:].isnan().any() and not made["h_n"].isnan().any()
    inputs.x[1] = 0
    inputs.cotangents["y"][2] = torch.nan
    made = layer.run(engines, case, "bfloat16", inputs, how).results
    assert made["d_x"][2].isnan().any() and not made["d_x"][:2].isnan().any()
    assert not made["d_h0"].isnan().any()


# ---- a grid in several launches


@pytest.mark.parametrize("T", (1, 5, 6, 7))
@pytest.mark.parametrize("name", ("grid", "looped"))
@pytest.mark.parametrize(("cell", "precision"), layer.KERNELS)
def test_launches_of_some_steps_give_the_same_bits(engines, cell, precision, name, T):
    """What goes from one to the next is as wide as registers are."""
    lengths, reverse = WAYS[T % 4]
    masks = ("none", "tied", "untied")[(T + layer.KERNELS.index((cell, precision))) % 3]
    case, how = case_of(
        name, cell, precision, masks, T=T, lengths=lengths, reverse=reverse, resets="random"
    )
    inputs = cases.sample(case, layer.DTYPES[precision])
    whole = layer.run(engines, case, precision, inputs, how)
    cut = layer.run(engines, case, precision, inputs, replace(how, grid_steps=3))
    for passes in ("forward", "backward"):
        assert cut.plans[0][passes]["steps"] == {1: 1, 5: 3, 6: 3, 7: 3}[T]
        assert whole.plans[0][passes]["steps"] == T
    extra = 2 * ((T + 2) // 3 - 1)
    assert len(cut.kernels) == len(whole.kernels) + extra
    for key, value in cut.results.items():
        assert torch.equal(value, whole.results[key]), key


def test_launches_of_some_steps_match_the_reference(engines):
    case, how = case_of("grid", "gru", "bfloat16", "untied", T=7, lengths=True, resets="random")
    assert not layer.differences(engines, case, "bfloat16", replace(how, grid_steps=2))


@pytest.mark.parametrize("name", ("grid", "looped"))
def test_launches_wait_for_what_is_published_again(engines, name):
    case, how = case_of(name, "lstm", "bfloat16", "untied", T=5, lengths=True, resets="random")
    inputs = cases.sample(case, torch.bfloat16)
    same_bits(engines, case, "bfloat16", replace(how, grid_steps=2), inputs, range(5))


def test_launches_of_some_steps_take_less_memory(engines):
    """Slots of 4 steps, and backward of the one before, not of 40. The units fill 2 chunks."""
    case, how = case_of("grid", "lstm", "bfloat16", "untied", T=40)
    inputs = cases.sample(case, torch.bfloat16)
    whole = layer.run(engines, case, "bfloat16", inputs, how)
    cut = layer.run(engines, case, "bfloat16", inputs, replace(how, grid_steps=4))
    for planes, all_steps, some in zip((1, 4), whole.scratch, cut.scratch, strict=True):
        left = 2 * case.B * case.H * 4
        stages = (40 - 4 - (planes > 1)) * planes * 1024
        assert stages - left - 512 < all_steps - some < stages


# ---- sizes

SIZES = ((1, 1, 1, 1), (2, 3, 7, 17), (3, 17, 33, 47), (3, 9, 130, 66), (6, 2, 2, 34))  # T, B, I, H


@pytest.mark.parametrize("engine", ("grid", "stepwise"))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(engines, size, engine):
    T, B, I, H = size  # noqa: E741
    i = SIZES.index(size)
    case = Case(("lstm", "gru")[i % 2], T, B, I, H, masks="untied", lengths=i % 2 == 0)
    assert not layer.differences(engines, case, TYPES[i % 3], How(engine))


@pytest.mark.parametrize(("name", "cell"), dict.fromkeys(c[:2] for c in COMBINATIONS))
def test_forward_without_saving_gives_the_same(engines, name, cell):
    case, how = case_of(name, cell, "bfloat16", "untied", lengths=True)
    inputs = cases.sample(case, torch.bfloat16)
    saving = layer.run(engines, case, "bfloat16", inputs, how).results
    for key, value in layer.run(engines, case, "bfloat16", inputs, how, save=False).results.items():
        assert torch.equal(value, saving[key]), key


@pytest.mark.parametrize("where", ("h0", "x", "weight_hh"))
@pytest.mark.parametrize("value", (torch.nan, torch.inf), ids=("nan", "inf"))
@pytest.mark.parametrize("name", ("grid", "looped", "flags", "block", "cluster"))
def test_nan_and_inf_stall_nobody(engines, name, where, value):
    """No result can look like an empty stage. A NaN reaches what it reaches in the reference."""
    case, how = case_of(name, "lstm", "float16", "untied", T=4)
    inputs = cases.sample(case, torch.float16)
    getattr(inputs.weights if where == "weight_hh" else inputs, where)[..., 1] = value
    if where == "h0" and value != value:  # the bits that mean "not there yet"
        inputs.h0.view(torch.int16)[..., 1] = -1
    engines.configure(schedule="random", seed=1)
    results = layer.run(engines, case, "float16", inputs, how).results
    expected = cases.run(case, inputs.to(torch.float64), "reference")
    for key in ("y", "h_n", "c_n"):
        assert torch.equal(results[key].isnan(), expected[key].isnan()), key


# ---- schedules

WAITING = ("grid", "looped", "flags", "cluster", "block")


def same_bits(engines, case: Case, precision: str, how: How, inputs: Inputs, seeds: range) -> None:
    """Every schedule gives what the first one gave, and no race."""
    engines.configure()
    expected = layer.run(engines, case, precision, inputs, how).results
    for seed in seeds:
        engines.configure(
            schedule=("random", "block_ahead")[seed % 2], seed=seed + 1,
            yields=(0.02, 0.1)[seed // 2 % 2], delays=(0.0, 0.4)[seed % 3 > 0],
            late_copies=(1.0, 0.6)[seed % 2],
        )  # fmt: skip
        for key, value in layer.run(engines, case, precision, inputs, how).results.items():
            assert torch.equal(value, expected[key]), f"{key}, seed {seed}"


def schedules_of(engines, name: str, cell: str, precision: str, seeds: range) -> None:
    case, how = case_of(
        name, cell, precision, "untied", lengths=True, B=5 if name != "looped" else 17,
        resets="random",
    )  # fmt: skip
    same_bits(engines, case, precision, how, cases.sample(case, layer.DTYPES[precision]), seeds)


@pytest.mark.parametrize("name", WAITING)
def test_schedules_give_the_same_bits_and_no_race(engines, name):
    i = WAITING.index(name)
    schedules_of(engines, name, ("lstm", "gru")[i % 2], TYPES[i % 3], range(5))


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "precision"), layer.KERNELS)
@pytest.mark.parametrize("name", WAITING)
def test_twenty_schedules_give_the_same_bits_and_no_race(engines, name, cell, precision):
    schedules_of(engines, name, cell, precision, range(20))


def test_schedules_of_products(engines):
    """Several tiles and splits of k, asynchronous copies early and late."""
    case = Case("lstm", T=8, B=17, I=72, H=40, masks="untied", lengths=True, resets="random")
    same_bits(
        engines, case, "bfloat16", How("stepwise"), cases.sample(case, torch.bfloat16), range(4)
    )


# ---- other architectures and devices


# Every fifth: an engine has 21 and the ways are 4, so cells, types, masks and ways mix.
SOME = COMBINATIONS[::5]


def test_some_combinations_have_everything():
    for column, names in enumerate(zip(*COMBINATIONS, strict=True)):
        assert {c[column] for c in SOME} == set(names)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ("80", "100", "120"))
@pytest.mark.parametrize("combination", SOME, ids=lambda c: "-".join(map(str, c)))
def test_other_architectures(machines, arch, combination):
    if arch == "80" and combination[0] == "cluster":
        with pytest.raises(RuntimeError, match=r"compute capability of at least 9\.0"):
            check(machines(arch), *combination)
    else:
        check(machines(arch), *combination)

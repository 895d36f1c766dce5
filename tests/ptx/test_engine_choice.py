"""Which engine runs where blocks that wait for each other find no room at the same time, or are
refused by the driver; and lengths that nobody has checked, because they lie on the device."""

import re

import layer
import pytest
import torch
from cases import Case, sample
from layer import How
from machine import Machine

CELLS = [cell for cell, precision in layer.KERNELS if precision == "bfloat16"]
ENGINES = ("block", "cluster", "grid", "grid_flags", "stepwise")


@pytest.fixture(scope="module")
def hopper():
    return Machine("90a")


@pytest.fixture
def device(hopper):
    """Sets what the device has, for one test."""
    hopper.launched()
    yield hopper.device
    hopper.device()


def narrow(cell: str, **options) -> Case:
    return Case(cell, T=4, B=5, I=8, H=48, **options)


def run(hopper, case: Case, engine: str) -> layer.Run:
    return layer.run(hopper, case, "bfloat16", sample(case, torch.bfloat16), How(engine))


def steps(kernels: list[str]) -> set[str]:
    """Which of the launched kernels make the recurrence, by engine and direction."""
    patterns = {
        "stepwise forward": "stepwise6update",
        "stepwise backward": "stepwise14gate_gradients",
        "persistent forward": "14forward_kernel",
        "persistent backward": "15backward_kernel",
    }
    return {name for name, text in patterns.items() if any(text in k for k in kernels)}


def differences(hopper, case: Case, engine: str) -> tuple[list[str], set[str], list[str]]:
    """What is wrong, what ran, and what was planned for forward and backward."""
    made: list[layer.Run] = []
    wrong = layer.differences(hopper, case, "bfloat16", How(engine), made)
    forward, backward = made[0].plans
    planned = [forward["forward"]["engine"], backward["backward"]["engine"]]
    return wrong, steps([k for run in made for k in run.kernels]), planned


# ---- Where the blocks of an engine do not run at the same time

LACKS = ({"refuses_cooperation": 1}, {"nothing_fits": True})
NAMES = ["a launch that is refused", "no room"]


@pytest.mark.parametrize("lack", LACKS, ids=NAMES)
@pytest.mark.parametrize("cell", CELLS)
def test_auto_goes_on_as_stepwise(hopper, device, cell, lack):
    case = Case(cell, T=3, B=5, I=80, H=272)
    device(**lack)
    assert differences(hopper, case, "auto") == (
        [],
        {"stepwise forward", "stepwise backward"},
        ["grid", "grid"],
    )


@pytest.mark.parametrize("engine", ["cluster", "grid", "grid_flags"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_named_engine_that_has_no_room_says_so(hopper, device, cell, engine):
    device(nothing_fits=True)
    with pytest.raises(RuntimeError) as caught:
        run(hopper, narrow(cell), engine)
    room = r"room for (a cluster of )?\d+ blocks at the same time"
    kernel = rf"forward kernel for {engine}, {cell}, \d chunks, \d k warps, \d unit tiles"
    pattern = rf"engine: expected {room} for '{engine}' \({kernel}\), got room for (0|none)"
    assert re.fullmatch(pattern, str(caught.value)), caught.value
    assert not steps(hopper.launched())


@pytest.mark.parametrize("engine", ["grid", "grid_flags"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_named_engine_that_the_driver_refuses_says_so(hopper, device, cell, engine):
    device(refuses_cooperation=1)
    with pytest.raises(RuntimeError) as caught:
        run(hopper, narrow(cell), engine)
    kernel = rf"forward kernel for {engine}, {cell}, \d chunks, \d k warps, \d unit tiles"
    pattern = (
        rf"engine: expected a launch of \d+ x \d+ blocks for '{engine}' \({kernel}\), "
        r"got '.*too many blocks in cooperative launch.*' from the driver"
    )
    assert re.fullmatch(pattern, str(caught.value)), caught.value
    assert not steps(hopper.launched())


LATE = Case("lstm", T=6, B=5, I=8, H=800)  # "auto" takes the grid, in three launches a pass


@pytest.mark.parametrize("engine", ("auto", "grid"))
def test_forward_that_is_refused_after_some_steps_says_so(hopper, device, engine):
    """Stepwise would not find the input part in `gates` any more."""
    device(refuses_cooperation=3)
    with pytest.raises(RuntimeError) as caught:
        layer.run(hopper, LATE, "bfloat16", sample(LATE, torch.bfloat16), How(engine, grid_steps=2))
    pattern = (
        r"engine: expected a launch of \d+ x 1 blocks for 'grid' \(forward kernel .*\), "
        r"got '.*too many blocks.*' from the driver after 4 steps"
    )
    assert re.fullmatch(pattern, str(caught.value)), caught.value


def test_forward_that_saves_nothing_is_refused_and_goes_on_as_stepwise(hopper, device):
    inputs = sample(LATE, torch.bfloat16)
    expected = layer.run(hopper, LATE, "bfloat16", inputs, How("stepwise"), save=False)
    device(refuses_cooperation=3)
    made = layer.run(hopper, LATE, "bfloat16", inputs, How(grid_steps=2), save=False)
    assert steps(made.kernels) == {"persistent forward", "stepwise forward"}
    for name, value in made.results.items():
        assert torch.equal(value, expected.results[name]), name


def test_backward_that_is_refused_after_some_steps_goes_on_as_stepwise(hopper, device):
    made: list[layer.Run] = []
    device(refuses_cooperation=6)
    wrong = layer.differences(hopper, LATE, "bfloat16", How(grid_steps=2), made)
    assert not wrong
    assert "stepwise backward" in steps([k for run in made for k in run.kernels])


@pytest.mark.parametrize("cell", CELLS)
def test_block_waits_for_nobody(hopper, device, cell):
    device(refuses_cooperation=1, nothing_fits=True)
    wrong, ran, _ = differences(hopper, narrow(cell), "block")
    assert (wrong, ran) == ([], {"persistent forward", "persistent backward"})


@pytest.mark.parametrize("cell", [cell for cell, precision in layer.KERNELS if precision == "tf32"])
def test_a_cluster_of_one_block_runs_as_one(hopper, cell):
    """CUDA answers with an error where it is asked for room and no size of clusters is named."""
    case = Case(cell, T=3, B=5, I=8, H=20)
    inputs = sample(case, torch.float32)
    made = layer.run(hopper, case, "tf32", inputs, How("cluster"), save=False)
    plan = made.plans[0]["forward"]
    assert (plan["engine"], plan["blocks"]) == ("cluster", [1, 1])
    assert steps(made.kernels) == {"persistent forward"}
    expected = layer.run(hopper, case, "float32", inputs, How("stepwise"), save=False)
    for name, value in made.results.items():
        torch.testing.assert_close(value, expected.results[name], atol=2e-3, rtol=2e-3)


# ---- Lengths outside of 0..T


@pytest.mark.parametrize("reverse", [False, True], ids=["forward in time", "reverse"])
@pytest.mark.parametrize(
    ("cell", "engine"),
    [*((cell, engine) for cell in CELLS for engine in ENGINES), ("gru_reset_before", "stepwise")],
)
def test_lengths_are_clamped(hopper, cell, engine, reverse):
    """To the bits of lengths in 0..T, and with no access outside of what was given. 2**33 + 1 is 1
    where somebody cuts it to 32 bits."""
    case = narrow(cell, lengths=True, reverse=reverse, masks="tied" if reverse else "untied")
    inputs = sample(case, torch.bfloat16)
    wild = torch.tensor([99, 2**33 + 1, -3, 2, -(2**33) + 3])
    results = [
        layer.run(hopper, case, "bfloat16", inputs._replace(lengths=lengths), How(engine)).results
        for lengths in (wild, wild.clamp(0, case.T))
    ]
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name

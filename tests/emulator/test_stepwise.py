"""Stepwise and the library products, a whole layer together, against the reference."""

from dataclasses import replace

import build
import cases
import layer
import pytest
import torch
from cases import CELLS, Case

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

# Several blocks of units, several stretches of rows in the bias sums.
LARGE = [
    *cases.product(cell=CELLS, T=(3,), B=(2,), I=(140,), H=(150,), masks=("untied", "tied")),
    *cases.product(
        cell=CELLS, T=(40,), B=(5,), I=(3,), H=(5,), lengths=(False, True), reverse=(False, True)
    ),
]
SMALL = [case for case in cases.sizes_and_masks() if case.T == 7 and case.H < 30]


@pytest.fixture(scope="module")
def stepwise():
    return build.module("bind_stepwise")


@pytest.mark.parametrize("case", cases.sizes_and_masks() + cases.variations() + LARGE, ids=str)
def test_float64_matches_reference(stepwise, case):
    assert not layer.parity(case, torch.float64, stepwise.forward, stepwise.backward)


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", SMALL + LARGE[::3], ids=str)
def test_other_dtypes_match_reference(stepwise, case, dtype):
    assert not layer.parity(case, dtype, stepwise.forward, stepwise.backward)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("lengths", (False, True))
def test_forward_without_saving_gives_the_same(stepwise, cell, lengths):
    case = Case(cell, lengths=lengths)
    inputs = cases.sample(case, torch.float32)
    saving = layer.run(case, inputs, stepwise.forward, stepwise.backward)
    for name, value in layer.run(case, inputs, stepwise.forward, None, save=False).items():
        assert torch.equal(value, saving[name]), name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masks", ("untied", "tied"))
def test_dropped_nan_reaches_nothing(stepwise, cell, masks):
    case = Case(cell, masks=masks, lengths=True)
    inputs = cases.sample(case, torch.float64)
    for keep in inputs.masks[:2]:
        keep[..., 2] = False
    inputs.x[..., 2] = torch.nan
    if cell == "lstm":  # h0 is nothing but an operand; a GRU carries it, a length of 0 returns it
        inputs.h0[inputs.lengths > 0, 2] = torch.nan
    expected = cases.run(case, inputs, "reference")
    actual = layer.run(case, inputs, stepwise.forward, stepwise.backward)
    assert not cases.differences(actual, expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masks", ("none", "untied"))
def test_a_step_is_one_product_or_two(stepwise, cell, masks):
    case = Case(cell, masks=masks)
    products = {}

    def counted(name):
        def call(*arguments):
            products[name] = getattr(stepwise, name)(*arguments)

        return call

    layer.run(case, cases.sample(case), counted("forward"), counted("backward"))
    each = case.T * (2 if cell == "gru_reset_before" else 1)
    assert products == {"forward": each, "backward": each}


@pytest.mark.parametrize("cell", CELLS)
def test_no_steps_pass_the_state_on(stepwise, cell):
    case = Case(cell, T=0)
    inputs = cases.sample(replace(case, T=1))
    inputs = inputs._replace(
        x=inputs.x[:0], cotangents=inputs.cotangents | {"y": inputs.cotangents["y"][:0]}
    )
    results = layer.run(case, inputs, stepwise.forward, stepwise.backward)
    assert torch.equal(results["h_n"], inputs.h0)
    assert torch.equal(results["d_h0"], inputs.cotangents["h_n"])
    assert not results["d_weight_hh"].any() and not results["d_bias_ih"].any()

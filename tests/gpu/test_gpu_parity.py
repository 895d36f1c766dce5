"""Every CUDA engine against the float64 reference: outputs and every gradient."""

import cases
import pytest
import torch
from cases import CELLS, Case
from gpu_layers import BFLOAT16, PRECISIONS, Precision, parity, real, refusal, takers


def spread(over: list[Case]) -> list[tuple[Case, Precision]]:
    """Every case in bfloat16, and dealt out to the other precisions, each a quarter."""
    others = [p for p in PRECISIONS if p is not BFLOAT16]
    return [pair for i, c in enumerate(over) for pair in ((c, BFLOAT16), (c, others[i % 4]))]


SMALL = [c for c in cases.sizes_and_masks() if c.T != 2] + cases.variations()


@pytest.mark.parametrize(("case", "precision"), spread(SMALL), ids=str)
def test_parity(case, precision):
    assert not {e: found for e in takers(case, precision) if (found := parity(case, precision, e))}


@pytest.mark.parametrize(("case", "precision"), spread(real()), ids=str)
def test_parity_of_real_sizes(case, precision):
    assert not {e: found for e in takers(case, precision) if (found := parity(case, precision, e))}


@pytest.mark.parametrize("cell", CELLS)
def test_many_sequences(cell):
    """More batch tiles than run at the same time."""
    case = Case(cell, T=2, B=2000, I=20, H=100)
    assert not {e: found for e in takers(case, BFLOAT16) if (found := parity(case, BFLOAT16, e))}


@pytest.mark.parametrize("cell", CELLS)
def test_many_steps(cell):
    case = Case(cell, T=300, B=5, I=20, H=70, lengths=True)
    assert not {e: found for e in takers(case, BFLOAT16) if (found := parity(case, BFLOAT16, e))}


@pytest.mark.parametrize(
    ("engine", "H"), [("block", 64), ("cluster", 128), ("grid", 768), ("grid_flags", 768)]
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_each_engine_takes_what_it_is_for(cell, engine, H):
    """Otherwise the tests above would say nothing of it."""
    if engine == "cluster" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs clusters")
    assert refusal(Case(cell, B=16, H=H), BFLOAT16, engine) is None
    assert refusal(Case(cell, B=16, H=H), BFLOAT16, "stepwise") is None


@pytest.mark.parametrize("cell", CELLS)
def test_a_wrong_mask_is_found(cell, monkeypatch):
    """The comparison can fail."""
    honest = cases.run

    def run_wrongly(case, inputs, engine):
        if engine == "reference":
            masks = inputs.masks
            inputs = inputs._replace(masks=masks._replace(keep_h=masks.keep_h.roll(1, 0)))
        return honest(case, inputs, engine)

    monkeypatch.setattr(cases, "run", run_wrongly)
    case = Case(cell, H=33, B=5)
    assert all(parity(case, BFLOAT16, engine) for engine in takers(case, BFLOAT16))

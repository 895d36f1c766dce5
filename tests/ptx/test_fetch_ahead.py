"""What a grid brings to L2 some steps ahead: exactly what is loaded later, none too late."""

import cases
import layer
import pytest
from cases import Case
from layer import How

STAGES, STEPS = 4, 2  # ahead: csrc/cuda/persistent/fetch_ahead.cuh
BYTES = {"bfloat16": 2, "tf32": 4}


def expected(case: Case, precision: str, chunks: int, backward: bool) -> int:
    """Sectors of stages and rows that a pass fetches, where H is a multiple of 16."""
    size = BYTES[precision]
    per_row = case.H // 16 * (16 * size // 32)  # of [T, B, H]
    planes = case.gates if backward else 1
    stages = (case.T - STAGES) * -(-case.B // 8) * chunks * 512 // 32 * planes
    steps = case.T - STEPS
    rows = steps * case.gates
    if backward:
        rows += steps + steps - 1  # dy, and the state before
        rows += steps * (case.cell == "gru")  # what is saved beside it
    return stages + rows * case.B * per_row


@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("precision", BYTES)
@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_what_comes_ahead_is_what_is_loaded(engines, monkeypatch, cell, precision, reverse):
    case = Case(cell, T=7, B=11, I=8, H=96, masks="untied", reverse=reverse)
    how = How("grid", forward=(3, 8, 1, False), backward=(3, 8, 1, True))
    counts = []

    def begin_pass(seed: int) -> None:
        engines.configure(races=False, fetches=True, schedule="random", seed=seed)

    def backward(*args, **kwargs):
        counts.append(engines.fetches())
        begin_pass(6)
        return run_backward(*args, **kwargs)

    run_backward = layer.backward
    monkeypatch.setattr(layer, "backward", backward)
    begin_pass(5)
    inputs = cases.sample(case, layer.own_dtype(precision)).to(layer.DTYPES[precision])
    layer.run(engines, case, precision, inputs, how)
    counts.append(engines.fetches())
    chunks = max(3, case.H * BYTES[precision] // 64)
    for n, (sectors, loaded, late) in enumerate(counts):
        assert (sectors, late) == (expected(case, precision, chunks, n > 0), 0)
        assert loaded == sectors

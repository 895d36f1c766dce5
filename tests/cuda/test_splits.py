"""csrc/cuda/plan/splits.h: into how many parts dW and dU cut their sum over rows."""

import random

import binding
import pytest

GATES = {"lstm": 4, "gru": 3}
LARGE, SMALL = 128, 64  # rows and columns of a tile


@pytest.fixture(scope="module")
def planner():
    return binding.module("bind_plan")


def product(T, B, I, H, cell="lstm", tile=LARGE):  # noqa: E741
    """tiles, rows, steps, partials, step_cycles of a layer in 16 bit with one set of masks."""
    units = GATES[cell] * H
    tiles = -(-units // tile) * (-(-I // tile) + -(-H // tile))
    return tiles, T * B, -(-T * B // 32), units * (I + H + 2), tile * tile / 32


# 288 blocks leave 108 of 132 multiprocessors idle in their last round; two splits leave 84 so, but
# for half as long; the partial sums of four cost more than they gain.
@pytest.mark.parametrize(
    ("shape", "splits", "gain"),
    [
        ((1024, 16, 768, 768), 2, 0.05),
        ((1024, 16, 1024, 1024), 1, 0.0),
        ((35, 20, 200, 200), 1, 0.0),  # too few rows
        ((200, 128, 128, 128), 16, 0.9),
        ((128, 256, 32, 512), 3, 0.45),
    ],
)
def test_shapes_of_the_benchmarks(planner, shape, splits, gain):
    p = product(*shape)
    assert planner.worthwhile_splits(*p) == splits
    assert planner.split_cycles(*p, splits) <= (1 - gain) * planner.split_cycles(*p, 1)


def test_no_split_is_too_small_and_none_is_better(planner):
    rng = random.Random(1)
    for _ in range(500):
        shape = [rng.choice([1, 7, 35, 200, 1024]), rng.choice([1, 20, 128, 600])]
        shape += [rng.randint(1, 1600), rng.randint(1, 1600)]
        p = product(*shape, rng.choice(list(GATES)), rng.choice([LARGE, SMALL]))
        splits, most = planner.worthwhile_splits(*p), max(1, min(p[1] // 512, 32))
        assert 1 <= splits <= most
        cycles = [planner.split_cycles(*p, s) for s in range(1, most + 1)]
        assert 0.97 * cycles[splits - 1] <= min(cycles)
        assert all(cycles[splits - 1] < c for c in cycles[: splits - 1])


def test_partial_sums_are_paid_for(planner):
    """The same tiles with larger results want fewer splits."""
    tiles, rows, steps, partials, cycles = product(200, 128, 128, 128)
    few = planner.worthwhile_splits(tiles, rows, steps, partials * 100, cycles)
    assert few < planner.worthwhile_splits(tiles, rows, steps, partials, cycles)

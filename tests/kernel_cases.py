"""Layers and masks that together launch every kernel that is compiled for a GPU: what a short time
on one can prove of all of them. tests/ptx/test_coverage.py proves that they do, and tests/gpu runs
them.
"""

import itertools
from dataclasses import dataclass, replace

import cases
from cases import Case

# engine, B, I, H of 16-bit numbers: csrc/cuda/plan/tilings.h. Sizes that fill no tile.
PERSISTENT = (
    ("block", 5, 50, 60),  # x is multiplied inside
    ("block", 21, 90, 51),
    ("block", 5, 50, 115),
    ("cluster", 21, 24, 120),
    ("grid_flags", 13, 40, 700),
    ("grid", 13, 40, 230),  # chunks of a warp: 1, 2, 3, 4
    ("grid", 13, 24, 500),
    ("grid", 13, 40, 710),
    ("grid", 5, 24, 1010),
    ("grid", 300, 40, 200),  # several batch tiles a block: chunks 2, 4, 6
    ("grid", 40, 24, 900),
    ("grid", 13, 24, 1500),
)
AHEAD = ("grid", 13, 40, 710)  # backward with 3 chunks also exists with
OTHER_AHEAD = 3  # ... BAYESRNN_BACKWARD_AHEAD
TYPES = ("bfloat16", "float16", "tf32")  # of the kernels on tensor cores


def environment(ahead: int, grid_steps: int) -> dict[str, str]:
    """What a plan looks at, without what is 0: then it chooses itself."""
    values = {"BAYESRNN_BACKWARD_AHEAD": ahead, "BAYESRNN_GRID_STEPS": grid_steps}
    return {name: str(value) for name, value in values.items() if value}


@dataclass(frozen=True)
class KernelCase:
    """A layer, its precision and the engine that is asked for."""

    case: Case
    precision: str
    engine: str
    ahead: int = 0  # see environment
    grid_steps: int = 0

    def __str__(self) -> str:
        ahead = f"-ahead{self.ahead}" if self.ahead else ""
        steps = f"-steps{self.grid_steps}" if self.grid_steps else ""
        return f"{self.engine}-{self.precision}-{self.case}{ahead}{steps}"


def persistent() -> list[KernelCase]:
    """Every cell, type and way of masks that persistent kernels are compiled for."""
    made = []
    kinds = [(c, p) for c in ("lstm", "gru") for p in TYPES] + [("rnn", "bfloat16")]
    for (cell, precision), masks in itertools.product(kinds, ("tied", "untied")):
        if cell == "rnn" and masks == "untied":  # with one gate the same
            continue
        for i, (engine, B, I, H) in enumerate(PERSISTENT):  # noqa: E741
            if precision == "tf32":
                H, I = H // 2, I // 2 + 1  # noqa: E741
            case = Case(cell, T=4, B=B, I=I, H=H, masks=masks)
            resets = "random" if i % 4 == 1 else "none"
            case = replace(case, lengths=i % 2 == 0, reverse=i % 3 == 0, resets=resets)
            made.append(KernelCase(case, precision, engine))
            if PERSISTENT[i] == AHEAD and masks == "tied":
                made.append(KernelCase(case, precision, engine, OTHER_AHEAD))
    return made


def launches() -> list[KernelCase]:
    """Grids that take several launches; sequences end in each, and one batch tile is not full."""
    return [
        KernelCase(replace(made.case, T=10), made.precision, made.engine, grid_steps=4)
        for made in persistent()
        if made.engine == "grid" and made.case.H in (200, 230) and made.precision == "bfloat16"
    ]


def stepwise() -> list[KernelCase]:
    """Every cell and precision, and the products over all steps at sizes of both their tiles."""
    made = []
    for cell, precision in itertools.product(cases.CELLS, (*TYPES, "float32", "float64")):
        small = Case(cell, T=4, B=5, I=24, H=37, lengths=True, resets="random")
        made.append(KernelCase(small, precision, "stepwise"))
    for precision in TYPES:
        large = Case("lstm", T=2, B=2048, I=512, H=512)
        made.append(KernelCase(large, precision, "stepwise"))
    return made


CASES = persistent() + launches() + stepwise()


@dataclass(frozen=True)
class MaskCase:
    """The masks of one layer."""

    sets: int
    B: int
    I: int  # noqa: E741
    H: int
    p_x: float
    p_h: float


MASKS = (
    MaskCase(4, 3, 10, 70, 0.25, 0.5),  # blocks of 64 that are not full
    MaskCase(1, 1, 1, 3, 0.5, 0.5),
    MaskCase(3, 20, 200, 130, 0.1, 0.0),  # one mask
    MaskCase(1, 7, 64, 128, 0.0, 0.9),
    MaskCase(1, 2, 33, 40, 1.0, 2.0**-40),  # all dropped, none dropped
    MaskCase(4, 0, 8, 8, 0.5, 0.5),  # no sequence
)

"""The engines' kernels with one thing wrong at a time: every bug is found. A bug is a change of the
PTX, where it comes from a certain line of the sources."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import build
import layer
import machine
import pytest
from cases import Case
from layer import How
from machine import ReportError
from source import Kernel

PERSISTENT, GEMM = "cuda/persistent", "cuda/gate_gemm"


@functools.cache
def at(file: str, text: str, which: int = 0) -> str:
    """A pattern for the place of a line, by what it says; `which` of several."""
    lines = (build.CSRC / file).read_text().splitlines()
    found = [i for i, line in enumerate(lines, 1) if text in line]
    assert len(found) > which, f"{file} has no {text!r}"
    return rf"{re.escape(file)}:{found[which]}\b"


class Bug(NamedTuple):
    kernels: str  # part of their names
    edit: Callable[[Kernel], int]  # returns how many instructions it changed
    case: Case
    engine: str
    grid_steps: int = 0  # of a launch; 0: all


LSTM = Case("lstm", T=6, B=7, I=3, H=51, masks="untied", lengths=True)
WIDE = Case("lstm", T=6, B=7, I=3, H=96, masks="untied", lengths=True)
RESETS = Case("lstm", T=6, B=7, I=3, H=51, masks="untied", lengths=True, resets="random")
GRU = Case("gru", T=6, B=7, I=3, H=51, masks="untied", lengths=True)
PRODUCTS = Case("gru", T=40, B=5, I=72, H=40, masks="untied")
PLAIN = Case("lstm", T=4, B=5, I=136, H=72, masks="none", lengths=True)

FORWARD, BACKWARD = "14forward_kernel", "15backward_kernel"
EXCHANGE, TILES = f"{PERSISTENT}/exchange.cuh", f"{GEMM}/tiles.cuh"


def never(predicate: str, source: str) -> Callable[[Kernel], int]:
    """Comparisons `predicate` are false, their opposites true."""
    opposite = {"eq": "ne", "le": "gt"}[predicate]

    def edit(k: Kernel) -> int:
        false = k.change(rf"setp\.{predicate}\.\w+ (%p\d+), .*", r"mov.pred \1, 0", source)
        return false + k.change(rf"setp\.{opposite}\.\w+ (%p\d+), .*", r"mov.pred \1, 1", source)

    return edit


def both(*edits: Callable[[Kernel], int]) -> Callable[[Kernel], int]:
    return lambda k: min(edit(k) for edit in edits)


def drop(instruction: str, source: str) -> Callable[[Kernel], int]:
    return lambda k: k.drop(instruction, source)


def change(instruction: str, new: str | Callable, source: str = "") -> Callable[[Kernel], int]:
    return lambda k: k.change(instruction, new, source)


def one_stage(which: int) -> Callable[[Kernel], int]:
    """Stages do not take turns: `which` of the exchanges that have two."""
    turns = {"next_output": "stage_", "next_input": "input_stage_"}
    lines = [f"void {name}() {{ {stage} ^= 1; }}" for name, stage in turns.items()]
    source = "|".join(at(EXCHANGE, line, which) for line in lines)
    return change(r"(xor|not)\.(b32|pred|b16) (%\w+), (%\w+).*", r"mov.\2 \3, \4", source)


def masks_of_the_next_gate(k: Kernel) -> int:
    """Every word meets the mask that belongs to the words a quarter of them later."""
    pattern = r"and\.b32 (%r\d+), (%r\d+), (%r\d+)"
    found = [s for s in k.statements
             if re.match(pattern, s.text) and re.search(READY_MASK, s.source)]  # fmt: skip
    masks = [re.match(pattern, s.text)[3] for s in found]
    for i, s in enumerate(found):
        other = masks[(i + len(masks) // 4) % len(masks)]
        s.text = re.sub(pattern, rf"and.b32 \1, \2, {other}", s.text)
    return len(set(masks)) > 1 and len(found)


def not_carried(file: str, text: str) -> Callable[[Kernel], int]:
    """Zero in place of what the launch before has left."""
    source = at(f"{PERSISTENT}/{file}", text)
    return change(r"ld\.global\.\w32 (%\w+), .*", r"mov.b32 \1, 0", source)


def later(m: re.Match) -> str:
    """t < n becomes t <= n."""
    return {"lt": "setp.le.s32", "ge": "setp.gt.s32"}[m[1]]


SHARED_COMMIT = at(EXCHANGE, "      __syncthreads();")
FLAG_COMMIT = at(EXCHANGE, "named_barrier(barrier_, Tile::makers);")
READY_MASK = at(f"{PERSISTENT}/word_masks.cuh", "return word & ")
FLAG_WAIT = at(EXCHANGE, "while (load_acquire(theirs_ + n * tiles_)")
RESET_ROW = at(f"{PERSISTENT}/time_pass.cuh", "return rows >> at_.row(element) & 1;")
SUMS = at(f"{PERSISTENT}/time_pass.cuh", "% kSumBuffers * kLayout.buffer")

BUGS = {
    # ---- the recurrence
    "missing mask": Bug(
        FORWARD,
        change(r"and\.b32 (%r\d+), (%r\d+), %r\d+", r"mov.b32 \1, \2", READY_MASK), LSTM, "grid"),
    "mask of another gate": Bug(FORWARD, masks_of_the_next_gate, LSTM, "grid"),
    "lengths off by one": Bug(
        FORWARD, change(r"setp\.(lt|ge)\.s32", later,
                        at(f"{PERSISTENT}/forward.cuh", "const bool in = t < length_[i];")),
        LSTM, "grid"),
    "no barrier before the sum over warps": Bug(
        FORWARD, drop(r"bar\.sync", at(f"{PERSISTENT}/tile.cuh", "    __syncthreads();")), LSTM,
        "grid"),
    "one buffer of sums": Bug(
        FORWARD, change(r"(and|xor)\.b32 (%r\d+), (%r\d+), .*", r"mov.u32 \2, 0", SUMS), LSTM,
        "grid"),
    "data not awaited": Bug(
        FORWARD, never("eq", at(EXCHANGE, "while (highest_word<Count>(words) == ~0u)")), LSTM,
        "grid"),
    "half of the words not awaited": Bug(
        FORWARD, change(r"max\.u32 (%r\d+), .*", r"mov.b32 \1, 0",
                        at(EXCHANGE, "zw = higher(zw, higher(v[i].z, v[i].w));")), LSTM, "grid"),
    "data in one stage, not refilled": Bug(
        FORWARD, change(r"add\.s64 (%rd\d+), (%rd\d+), .*", r"mov.b64 \1, \2",
                        at(EXCHANGE, "void next_output() { out_ += Planes * plane_; }")
                        + "|" + at(EXCHANGE, "void next_input() { in_ += Planes * plane_; }")),
        LSTM, "grid"),
    "data published by plain stores": Bug(
        FORWARD, change(r"st\.relaxed\.gpu\.global", "st.global"), LSTM, "grid"),
    "data published in halves": Bug(
        FORWARD, change(r"st\.relaxed\.gpu\.global\.u32", "st.relaxed.gpu.global.u16"), LSTM,
        "grid"),
    "no barrier before the release": Bug(
        FORWARD, drop(r"bar\.sync", FLAG_COMMIT), WIDE, "grid_flags"),
    "barrier of half the makers": Bug(
        FORWARD, change(r"bar\.sync (\S+?), ?\S+", r"bar.sync \1, 64", FLAG_COMMIT), WIDE,
        "grid_flags"),
    "no release": Bug(
        FORWARD, change(r"st\.release\.gpu\.global", "st.relaxed.gpu.global"), WIDE, "grid_flags"),
    "no acquire": Bug(
        FORWARD, change(r"ld\.acquire\.gpu\.global", "ld.relaxed.gpu.global"), WIDE, "grid_flags"),
    "flags not awaited": Bug(
        FORWARD, never("le", FLAG_WAIT), WIDE, "grid_flags"),
    "flags of the step before": Bug(
        FORWARD, both(change(r"setp\.le\.u32", "setp.lt.u32", FLAG_WAIT)), WIDE, "grid_flags"),
    "one stage, flags": Bug(FORWARD, one_stage(0), WIDE, "grid_flags"),
    "no block barrier": Bug(FORWARD, drop(r"bar\.sync", SHARED_COMMIT), LSTM, "block"),
    "one stage, block": Bug(FORWARD, one_stage(1), LSTM, "block"),
    "block barrier in a cluster": Bug(
        FORWARD, both(
            change(r"barrier\.cluster\.arrive.*", "bar.sync 0",
                   at(EXCHANGE, "      cluster_arrive();")),
            drop(r"barrier\.cluster\.wait", at(EXCHANGE, "if (Cluster) cluster_wait();"))),
        WIDE, "cluster"),
    "cluster not started": Bug(
        FORWARD, drop(r"barrier\.cluster",
                      at(EXCHANGE, "if (Cluster) cluster_arrive(), cluster_wait();")),
        WIDE, "cluster"),
    "one stage, cluster": Bug(FORWARD, one_stage(1), WIDE, "cluster"),
    "shuffle left out": Bug(
        BACKWARD, change(r"shfl\.sync\.bfly\.b32 (%r\d+)\|%p\d+, (%r\d+), .*",
                                    r"mov.b32 \1, \2"), WIDE, "grid"),
    # ---- resets
    "no resets forward": Bug(
        FORWARD, change(r"and\.b32 (%r\d+), .*", r"mov.b32 \1, 0", RESET_ROW), RESETS, "grid"),
    "no resets backward": Bug(
        BACKWARD, change(r"and\.b32 (%r\d+), .*", r"mov.b32 \1, 0", RESET_ROW), RESETS, "grid"),
    "gradients not cut": Bug(
        BACKWARD, change(r"selp\.f32 (%f\d+), (%f\d+), .*", r"mov.f32 \1, \2",
                         at(f"{PERSISTENT}/backward.cuh", "if (cuts_) cut(dh);")), RESETS, "grid"),
    "resets of the step after": Bug(
        FORWARD, change(r"ld\.global\.u8 (%\w+), \[(%rd\d+)\]", r"ld.global.u8 \1, [\2+1]",
                        at(f"{PERSISTENT}/time_pass.cuh", "return p_.resets ?")), RESETS, "grid"),
    "operand of dU not reset": Bug(
        "gate_gemm", change(r"selp\.b32 (%r\d+), (%r\d+), -1, .*", r"mov.b32 \1, \2",
                            at(f"{GEMM}/loaders.cuh", "!from_.resets[row]")), RESETS, "grid"),
    "state before a reset": Bug(
        BACKWARD, change(r"selp\.(\w+) (%\w+), (%\w+), .*", r"mov.\1 \2, \3",
                         at(f"{PERSISTENT}/backward.cuh", "sees ? to_float(previous_[i]) : 0.f")),
        RESETS, "grid"),
    "halves of a word to the wrong plane": Bug(
        BACKWARD, change(r"selp\.f32 (%f\d+), (%f\d+), (%f\d+), ", r"selp.f32 \1, \3, \2, ",
                         at(f"{PERSISTENT}/operand_stream.cuh", "const float other =")),
        LSTM, "grid"),
    "packed masks of the other word": Bug(
        FORWARD, change(r"prmt\.b32 (%r\d+), ?(%r\d+), ?0, ?(\d+)",
                        lambda m: f"prmt.b32 {m[1]}, {m[2]}, 0, {int(m[3]) ^ 0x2222}"),
        Case("lstm", T=4, B=7, I=3, H=115, masks="untied"), "block"),
    # ---- several launches
    "h not carried to the next launch": Bug(
        FORWARD, not_carried("forward.cuh", "h_[i] = first() > 0 ? carried(0, n, i)"),
        GRU, "grid", 3),
    "c not carried to the next launch": Bug(
        FORWARD, not_carried("forward.cuh", "first() > 0 ? carried(1, n, i)"), LSTM, "grid", 3),
    "dc not carried to the next launch": Bug(
        BACKWARD, not_carried("backward.cuh", "carry_[i] = carried(1, n, i);"), LSTM, "grid", 3),
    "dh of a sequence outside not carried": Bug(
        BACKWARD, not_carried("backward.cuh", "held_[i] = carried(0, n, i)"), LSTM, "grid", 3),
    "dz of another step published again": Bug(
        BACKWARD, change(r"selp\.b32 (%r\d+), (%r\d+), (%r\d+), ", r"selp.b32 \1, \3, \2, ",
                         at(f"{PERSISTENT}/backward.cuh", "offset_of_dz(p_.T - first(), n, i)")),
        LSTM, "grid", 3),
    # ---- the products
    "no barrier between tiles": Bug(
        "gate_gemm", drop(r"bar\.sync", at(TILES, "__syncthreads();  // this tile is complete")),
        PRODUCTS, "stepwise"),
    "no wait for copies": Bug(
        "gate_gemm", drop(r"cp\.async\.wait_group", TILES), PLAIN, "stepwise"),
    "late wait for copies": Bug(
        "gate_gemm", change(r"cp\.async\.wait_group (\d+)",
                            lambda m: f"cp.async.wait_group {int(m[1]) + 1}", TILES),
        PLAIN, "stepwise"),
    "copies of 8 bytes that bring nothing": Bug(
        "gate_gemm", change(r"(cp\.async\.ca\.shared\.global [^;]*), ?8, ?%r\d+", r"\1, 8, 0"),
        Case("lstm", T=4, B=5, I=20, H=12, masks="none"), "stepwise"),
    "operands of mma change places": Bug(
        "gate_gemm", change(r"(mma\S* \{[^}]*\}, ?\{[^,]*), ?([^,]*), ?([^,]*),", r"\1, \3, \2,"),
        PRODUCTS, "stepwise"),
    "halves of a word change places": Bug(
        "gate_gemm", change(r"cvt\.rn\.bf16x2\.f32 (\S+?), ?(\S+?), ?(\S+)",
                            r"cvt.rn.bf16x2.f32 \1, \3, \2"), PRODUCTS, "stepwise"),
    "operands of prmt change places": Bug(
        "gate_gemm", change(r"prmt\.b32 (\S+?), ?(\S+?), ?(\S+?), ?(\S+)",
                            r"prmt.b32 \1, \3, \2, \4"),
        PRODUCTS, "stepwise"),
    "matrices not transposed": Bug(
        "gate_gemm", change(r"ldmatrix\.sync\.aligned\.m8n8\.x4\.trans",
                            "ldmatrix.sync.aligned.m8n8.x4"), PRODUCTS, "stepwise"),
    "partial sums left out": Bug(
        "sum_partials", change(r"add\.f32 (%f\d+), (%f\d+), .*", r"mov.f32 \1, \2"),
        Case("lstm", T=30, B=36, I=24, H=16, masks="untied"), "stepwise"),
    # ---- packed weights
    "rows past the end of a weight": Bug(
        "pack_weights", change(r"setp\.ge\.s32 (%p\d+), .*", r"mov.pred \1, 0",
                               at(f"{PERSISTENT}/packed_weights.cuh", "if (unit < p.H && k < p.K")),
        LSTM, "grid"),
    "16 bytes at 8": Bug(
        "pack_weights", change(r"and\.b32 (%r\d+), (%r\d+), 7", r"and.b32 \1, \2, 3",
                               at(f"{PERSISTENT}/packed_weights.cuh",
                                  "p.K % (4 * Number<S>::per_word)")),
        Case("lstm", T=2, B=3, I=8, H=52), "grid"),
}  # fmt: skip

SETTINGS = [
    s | {"delays": 0.0 if s["schedule"] == "round_robin" else 0.6}
    for s in machine.schedules(seeds=4)
]


def findings(engines, bug: Bug, races: bool) -> tuple[str, int]:
    """What the first schedule shows that shows something, and how many instructions changed."""
    changed = [0]

    def edit(kernel: Kernel) -> None:
        if bug.kernels in kernel.name:
            changed[0] += bug.edit(kernel)

    engines.plant(edit)
    how = How(bug.engine, grid_steps=bug.grid_steps)
    for settings in SETTINGS:
        engines.configure(**settings, races=races, most_steps=2_000_000)
        try:
            wrong = layer.differences(engines, bug.case, "bfloat16", how)
        except (ReportError, AssertionError) as error:
            return str(error), changed[0]
        if wrong:
            return f"wrong numbers: {wrong[0]}", changed[0]
    return "", changed[0]


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_found(engines, name):
    found, changed = findings(engines, BUGS[name], races=True)
    assert changed, "the bug was not planted"
    assert found


# What is found by its consequences alone, without the race detector.
BY_CONSEQUENCES = (
    "no release", "no barrier before the release", "data not awaited", "block barrier in a cluster",
)  # fmt: skip


@pytest.mark.parametrize("name", BY_CONSEQUENCES)
def test_bug_has_consequences(engines, name):
    found, _ = findings(engines, BUGS[name], races=False)
    assert found and not found.startswith("data race")


@pytest.mark.parametrize("engine", ("grid", "grid_flags", "block", "cluster", "stepwise"))
def test_without_a_bug_nothing_is_found(engines, engine):
    nothing = Bug("", lambda k: 0, WIDE, engine)
    assert findings(engines, nothing, races=True) == ("", 0)


@pytest.mark.parametrize("engine", ("grid", "grid_flags"))
def test_an_exchange_that_is_not_filled_is_found(engines, engine):
    """Slots and flags as scratch memory happens to be: they look as if data were there."""
    engines.device(fills_nothing=1)
    assert findings(engines, Bug("", lambda k: 0, WIDE, engine), races=True)[0]


def test_an_exchange_that_is_not_filled_again_is_found(engines):
    """The stages of the next launch hold what was published in the one before."""
    engines.device(fills_nothing=2)
    assert findings(engines, Bug("", lambda k: 0, WIDE, "grid", 3), races=True)[0]

"""Random layers and modules for test_properties.py and fuzz.py, and what must hold of each.

A case is a small value whose repr makes it again: `Layer(...)`, `Stack(...)`, and WrongCall in
wrong_calls.py.
"""

from dataclasses import dataclass

import cases
import torch
from cases import CELLS, Case, Inputs, differences, low_precision_differences, stacked
from hypothesis import strategies as st
from module_cases import PAIRS, flat
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from bayesrnn_cuda.masks import LayerMasks, dropout_scale

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


# ---- Layouts: ways for the same or other numbers to lie in memory


def every_other(t: Tensor) -> Tensor:
    return t.repeat_interleave(2, -1)[..., ::2]


def transposed(t: Tensor) -> Tensor:
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


def off_alignment(t: Tensor) -> Tensor:
    """Begins one element into its memory."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def expanded(t: Tensor) -> Tensor:
    """One row for all, stride 0: other numbers."""
    return t[:1].expand(t.shape)


def one_for_all(t: Tensor) -> Tensor:
    """One number for all, every stride 0."""
    return t.flatten()[:1].view((1,) * t.dim()).expand(t.shape) if t.numel() else t


def negated(t: Tensor) -> Tensor:
    """A lazy view, whose memory holds the opposite numbers."""
    if not t.is_floating_point() or t.dtype == torch.bfloat16:
        return t
    view = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert view.is_neg()
    return view


def zeros_without_memory(t: Tensor) -> Tensor:
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)


LAYOUTS = {
    f.__name__: f
    for f in (
        every_other, transposed, off_alignment, expanded, one_for_all, negated,
        zeros_without_memory,
    )
}  # fmt: skip


# ---- One layer in one direction


@dataclass(frozen=True)
class Layer:
    """A call of functional.lstm or .gru: its numbers follow from `seed`."""

    cell: str
    dtype: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    sets_x: int  # masks of the input: 0 none, 1 tied, 2 one per gate
    sets_h: int
    p_x: float
    p_h: float
    lengths: tuple[int, ...] | None
    resets: float | None  # how often
    reverse: bool
    bias: bool
    magnitude: float  # of x, h0 and c0
    loss_of: tuple[str, ...]
    frozen: tuple[str, ...]
    layouts: tuple[tuple[str, str], ...]  # (tensor, name in LAYOUTS)
    threads: int
    seed: int

    def case(self) -> Case:
        return Case(
            self.cell, self.T, self.B, self.I, self.H, masks="none", reverse=self.reverse,
            bias=self.bias, loss_of=self.loss_of, frozen=self.frozen,
        )  # fmt: skip

    def inputs(self, draw: int = 0) -> Inputs:
        """The numbers in `dtype`; `draw` counts further ones of the same layer."""
        case = self.case()
        inputs = cases.sample(case, DTYPES[self.dtype], self.seed + draw)
        rng = torch.Generator().manual_seed(self.seed + draw)

        def chosen(p: float, shape: tuple[int, ...]) -> Tensor:
            return torch.rand(shape, generator=rng) < p

        def keep(sets: int, p: float, size: int) -> Tensor | None:
            sets = (0, 1, case.gates)[sets]
            return ~chosen(p, (sets, self.B, size)) if sets else None

        inputs = inputs._replace(
            x=inputs.x * self.magnitude,
            h0=inputs.h0 * self.magnitude,
            c0=None if inputs.c0 is None else inputs.c0 * self.magnitude,
            lengths=None if self.lengths is None else torch.tensor(self.lengths),
            resets=None if self.resets is None else chosen(self.resets, (self.T, self.B)),
            masks=LayerMasks(
                keep(self.sets_x, self.p_x, self.I),
                keep(self.sets_h, self.p_h, self.H),
                dropout_scale(self.p_x),
                dropout_scale(self.p_h),
            ),
        )
        laid = {k: LAYOUTS[v] for k, v in self.layouts}
        tensors = {k: laid[k](t) for k, t in inputs.tensors().items() if k in laid}
        cotangents = {k: laid[k](t) if k in laid else t for k, t in inputs.cotangents.items()}
        return inputs.replace_tensors(tensors)._replace(cotangents=cotangents)

    def draws(self) -> range:
        """Several where the numbers are few: one may be zero to rounding by luck."""
        return range(1 if self.B * self.H > 100 else 4)


@st.composite
def layers(draw, dtypes: tuple[str, ...] = tuple(DTYPES), max_size: int = 70) -> Layer:
    cell = draw(st.sampled_from(CELLS))
    T = draw(st.integers(1, 9))
    B = draw(st.integers(1, 14))
    # vectors have 2 to 16 units: their edges more often than chance
    size = st.one_of(st.integers(1, 9), st.integers(15, 18), st.integers(31, 34))
    size = st.one_of(size, st.integers(1, max_size))
    p = st.sampled_from([0.0, 0.1, 0.5, 1.0])  # from 0.9 on the recurrence amplifies rounding
    outputs = Case(cell).outputs
    tensors = (
        "x", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "keep_x", "keep_h",
        "lengths", "resets", *outputs,
    )  # fmt: skip
    layouts = draw(st.dictionaries(st.sampled_from(tensors), st.sampled_from(list(LAYOUTS))))
    inputs = ("x", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
    needed = draw(st.sampled_from(("x", "h0", "weight_ih", "weight_hh")))
    return Layer(
        cell=cell,
        dtype=draw(st.sampled_from(dtypes)),
        T=T, B=B, I=draw(size), H=draw(size),
        sets_x=draw(st.integers(0, 2)), sets_h=draw(st.integers(0, 2)), p_x=draw(p), p_h=draw(p),
        lengths=draw(st.none() | st.tuples(*[st.integers(0, T)] * B)),
        resets=draw(st.sampled_from([None, None, 0.0, 0.1, 0.5, 1.0])),
        reverse=draw(st.booleans()),
        bias=draw(st.booleans()),
        magnitude=draw(st.sampled_from([1.0, 1.0, 0.0, 3.0])),
        loss_of=tuple(sorted(draw(st.sets(st.sampled_from(outputs))))),
        frozen=tuple(sorted(draw(st.sets(st.sampled_from(inputs))) - {needed})),
        layouts=tuple(sorted(layouts.items())),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**20)),
    )  # fmt: skip


def with_threads(check):
    """`check(case)` under as many threads as the case says."""

    def run(case) -> list[str]:
        before = torch.get_num_threads()
        torch.set_num_threads(case.threads)
        try:
            return check(case)
        finally:
            torch.set_num_threads(before)

    return run


@with_threads
def disagreements(layer: Layer, engine: str = "cpu") -> list[str]:
    """Where outputs or gradients differ from the reference in float64: cases.py's tolerances."""
    case, dtype = layer.case(), DTYPES[layer.dtype]
    inputs = [layer.inputs(draw) for draw in layer.draws()]
    actual = [cases.run(case, i, engine) for i in inputs]
    exact = [cases.run(case, i.to(torch.float64), "reference") for i in inputs]
    wrong = [f"{k}: dtype {t.dtype}" for k, t in actual[0].items() if t.dtype != dtype]
    if wrong:
        return wrong
    if dtype == torch.bfloat16:
        own = [cases.run(case, i, "reference") for i in inputs]
        return low_precision_differences(actual, own, exact, dtype)
    return differences(joined(actual, dtype), joined(exact, torch.float64))


def joined(results: list[dict[str, Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: stacked(results, name).to(dtype) for name in results[0]}


@with_threads
def sees_the_unseen(layer: Layer) -> list[str]:
    """Outputs or gradients that change when what is dropped or past a length becomes NaN."""
    case, inputs = layer.case(), layer.inputs()
    steps = torch.arange(layer.T).unsqueeze(1)
    lengths = torch.full((layer.B,), layer.T) if inputs.lengths is None else inputs.lengths
    outside = (steps >= lengths).unsqueeze(2)  # [T, B, 1]
    keep_x = inputs.masks.keep_x
    dropped = torch.zeros(layer.B, layer.I, dtype=torch.bool) if keep_x is None else ~keep_x.any(0)
    nan = torch.tensor(torch.nan, dtype=inputs.x.dtype)
    spoilt = inputs._replace(
        x=torch.where(outside | dropped, nan, inputs.x),
        cotangents={
            k: torch.where(outside, nan, t) if k == "y" else t for k, t in inputs.cotangents.items()
        },
    )
    results = cases.run(case, inputs, "cpu"), cases.run(case, spoilt, "cpu")
    return [f"{k}: changed" for k in results[0] if not torch.equal(*(r[k] for r in results))]


# ---- A whole module: layers, directions, padded, packed or unbatched


@dataclass(frozen=True)
class Stack:
    """A call of BayesianLSTM or its like."""

    cell: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    layers: int
    bidirectional: bool
    bias: bool
    batch_first: bool
    reset_after: bool  # of GRU
    tie_gates: bool
    form: str  # dense, unbatched, packed
    lengths: tuple[int, ...]  # of packed
    resets: bool
    with_hx: bool
    input_dropout: float
    recurrent_dropout: float
    threads: int
    seed: int


@st.composite
def stacks(draw) -> Stack:
    T, B = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    p = st.sampled_from([0.0, 0.0, 0.3, 1.0])
    flags = st.booleans()
    return Stack(
        cell=draw(st.sampled_from(list(PAIRS))),
        T=T, B=B, I=draw(st.integers(1, 9)), H=draw(st.integers(1, 9)),
        layers=draw(st.integers(1, 3)),
        bidirectional=draw(flags), bias=draw(flags), batch_first=draw(flags),
        reset_after=draw(flags), tie_gates=draw(flags),
        form=draw(st.sampled_from(["dense", "unbatched", "packed"])),
        lengths=draw(st.tuples(*[st.integers(1, T)] * B)), resets=draw(flags),
        with_hx=draw(flags), input_dropout=draw(p), recurrent_dropout=draw(p),
        threads=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 2**20)),
    )  # fmt: skip


def stack_call(stack: Stack) -> tuple:
    """(tensors that want a gradient, input, hx, resets) in float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    batched = stack.form != "unbatched"
    B = (stack.B,) if batched else ()
    leading = (*B, stack.T) if stack.batch_first else (stack.T, *B)
    x = normal(*leading, stack.I)
    hx = None
    if stack.with_hx:
        directions = stack.layers * (1 + stack.bidirectional)
        hx = tuple(normal(directions, *B, stack.H) for _ in range(2))
    leaves = [x, *(hx or ())][: 3 if stack.cell == "lstm" else 2]
    if stack.form == "packed":
        x = pack_padded_sequence(x, stack.lengths, stack.batch_first, enforce_sorted=False)
    resets = None
    if stack.resets:  # of packed sequences, of the steps that there are
        T = max(stack.lengths) if stack.form == "packed" else stack.T
        resets = torch.rand((*B, T) if stack.batch_first else (T, *B)) < 0.3
    return leaves, x, hx if hx is None or stack.cell == "lstm" else hx[0], resets


def stack_results(module, stack: Stack) -> list[Tensor]:
    """Outputs and gradients, the same numbers and masks for every module of the stack's sizes."""
    torch.manual_seed(stack.seed)
    leaves, x, hx, resets = stack_call(stack)
    out = flat(module(x, hx) if resets is None else module(x, hx, resets=resets))
    loss = sum((t * torch.randn_like(t)).sum() for t in out)
    grads = torch.autograd.grad(loss, [*leaves, *module.parameters()], allow_unused=True)
    return [*out, *(torch.zeros(()) if g is None else g for g in grads)]


@with_threads
def stack_disagreements(stack: Stack) -> list[str]:
    """Where the fused module differs from the reference, and without dropout from torch's own."""
    ours, theirs = PAIRS[stack.cell]
    layout = {
        "num_layers": stack.layers, "bias": stack.bias, "batch_first": stack.batch_first,
        "bidirectional": stack.bidirectional, "dtype": torch.float64,
    }  # fmt: skip
    options = {
        "input_dropout": stack.input_dropout,
        "recurrent_dropout": stack.recurrent_dropout,
        "tie_gates": stack.tie_gates,
    }
    if stack.cell == "gru":
        options["reset_after"] = stack.reset_after
    torch.manual_seed(stack.seed)
    fused = ours(stack.I, stack.H, **layout, **options)
    others = {"reference": ours(stack.I, stack.H, **layout, **options, engine="reference")}
    as_torch = stack.reset_after and not stack.resets
    if as_torch and not stack.input_dropout and not stack.recurrent_dropout:
        others["torch"] = theirs(stack.I, stack.H, **layout)
    results = stack_results(fused, stack)
    wrong = []
    for name, module in others.items():
        module.load_state_dict(fused.state_dict())
        expected = stack_results(module, stack)
        for index, (a, b) in enumerate(zip(results, expected, strict=True)):
            if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-9, atol=1e-10):
                wrong.append(f"result {index} differs from that of {name}")
    return wrong

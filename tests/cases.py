"""One source of sample layers for every test, how to run them, and when two results agree."""

import itertools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bayesrnn_cuda import cells, functional, reference
from bayesrnn_cuda.masks import LayerMasks, dropout_scale
from bayesrnn_cuda.reference import LayerWeights

# What a test calls a cell: the entry of the package's table, and its flags.
VARIANTS = {
    "lstm": (cells.LSTM, {}),
    "gru": (cells.GRU, {"reset_after": True}),
    "gru_reset_before": (cells.GRU, {"reset_after": False}),
    "rnn": (cells.RNN, {}),
}
CELLS = tuple(VARIANTS)
MASKS = ("none", "tied", "untied", "only_x", "only_h", "tied_x_untied_h", "all_dropped", "scaled")
RESETS = ("random", "first", "last", "every", "nowhere")  # steps; "none": no tensor at all
SIZES = ((1, 1, 1), (3, 5, 7), (5, 37, 33))  # B, I, H


@dataclass(frozen=True)
class Case:
    """One layer in one direction, without its numbers."""

    cell: str
    T: int = 7
    B: int = 3
    I: int = 5  # noqa: E741
    H: int = 7
    masks: str = "untied"
    lengths: bool = False  # unsorted, from 0 to T
    resets: str = "none"
    reverse: bool = False
    strided: bool = False  # no tensor is dense, x is a batch_first tensor seen time-major
    bias: bool = True
    loss_of: tuple[str, ...] = ()  # outputs that carry a gradient; empty: all
    frozen: tuple[str, ...] = ()  # inputs that need none

    @property
    def kind(self) -> cells.Cell:
        return VARIANTS[self.cell][0]

    @property
    def flags(self) -> dict[str, bool]:
        return VARIANTS[self.cell][1]

    @property
    def gates(self) -> int:
        return self.kind.gates

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("y", "h_n", "c_n")[: 1 + self.kind.states]

    def __str__(self) -> str:
        text = f"{self.cell}-T{self.T}-B{self.B}-I{self.I}-H{self.H}-{self.masks}"
        for field in fields(self)[6:]:
            value = getattr(self, field.name)
            if value != field.default:
                words = (value,) if type(value) is str else value
                text += f"-{field.name}" + (f"_{'_'.join(words)}" if type(words) is tuple else "")
        return text.replace("bias", "no_bias")


class Inputs(NamedTuple):
    """The numbers of a case. `cotangents`: the gradient of the loss by each output."""

    x: Tensor
    h0: Tensor
    c0: Tensor | None
    weights: LayerWeights
    masks: LayerMasks | None
    lengths: Tensor | None
    resets: Tensor | None
    cotangents: dict[str, Tensor]

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "Inputs":
        """The same numbers, rounded to dtype; strides stay unless they move to a device."""

        def cast(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device, dtype)

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device)

        masks = self.masks
        return self._replace(
            x=cast(self.x),
            h0=cast(self.h0),
            c0=cast(self.c0),
            weights=LayerWeights(*map(cast, self.weights)),
            masks=masks and masks._replace(keep_x=move(masks.keep_x), keep_h=move(masks.keep_h)),
            lengths=move(self.lengths),
            resets=move(self.resets),
            cotangents={name: cast(t) for name, t in self.cotangents.items()},
        )

    def states(self) -> list[Tensor]:
        return [t for t in (self.h0, self.c0) if t is not None]

    def differentiable(self) -> dict[str, Tensor]:
        states = {"x": self.x, "h0": self.h0, "c0": self.c0}
        return {k: t for k, t in (states | self.weights._asdict()).items() if t is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that a call reads."""
        masks = self.masks or LayerMasks()
        others = {
            "keep_x": masks.keep_x, "keep_h": masks.keep_h,
            "lengths": self.lengths, "resets": self.resets,
        }  # fmt: skip
        return self.differentiable() | {k: t for k, t in others.items() if t is not None}

    def replace_tensors(self, tensors: dict[str, Tensor]) -> "Inputs":
        """With some tensors exchanged, by the names of `tensors()`."""
        own = {k: t for k, t in tensors.items() if k in ("x", "h0", "c0", "lengths", "resets")}
        weights = {k: t for k, t in tensors.items() if k in LayerWeights._fields}
        masks = {k: t for k, t in tensors.items() if k in LayerMasks._fields}
        return self._replace(
            **own,
            weights=self.weights._replace(**weights),
            masks=self.masks._replace(**masks) if masks else self.masks,
        )


def sample(
    case: Case,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Numbers for a case, the same at every run and on every device."""
    rng = torch.Generator().manual_seed(zlib.crc32(f"{case}-{seed}".encode()))
    T, B, I, H, G = case.T, case.B, case.I, case.H, case.gates  # noqa: E741

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    def weight(*shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1) / H**0.5

    cotangents = {"y": normal(T, B, H), "h_n": normal(B, H)}
    if "c_n" in case.outputs:
        cotangents["c_n"] = normal(B, H)
    inputs = Inputs(
        x=normal(T, B, I),
        h0=normal(B, H),
        c0=normal(B, H) if "c_n" in case.outputs else None,
        weights=LayerWeights(
            weight(G * H, I),
            weight(G * H, H),
            weight(G * H) if case.bias else None,
            weight(G * H) if case.bias else None,
        ),
        masks=sample_masks(case, rng),
        lengths=sample_lengths(T, B, rng) if case.lengths else None,
        resets=sample_resets(case, rng),
        cotangents={k: t for k, t in cotangents.items() if not case.loss_of or k in case.loss_of},
    ).to(dtype, device)
    return with_strides(inputs) if case.strided else inputs


def sample_masks(case: Case, rng: torch.Generator) -> LayerMasks | None:
    if case.masks == "none":
        return None
    if case.masks == "scaled":
        return LayerMasks(None, None, 1.5, 0.75)
    p_x, p_h = (1.0, 1.0) if case.masks == "all_dropped" else (0.3, 0.4)
    sets_x = 1 if case.masks in ("tied", "tied_x_untied_h") else case.gates
    sets_h = 1 if case.masks == "tied" else case.gates
    masks = LayerMasks(
        torch.rand((sets_x, case.B, case.I), generator=rng) >= p_x,
        torch.rand((sets_h, case.B, case.H), generator=rng) >= p_h,
        dropout_scale(p_x),
        dropout_scale(p_h),
    )
    if case.masks == "only_x":
        return masks._replace(keep_h=None, scale_h=1.0)
    if case.masks == "only_h":
        return masks._replace(keep_x=None, scale_x=1.0)
    return masks


def sample_lengths(T: int, B: int, rng: torch.Generator) -> Tensor:
    """Unsorted; the first sequences take 1, T and 0 steps. Every length, where B > T."""
    if B > T:
        return torch.randperm(B, generator=rng) % (T + 1)
    lengths = torch.randint(0, T + 1, (B,), generator=rng)
    edges = torch.tensor([1, T, 0])[:B]
    lengths[: len(edges)] = edges
    return lengths


def sample_resets(case: Case, rng: torch.Generator) -> Tensor | None:
    """Random ones at a third of the steps, and one where the sequence that has all steps is."""
    shape = (case.T, case.B)
    match case.resets:
        case "none":
            return None
        case "random":
            resets = torch.rand(shape, generator=rng) < 1 / 3
            resets[case.T // 2, 1 % case.B] = True
            return resets
        case "first" | "last":
            resets = torch.zeros(shape, dtype=torch.bool)
            resets[0 if case.resets == "first" else -1] = True
            return resets
    return torch.full(shape, case.resets == "every")


def with_strides(inputs: Inputs) -> Inputs:
    """The same numbers in tensors none of which is contiguous."""

    def every_other(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.repeat_interleave(2, -1)[..., ::2]

    def batch_outside(t: Tensor | None) -> Tensor | None:  # dimension 1 has the largest stride
        return None if t is None else every_other(t).transpose(0, 1).clone().transpose(0, 1)

    w, m = inputs.weights, inputs.masks
    return inputs._replace(
        x=inputs.x.transpose(0, 1).contiguous().transpose(0, 1),
        h0=every_other(inputs.h0),
        c0=None if inputs.c0 is None else inputs.c0.t().contiguous().t(),
        weights=LayerWeights(
            w.weight_ih.t().contiguous().t(),
            every_other(w.weight_hh),
            every_other(w.bias_ih),
            every_other(w.bias_hh),
        ),
        masks=m and m._replace(keep_x=every_other(m.keep_x), keep_h=batch_outside(m.keep_h)),
        lengths=every_other(inputs.lengths),
        resets=batch_outside(inputs.resets),
        cotangents={
            k: batch_outside(t) if k == "y" else every_other(t)
            for k, t in inputs.cotangents.items()
        },
    )


def outputs(case: Case, inputs: Inputs, engine: str) -> dict[str, Tensor]:
    """y, h_n and, if there is one, c_n. `engine` "reference" is bayesrnn_cuda.reference itself."""
    module, options = (reference, {}) if engine == "reference" else (functional, {"engine": engine})
    options |= {"lengths": inputs.lengths, "resets": inputs.resets, "reverse": case.reverse}
    options |= case.flags
    layer = getattr(module, case.kind.name)
    results = layer(inputs.x, *inputs.states(), inputs.weights, inputs.masks, **options)
    return dict(zip(case.outputs, results, strict=True))


def leaves(case: Case, inputs: Inputs) -> Inputs:
    """The same numbers as leaves of a graph; what is frozen needs no gradient."""
    return inputs.replace_tensors(
        {
            name: t.detach().requires_grad_(name not in case.frozen)
            for name, t in inputs.differentiable().items()
        }
    )


def run(case: Case, inputs: Inputs, engine: str = "cpu") -> dict[str, Tensor]:
    """Every output, and every gradient as d_<input>, of the loss sum(output * cotangent)."""
    inputs = leaves(case, inputs)
    results = outputs(case, inputs, engine)
    wanted = {k: t for k, t in inputs.differentiable().items() if t.requires_grad}
    grads = torch.autograd.grad(
        [results[name] for name in inputs.cotangents],
        list(wanted.values()),
        list(inputs.cotangents.values()),
        allow_unused=True,
    )
    named = zip(wanted.items(), grads, strict=True)
    gradients = {f"d_{k}": torch.zeros_like(t) if g is None else g for (k, t), g in named}
    return {k: t.detach() for k, t in (results | gradients).items()}


def op_arguments(case: Case, inputs: Inputs, *, save: bool = True, engine: str = "cpu") -> tuple:
    """(op, its arguments) of a case, for torch.ops.bayesrnn.lstm and its like."""
    masks = inputs.masks or LayerMasks()
    states = inputs.states()
    tensors = [inputs.x, *states, *inputs.weights, masks.keep_x, masks.keep_h, inputs.lengths]
    resets = inputs.resets
    tensors.append(reference.entering(resets, inputs.lengths, True) if case.reverse else resets)
    options = [masks.scale_x, masks.scale_h, case.reverse, *case.flags.values()]
    op = getattr(torch.ops.bayesrnn, case.kind.name)
    return op, (*tensors, *options, save, False, engine)


def backward_arguments(
    case: Case, inputs: Inputs, *, need_dx: bool = True, engine: str = "cpu"
) -> tuple:
    """(op, its arguments) of the backward op of a case, fed with what forward saves."""
    op, forward = op_arguments(case, inputs, engine=engine)
    with torch.no_grad():
        results = op(*forward)
    states = case.kind.states
    cotangents = [inputs.cotangents.get(k) for k in case.outputs]
    x_states_weights, keeps = forward[: 3 + states], forward[5 + states : 9 + states]
    saved = (results[0], *results[states + 1 :])
    *options, _save, allow_tf32, engine = forward[9 + states :]
    options += [case.bias, need_dx, allow_tf32, engine]
    op = getattr(torch.ops.bayesrnn, f"{case.kind.name}_backward")
    return op, (*cotangents, *x_states_weights, *keeps, *saved, *options)


# How far a result may lie from the float64 reference, relative to the largest magnitude that its
# tensor has there, and in float64 at most that in absolute terms.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
EPS = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def differences(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """One line per tensor of `actual` that is not what the float64 results `expected` say."""
    lines = [f"{k}: missing or unexpected" for k in actual.keys() ^ expected.keys()]
    for name in actual.keys() & expected.keys():
        value, exact = actual[name], expected[name]
        if value.shape != exact.shape:
            lines.append(f"{name}: shape {list(value.shape)}, expected {list(exact.shape)}")
        elif value.numel():
            largest = exact.abs().max().item()
            if value.dtype == torch.float64:
                largest = min(largest, 1.0)
            error = (value.double() - exact).abs().max().item()
            if not error <= TOLERANCE[value.dtype] * largest:  # a NaN is a difference
                lines.append(f"{name}: error {error:.3g}, largest magnitude {largest:.3g}")
    return lines


def low_precision_differences(
    actual: list[dict[str, Tensor]],
    own: list[dict[str, Tensor]],
    exact: list[dict[str, Tensor]],
    dtype: torch.dtype,
) -> list[str]:
    """One line per tensor whose error exceeds twice the reference's `own` in a dtype of EPS.

    Errors are norms over all draws of a case, because single numbers may be right by luck. One
    last place of the largest number is allowed in any case, for tensors of a few numbers.
    """
    lines = [f"{k}: missing or unexpected" for k in actual[0].keys() ^ exact[0].keys()]
    for name in actual[0].keys() & exact[0].keys():
        truth = stacked(exact, name)
        floor = EPS[dtype] * truth.abs().max().item()
        allowed = 2 * (stacked(own, name) - truth).norm().item() + floor
        error = (stacked(actual, name) - truth).norm().item()
        if not error <= allowed:
            lines.append(f"{name}: error {error:.3g}, allowed {allowed:.3g}")
    return lines


def stacked(results: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([r[name].double().flatten() for r in results])


def draws(case: Case) -> range:
    """Seeds of a comparison in low precision: several where the numbers are few."""
    return range(1 if case.T * case.B * case.H > 500 else 3)


def parity(case: Case, dtype: torch.dtype, engine: str = "cpu") -> list[str]:
    """Where the engine, in dtype, disagrees with the reference, in float64, on the same numbers."""
    if dtype != torch.bfloat16:
        inputs = sample(case, dtype)
        expected = run(case, inputs.to(torch.float64), "reference")
        actual = run(case, inputs, engine)
        wrong = [k for k, t in actual.items() if t.dtype != dtype]
        return [f"{k}: dtype {actual[k].dtype}" for k in wrong] or differences(actual, expected)
    samples = [sample(case, dtype, seed) for seed in draws(case)]
    return low_precision_differences(
        [run(case, inputs, engine) for inputs in samples],
        [run(case, inputs, "reference") for inputs in samples],
        [run(case, inputs.to(torch.float64), "reference") for inputs in samples],
        dtype,
    )


def product(**choices: Iterable) -> list[Case]:
    """A case for every combination of the given fields."""
    names = list(choices)
    return [Case(**dict(zip(names, c, strict=True))) for c in itertools.product(*choices.values())]


def sizes_and_masks() -> list[Case]:
    """Every cell, number of steps, size and kind of mask."""
    grid = product(cell=CELLS, T=(1, 2, 7), masks=MASKS)
    return [replace(case, B=B, I=I, H=H) for case in grid for B, I, H in SIZES]  # noqa: E741


def variations() -> list[Case]:
    """What else a layer may be asked: each on every cell, and in pairs where they may meet."""
    cells = {"cell": CELLS, "B": (5,), "I": (5,), "H": (17,)}
    both = (False, True)
    cases = product(
        **cells, masks=("none", "tied", "untied"), reverse=both, lengths=both, strided=both
    )
    cases += product(**cells, T=(1, 2), masks=("untied",), reverse=both, lengths=(True,))
    cases += product(**cells, resets=RESETS, reverse=both, lengths=both)
    cases += product(**cells, resets=("random",), masks=("none", "tied", "only_h"), strided=both)
    cases += product(**cells, T=(1, 2), resets=("random", "every"), reverse=both)
    cases += product(**cells, bias=(False,), lengths=both)
    cases += product(**cells, loss_of=(("y",), ("h_n",), ("y", "h_n")), lengths=both, reverse=both)
    cases += product(**cells, frozen=(("x",), ("x", "h0", "c0"), ("weight_ih", "bias_ih")))
    cases += product(
        **cells | {"cell": ("lstm",)}, loss_of=(("c_n",), ("h_n", "c_n")), lengths=both,
        reverse=both,
    )  # fmt: skip
    return list(dict.fromkeys(cases))


def large() -> list[Case]:
    """Several panels of units, blocks of 240 columns, blocks of rows, and chunks of backward."""
    wide = product(cell=CELLS, T=(3,), B=(30,), I=(250,), H=(260,), masks=("untied", "tied"))
    long = product(
        cell=CELLS, T=(60,), B=(61,), I=(5,), H=(17,), lengths=(False, True), reverse=(False, True),
        resets=("none", "random"),
    )  # fmt: skip
    crowd = product(cell=CELLS, T=(3,), B=(1030,), I=(3,), H=(35,))  # a step is a chunk
    return [*wide, *long, *crowd]

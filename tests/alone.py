"""A layer's sequences, and the segments of each, run one at a time: what running them together must
equal.
"""

from dataclasses import replace

import torch
from cases import Case, Inputs, run
from torch import Tensor

from bayesrnn_cuda.reference import LayerWeights


def segments(case: Case, inputs: Inputs, b: int) -> list[range]:
    """The steps of each segment of sequence b."""
    steps = case.T if inputs.lengths is None else int(inputs.lengths[b])
    resets = [] if inputs.resets is None else inputs.resets[1:steps, b].nonzero().flatten().tolist()
    begins = [0, *(t + 1 for t in resets)]
    return [range(*ends) for ends in zip(begins, [*begins[1:], steps], strict=True)]


def run_each_alone(case: Case, inputs: Inputs, engine: str) -> dict[str, Tensor]:
    """`run`, one segment of one sequence at a time and, for reverse, flipped. The first that runs
    starts from h0 (unless it begins with a reset), the last has the final states."""
    results = {k: torch.zeros_like(t) for k, t in run(case, inputs, engine).items()}
    for b in range(case.B):
        one = slice(b, b + 1)
        parts = segments(case, inputs, b)
        if not parts[0]:  # no step: the state passes through
            for name in inputs.cotangents.keys() - {"y"}:
                state = f"{name[0]}0"
                results[name][b] = getattr(inputs, state)[b]
                results[f"d_{state}"][b] = inputs.cotangents[name][b]
            continue
        for steps in parts:
            enters = steps is (parts[-1] if case.reverse else parts[0])
            if not case.reverse and inputs.resets is not None and inputs.resets[steps[0], b]:
                enters = False
            leaves = steps is (parts[0] if case.reverse else parts[-1])
            alone = one_segment(case, inputs, b, steps, enters=enters, leaves=leaves)
            for name, value in run(replace(case, reverse=False), alone, engine).items():
                if name in ("y", "d_x"):
                    turned = value.flip(0) if case.reverse else value
                    results[name][steps.start : steps.stop, one] = turned
                elif name.removeprefix("d_") in LayerWeights._fields:
                    results[name] += value
                elif enters if name.startswith("d_") else leaves:
                    results[name][one] = value
    return results


def one_segment(
    case: Case, inputs: Inputs, b: int, steps: range, *, enters: bool, leaves: bool
) -> Inputs:
    """Some steps of sequence b, in the order in which they run. `enters`: they start from h0;
    `leaves`: their final state is the sequence's."""
    one = slice(b, b + 1)

    def cut(t: Tensor) -> Tensor:
        part = t[steps.start : steps.stop, one]
        return part.flip(0) if case.reverse else part

    return inputs._replace(
        x=cut(inputs.x),
        h0=inputs.h0[one] * enters,
        c0=None if inputs.c0 is None else inputs.c0[one] * enters,
        masks=inputs.masks and inputs.masks.index_select(torch.tensor([b])),
        lengths=None,
        resets=None,
        cotangents={
            k: cut(t) if k == "y" else t[one] * leaves for k, t in inputs.cotangents.items()
        },
    )

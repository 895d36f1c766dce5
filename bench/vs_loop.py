"""This layer against the same masked layer as a Python loop over time steps.

python -m bench.vs_loop [--device cuda] [--dtype bfloat16] [--shape 35,20,650,650] [--compile]

--compile adds the loop under torch.compile, which unrolls it: about three minutes for 35 steps of
an LSTM on a CPU, so it is not the default and stops at --compile-limit steps.
"""

import torch
from torch import Tensor

from . import harness


def compiled_loop(case: harness.Case, device: torch.device, limit: int) -> harness.Variant:
    """The eager loop under torch.compile, if it has at most `limit` steps."""
    name = "masked loop, compiled"
    if limit < case.T:
        return harness.Variant(name, torch.nn.Identity(), [], skipped=f"not compiled: T > {limit}")
    loop = harness.eager_loop(case, device)
    torch.compiler.reset()  # else shapes of earlier cases turn dynamic, or the 9th runs eagerly
    # torch's own random numbers: masks equal to the eager loop's under the same seed
    compiled = torch.compile(loop.layer, options={"fallback_random": True})

    def check() -> None:
        """Against the eager loop under one seed; also compiles, before anything is timed."""
        x, dy = case.input(device), case.cotangent(device)
        inputs = [x, *loop.parameters]

        def results(layer: torch.nn.Module) -> list[Tensor]:
            torch.manual_seed(0)
            with torch.no_grad():
                forward = layer(x)[0]
            torch.manual_seed(0)
            y = layer(x)[0]
            return [forward, y, *torch.autograd.grad(y, inputs, dy)]

        for got, want in zip(results(compiled), results(loop.layer), strict=True):
            error = (got - want).abs().max() / want.abs().max()
            if not error <= harness.tolerance(case.torch_dtype, device):
                raise AssertionError(f"{case}: {name} is off by {error:.1e} of the largest value")

    return harness.Variant(name, compiled, loop.parameters, check)


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--compile", action="store_true", help="the loop under torch.compile too")
    parser.add_argument(
        "--compile-limit", type=int, default=50, metavar="T", help="no longer loop (default 50)"
    )
    arguments = parser.parse_args()

    def variants(case: harness.Case, device: torch.device) -> list[harness.Variant]:
        return [
            harness.eager_loop(case, device),
            *([compiled_loop(case, device, arguments.compile_limit)] if arguments.compile else []),
            harness.ours(case, device, "untied"),
        ]

    harness.compare(__doc__, variants, arguments)


if __name__ == "__main__":
    main()

"""mc_predict, whose samples run as batch, against as many separate calls under mc_dropout.

python -m bench.mc_predict [--samples 50] [--device cuda] [--cell gru] [--shape 35,20,200,200]

Both give mean and standard deviation of all outputs.
"""

import warnings
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from . import harness
from .options import count

SHAPES = ((35, 1, 200, 200), (35, 20, 200, 200), (100, 1, 300, 300), (200, 8, 128, 128))
CHECKED_SAMPLES = 200


def separate(layer: nn.Module, samples: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of one call a sample."""
    with torch.no_grad(), brnn.mc_dropout(layer):
        draws = torch.stack([layer(x)[0] for _ in range(samples)])
    return draws.mean(dim=0), draws.std(dim=0, correction=0)


def together(layer: nn.Module, samples: int, x: Tensor) -> tuple[Tensor, Tensor]:
    prediction = brnn.mc_predict(layer, x, samples=samples, output_batch_dim=1)
    return prediction.mean, prediction.std


def check(case: harness.Case, layer: nn.Module, device: torch.device) -> None:
    """The same mean and spread but for chance; without dropout the layer's output and none."""
    short = replace(case, T=min(case.T, 8))
    x = short.input(device).detach()
    mean, std = together(layer, CHECKED_SAMPLES, x)
    expected_mean, expected_std = separate(layer, CHECKED_SAMPLES, x)
    if mean.shape != expected_mean.shape or mean.shape != std.shape:
        raise AssertionError(f"{case}: shape {list(mean.shape)}, not {list(expected_mean.shape)}")
    # squared difference by its own variance: 1 in expectation; few outputs may all be off at once
    variance = (std.double().square() + expected_std.double().square()) / CHECKED_SAMPLES
    score = ((mean - expected_mean).double().square() / variance).mean().item()
    spread = (std.double().mean() / expected_std.double().mean()).item()
    if not (score < 9 and 0.8 < spread < 1.25):
        raise AssertionError(
            f"{case}: means differ by {score**0.5:.1f} standard deviations, spreads by {spread:.2f}"
        )
    certain = type(layer)(case.I, case.H, device=device, dtype=case.torch_dtype)
    certain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        y = certain(x)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that no dropout drew masks
        both = together(certain, 3, x)
    for got, want in zip(both, (y, torch.zeros_like(y)), strict=True):
        error = ((got - want).abs().max() / y.abs().max()).item()
        if not error <= harness.tolerance(case.torch_dtype, device):
            raise AssertionError(f"{case}: without dropout off by {error:.1e} of the largest value")


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--samples", type=count, default=50, metavar="S", help="default 50")
    arguments = parser.parse_args()
    arguments.shape = arguments.shape or SHAPES

    def variants(case: harness.Case, device: torch.device) -> list[harness.Variant]:
        ours = harness.ours(case, device, "untied")

        def both() -> None:
            ours.check()
            check(case, ours.layer, device)

        samples = arguments.samples
        return [
            harness.Variant(f"{samples} calls", partial(separate, ours.layer, samples), [], both),
            harness.Variant("mc_predict", partial(together, ours.layer, samples), []),
        ]

    harness.compare(__doc__, variants, arguments, partial(harness.measure, backward=False))


if __name__ == "__main__":
    main()

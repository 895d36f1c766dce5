"""This layer, masks on, against FlashRNN and Haste without masks, where they are installed.

python -m bench.vs_peers [--dtype bfloat16] [--shape 1024,16,768,768]

Both are compared with their input product inside, as every figure here. FlashRNN is checked against
its own plain backend, Haste against this package's reference.
"""

import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from . import harness
from .layers import LAYERS

PEERS = ("flashrnn", "haste_pytorch")


def installed() -> dict[str, ModuleType]:
    """The peers that can be imported; says so of the others."""
    found = {}
    for name in PEERS:
        try:
            found[name] = importlib.import_module(name)
        except ImportError as error:
            print(f"{name}: not measured, {error}")
    return found


def flashrnn(case: harness.Case, device: torch.device, module: ModuleType) -> harness.Variant:
    """One head, its fused kernels, and torch's product for the input."""
    gates, options = LAYERS[case.cell].cell.gates, {"device": device, "dtype": case.torch_dtype}
    linear = nn.Linear(case.I, gates * case.H, bias=False, **options)
    recurrent = (torch.randn(gates, 1, case.H, case.H, **options) / case.H**0.5).requires_grad_()
    bias = torch.zeros(gates, 1, case.H, **options).requires_grad_()

    def layer(x: Tensor, backend: str = "cuda_fused") -> tuple[Tensor, Tensor]:
        a = linear(x).view(*x.shape[:2], gates, 1, case.H).transpose(0, 1).contiguous()
        states, last = module.flashrnn(a, recurrent, bias, function=case.cell, backend=backend)
        return states[0].squeeze(2).transpose(0, 1), last

    def check() -> None:
        with torch.no_grad():
            x = case.input(device)[:8]
            difference = (layer(x)[0] - layer(x, "vanilla")[0]).abs().max().item()
        if not difference <= harness.tolerance(case.torch_dtype, device):
            raise AssertionError(f"{case}: FlashRNN is off by {difference:.1e} of its own loop")

    return harness.Variant(
        "FlashRNN, no masks", layer, [*linear.parameters(), recurrent, bias], check
    )


def haste(case: harness.Case, device: torch.device, module: ModuleType) -> harness.Variant:
    """float32 only. Its gates are i g f o and its weights transposed."""
    layer = module.LSTM(case.I, case.H).to(device)

    def check() -> None:
        def ours(columns: Tensor) -> Tensor:
            i, g, f, o = columns.chunk(4, -1)
            return torch.cat([i, f, g, o], -1).t().contiguous()

        weights = brnn.LayerWeights(
            ours(layer.kernel), ours(layer.recurrent_kernel), ours(layer.bias),
            torch.zeros_like(layer.bias),
        )  # fmt: skip
        with torch.no_grad():
            x = case.input(device)[:8]
            zero = x.new_zeros(case.B, case.H)
            expected = brnn.reference.lstm(x, zero, zero, weights)[0]
            difference = (layer(x)[0] - expected).abs().max().item()
        if not difference <= harness.tolerance(case.torch_dtype, device):
            raise AssertionError(f"{case}: Haste is off by {difference:.1e}")

    return harness.Variant("Haste, no masks", layer, list(layer.parameters()), check)


def main() -> None:
    parser = harness.options(__doc__)
    parser.set_defaults(device="cuda")
    arguments = parser.parse_args()
    arguments.cell = arguments.cell or ["lstm"]
    arguments.shape = arguments.shape or [(1024, 16, 768, 768)]
    peers = installed()
    if not peers:
        sys.exit()

    def variants(case: harness.Case, device: torch.device) -> list[harness.Variant]:
        found = []
        if "flashrnn" in peers and case.dtype != "float32":
            found.append(flashrnn(case, device, peers["flashrnn"]))
        if "haste_pytorch" in peers and (case.cell, case.dtype) == ("lstm", "float32"):
            found.append(haste(case, device, peers["haste_pytorch"]))
        return [*found, harness.ours(case, device, "untied")]

    harness.compare(__doc__, variants, arguments)


if __name__ == "__main__":
    main()

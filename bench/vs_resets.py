"""Segments inside a sequence, masks on, against what a user without `resets` does, masks off.

python -m bench.vs_resets [--device cuda] [--rate 0.01] [--shape 128,256,32,512]

A rate is how often a step begins a new segment. The others are torch's own layer, on segments that
are split and padded, or step by step in a Python loop; and torchrl's module where it is installed.
All start from zero; outputs are compared with the reference before anything is timed.
"""

import argparse
import warnings

import torch
from torch import Tensor, nn

from . import harness
from .layers import LAYERS

RATES = (0.0, 0.001, 0.01, 0.1)
SHAPES = [(128, 256, 32, 512), (128, 16, 64, 128)]


class Masked(nn.Module):
    """This package's layer with resets (None: nowhere)."""

    def __init__(self, layer: nn.Module, resets: Tensor | None) -> None:
        super().__init__()
        self.layer, self.resets = layer, resets

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.layer(x, resets=self.resets)[0], None


class SplitAndPad(nn.Module):
    """Each segment a sequence of its own, padded to the longest."""

    def __init__(self, layer: nn.RNNBase, resets: Tensor) -> None:
        super().__init__()
        self.layer, self.resets = layer, resets

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        T, B, size = x.shape
        begins = self.resets.t().clone()
        begins[:, 0] = True
        begins = begins.flatten()  # step by step, one sequence after the other
        segment = begins.cumsum(0) - 1
        first = begins.nonzero().squeeze(1)
        step = torch.arange(T * B, device=x.device) - first[segment]
        padded = x.new_zeros(int(step.max()) + 1, len(first), size)
        padded[step, segment] = x.transpose(0, 1).reshape(T * B, size)
        y, _ = self.layer(padded)
        return y[step, segment].view(B, T, -1).transpose(0, 1), None


class Loop(nn.Module):
    """A call of the layer for each step, as stable-baselines3's recurrent PPO has it."""

    def __init__(self, layer: nn.RNNBase, resets: Tensor) -> None:
        super().__init__()
        self.layer, self.resets = layer, resets

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        zero = x.new_zeros(1, x.shape[1], self.layer.hidden_size)
        is_lstm = isinstance(self.layer, nn.LSTM)
        states = (zero, zero) if is_lstm else (zero,)
        outputs = []
        for x_t, reset in zip(x.unsqueeze(1), self.resets, strict=True):
            keep = (~reset).to(x.dtype).view(1, -1, 1)
            states = tuple(keep * state for state in states)
            y, final = self.layer(x_t, states if is_lstm else states[0])
            states = final if is_lstm else (final,)
            outputs.append(y)
        return torch.cat(outputs), None


class TorchRL(nn.Module):
    """torchrl's module, whose tensors are batch-first and come in a TensorDict."""

    def __init__(self, layer: nn.RNNBase, resets: Tensor, backend: str) -> None:
        super().__init__()
        from torchrl.modules import GRUModule, LSTMModule

        is_lstm = isinstance(layer, nn.LSTM)
        states = ["h", "c"] if is_lstm else ["h"]
        batch_first = type(layer)(
            layer.input_size, layer.hidden_size, batch_first=True,
            device=layer.weight_ih_l0.device, dtype=layer.weight_ih_l0.dtype,
        )  # fmt: skip
        batch_first.load_state_dict(layer.state_dict())
        named = {"lstm" if is_lstm else "gru": batch_first}
        self.module = (LSTMModule if is_lstm else GRUModule)(
            **named, in_keys=["x", *states], out_keys=["y", *(f"next_{s}" for s in states)],
            default_recurrent_mode=True, recurrent_backend=backend,
        )  # fmt: skip
        self.resets, self.states = resets, states

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        from tensordict import TensorDict

        T, B, _ = x.shape
        zero = x.new_zeros(()).expand(B, T, 1, self.module_hidden())
        content = {"x": x.transpose(0, 1), "is_init": self.resets.t().unsqueeze(-1)}
        content |= dict.fromkeys(self.states, zero)
        return self.module(TensorDict(content, batch_size=(B, T)))["y"].transpose(0, 1), None

    def module_hidden(self) -> int:
        return getattr(self.module, "lstm" if "c" in self.states else "gru").hidden_size


def has_torchrl() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchrl.modules  # noqa: F401
    except ImportError as error:
        print(f"torchrl: not measured, {error}")
        return False
    return True


def variants_of(
    case: harness.Case, device: torch.device, rates: list[float], torchrl: bool
) -> list[harness.Variant]:
    """Ours without resets first; what takes the same time at every rate once, at the last."""
    options = {"device": device, "dtype": case.torch_dtype}
    layer = LAYERS[case.cell].ours(
        case.I, case.H, input_dropout=case.p, recurrent_dropout=case.p, **options
    )
    other = LAYERS[case.cell].theirs(case.I, case.H, **options)
    other.load_state_dict(layer.state_dict())
    name = f"nn.{case.cell.upper()}"

    def variant(text: str, module: nn.Module, resets: Tensor) -> harness.Variant:
        return harness.Variant(
            text, module, list(module.parameters()),
            lambda: check(case, device, layer, module, resets),
        )  # fmt: skip

    found = [harness.ours(case, device, "untied")]
    found[0].name += ", no resets"
    generator = torch.Generator().manual_seed(0)
    for rate in rates:
        resets = (torch.rand(case.T, case.B, generator=generator) < rate).to(device)
        found.append(variant(f"bayesrnn untied, {rate:g}", Masked(layer, resets), resets))
        found.append(variant(f"{name}, padded, {rate:g}", SplitAndPad(other, resets), resets))
        if torchrl:
            found.append(variant(f"torchrl pad, {rate:g}", TorchRL(other, resets, "pad"), resets))
    if torchrl:
        found.append(variant("torchrl scan", TorchRL(other, resets, "scan"), resets))
    found.append(variant(f"{name}, loop", Loop(other, resets), resets))
    return found


def check(
    case: harness.Case, device: torch.device, layer: nn.Module, module: nn.Module, resets: Tensor
) -> None:
    """What `module` gives without masks, against the reference."""
    exact = type(layer)(case.I, case.H, engine="reference", device=device, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    x = case.input(device).detach()
    module.eval()
    with torch.no_grad():
        expected = exact.eval()(x.double(), resets=resets)[0]
        error = (module(x)[0].double() - expected).abs().max() / expected.abs().max()
    module.train()
    if not error <= harness.tolerance(case.torch_dtype, device):
        raise AssertionError(f"{case}: off by {error:.1e} of the largest value")


def rate(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a rate from 0 to 1, got '{text}'")
    return value


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--rate", action="append", type=rate, help="(default: 0, 0.001, 0.01, 0.1)")
    parser.add_argument("--no-torchrl", action="store_true", help="leave torchrl out")
    arguments = parser.parse_args()
    arguments.cell = arguments.cell or ["lstm"]
    arguments.shape = arguments.shape or SHAPES
    rates = arguments.rate or list(RATES)
    torchrl = not arguments.no_torchrl and has_torchrl()
    harness.compare(
        __doc__, lambda case, device: variants_of(case, device, rates, torchrl), arguments
    )


if __name__ == "__main__":
    main()

"""A recurrent layer with variational dropout in torchrl: python docs/examples/torchrl_module.py

`RecurrentModule` reads and writes a TensorDict as torchrl's LSTMModule and GRUModule do: `is_init`
says where a trajectory begins. Trajectories that follow one another in a row are one call of one
layer; nothing is split, padded and stitched.

Needs `pip install torchrl`.
"""

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.modules import GRUModule, LSTMModule

import bayesrnn_cuda as brnn


class RecurrentModule(TensorDictModuleBase):
    """A batch-first BayesianLSTM or BayesianGRU over TensorDicts [B, T], in one direction.

    Args:
        layer: the layer.
        in_keys: of the input [B, T, I] and of each state [B, T, layers, H], whose first step is the
            state to go on from; `is_init` [B, T, 1] is read too.
        out_keys: of the output [B, T, H] and of each state; a state is known where a row ends, and
            zero elsewhere.
    """

    def __init__(
        self,
        layer: brnn.BayesianLSTM | brnn.BayesianGRU,
        in_keys: list[str],
        out_keys: list[str | tuple[str, ...]],
    ) -> None:
        super().__init__()
        self.layer = layer
        self.in_keys, self.out_keys = [*in_keys, "is_init"], out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        x, *states, is_init = (tensordict[key] for key in self.in_keys)
        hx = tuple(state[:, 0].transpose(0, 1).contiguous() for state in states)
        one_state = len(hx) == 1
        y, finals = self.layer(x, hx[0] if one_state else hx, resets=is_init.squeeze(-1))
        finals = (finals,) if one_state else finals
        ends = [self._at_the_end(f, state) for f, state in zip(finals, states, strict=True)]
        for key, value in zip(self.out_keys, (y, *ends), strict=True):
            tensordict.set(key, value)
        return tensordict

    @staticmethod
    def _at_the_end(final: Tensor, like: Tensor) -> Tensor:
        """[layers, B, H] at the last step of zeros [B, T, layers, H]."""
        result = torch.zeros_like(like)
        result[:, -1] = final.transpose(0, 1)
        return result


def rollout(B: int, T: int, sizes: tuple[int, int], states: int) -> TensorDict:
    """Rows of trajectories: input, the states to go on from, and where trajectories begin."""
    size, hidden = sizes
    is_init = torch.rand(B, T, 1) < 0.2
    content = {"x": torch.randn(B, T, size), "is_init": is_init}
    for name in ("h", "c")[:states]:
        state = torch.randn(B, T, 1, hidden)
        content[name] = torch.where(is_init.unsqueeze(-1), 0.0, state)  # as a collector has it
    return TensorDict(content, batch_size=(B, T))


def main() -> None:
    torch.manual_seed(0)
    size, hidden = 5, 16
    for name, theirs, ours, states in (
        ("LSTMModule", LSTMModule, brnn.BayesianLSTM, ["h", "c"]),
        ("GRUModule", GRUModule, brnn.BayesianGRU, ["h"]),
    ):
        in_keys = ["x", *states]
        out_keys: list[str | tuple[str, ...]] = ["y", *(("next", state) for state in states)]
        module = theirs(
            input_size=size, hidden_size=hidden, in_keys=in_keys, out_keys=out_keys,
            default_recurrent_mode=True,
        )  # fmt: skip
        torch_layer = module.lstm if name == "LSTMModule" else module.gru
        layer = ours.from_torch(torch_layer, recurrent_dropout=0.25)
        given = rollout(8, 20, (size, hidden), len(states))
        with torch.no_grad():
            expected = module(given.clone())
            got = RecurrentModule(layer.eval(), in_keys, out_keys)(given.clone())
        difference = (got["y"] - expected["y"]).abs().max()
        print(f"{name}: {int(given['is_init'].sum())} trajectories, largest difference without "
              f"masks {difference:.0e}")  # fmt: skip


if __name__ == "__main__":
    main()

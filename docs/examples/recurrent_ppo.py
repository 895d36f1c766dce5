"""A recurrent policy with variational dropout: python docs/examples/recurrent_ppo.py STEPS

The pole on a cart with its velocities hidden: who balances it must remember. The policy is that of
stable-baselines3's contributed recurrent PPO, whose LSTM runs step by step in Python as soon as an
episode begins within its batch. Here it is one call, whatever episodes lie in it: `resets`.

Needs `pip install sb3-contrib`.
"""

import sys
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor

import bayesrnn_cuda as brnn


class WithoutVelocities(gymnasium.ObservationWrapper):
    """Position of the cart and angle of the pole, without how fast they change."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        low, high = env.observation_space.low[::2], env.observation_space.high[::2]
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[::2]


class DropoutPolicy(RecurrentActorCriticPolicy):
    """The recurrent policy with this package's LSTM in the place of torch's.

    `draw_masks` begins a rollout: its masks serve all environments in it and the updates that
    follow, because PPO compares what one and the same function says before and after an update.
    Without masks the policy is the mean network.
    """

    def __init__(
        self, *args: Any, input_dropout: float = 0.0, recurrent_dropout: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        # The parameters stay the same objects, which the optimizer knows already.
        brnn.convert(self, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout)
        self.masks: dict[brnn.BayesianLSTM, list[brnn.LayerMasks]] = {}

    def draw_masks(self) -> None:
        """One set for each LSTM, until it is called again."""
        layers = [self.lstm_actor, self.lstm_critic]
        self.masks = {layer: layer.sample_masks(1) for layer in layers if layer is not None}

    def drop_masks(self) -> None:
        self.masks = {}

    def _process_sequence(
        self,
        features: Tensor,
        lstm_states: tuple[Tensor, Tensor],
        episode_starts: Tensor,
        lstm: brnn.BayesianLSTM,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Features [sequences * steps, F], one sequence after the other: all steps in one call."""
        sequences = lstm_states[0].shape[1]
        x = features.reshape(sequences, -1, lstm.input_size).transpose(0, 1)
        resets = episode_starts.reshape(sequences, -1).t() > 0.5
        masks = None
        if lstm in self.masks:  # the one set for every sequence
            index = torch.zeros(sequences, dtype=torch.int64, device=x.device)
            masks = [m.index_select(index) for m in self.masks[lstm]]
        y, states = lstm(x, lstm_states, masks=masks, resets=resets)
        return y.transpose(0, 1).flatten(0, 1), states


class NewMasks(BaseCallback):
    """New masks for each rollout, and none after the last."""

    def _on_rollout_start(self) -> None:
        self.model.policy.draw_masks()

    def _on_training_end(self) -> None:
        self.model.policy.drop_masks()

    def _on_step(self) -> bool:
        return True


def make_env() -> gymnasium.Env:
    return WithoutVelocities(gymnasium.make("CartPole-v1"))


def train(steps: int, seed: int = 0, environments: int = 8, **policy: Any) -> RecurrentPPO:
    """A policy after so many steps of all environments together."""
    model = RecurrentPPO(
        DropoutPolicy, make_vec_env(make_env, environments, seed=seed), seed=seed, n_steps=128,
        batch_size=256, n_epochs=10, learning_rate=1e-3, gamma=0.98, gae_lambda=0.9,
        policy_kwargs={"lstm_hidden_size": 32, "net_arch": [], **policy}, device="cpu",
    )  # fmt: skip
    return model.learn(steps, callback=NewMasks())


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
    model = train(steps)
    mean, deviation = evaluate_policy(model, model.get_env(), n_eval_episodes=20)
    print(f"after {steps} steps: {mean:.0f} +- {deviation:.0f} of 500")


if __name__ == "__main__":
    main()

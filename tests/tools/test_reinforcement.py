"""Clients of `resets`: stable-baselines3's recurrent PPO and torchrl's recurrent modules, by the
examples under docs/. They run where those packages are installed: `pip install '.[rl]'`.
"""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import bayesrnn_cuda as brnn

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports an example, or skips where what it needs is not installed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str, *needs: str):
        for package in needs:
            pytest.importorskip(package, reason=f"{package} is not installed")
        return importlib.import_module(name)

    yield load
    for name in ("recurrent_ppo", "torchrl_module"):
        sys.modules.pop(name, None)


@pytest.fixture
def ppo(example):
    return example("recurrent_ppo", "sb3_contrib", "gymnasium")


def policy_of(ppo, **options):
    env = ppo.make_env()
    torch.manual_seed(0)
    return ppo.DropoutPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3,
        lstm_hidden_size=8, net_arch=[], **options,
    )  # fmt: skip


def batch(sequences: int = 3, steps: int = 10):
    """Padded sequences as the rollout buffer of sb3-contrib has them, one after the other."""
    torch.manual_seed(1)
    features = torch.randn(sequences * steps, 2)
    starts = (torch.rand(sequences * steps) < 0.2).float()
    states = tuple(torch.randn(1, sequences, 8) for _ in range(2))
    return features, states, starts


def test_one_call_is_the_loop_of_sb3(ppo):
    """Outputs, states and gradients equal those of the loop over time, without masks."""
    policy = policy_of(ppo).eval()
    features, states, starts = batch()
    assert starts.any()
    loop = ppo.RecurrentActorCriticPolicy._process_sequence
    results = []
    for process, lstm in (
        (policy._process_sequence, policy.lstm_actor),
        (loop, policy.lstm_actor.to_torch()),
    ):
        y, (h, c) = process(features, states, starts, lstm)
        loss = y.square().sum() + h.sum() + c.sum()
        results.append([y, h, c, *torch.autograd.grad(loss, list(lstm.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_updates_make_one_call_of_each_lstm(ppo):
    policy = policy_of(ppo)
    calls = []
    for lstm in (policy.lstm_actor, policy.lstm_critic):
        lstm.register_forward_hook(lambda module, args, out: calls.append(out[0].shape))
    features, states, starts = batch()
    actions = torch.zeros(len(features), dtype=torch.int64)
    both = type("RNNStates", (), {"pi": states, "vf": states})
    policy.evaluate_actions(features, actions, both, starts)
    assert calls == [(10, 3, 8)] * 2


def test_masks_are_held_over_a_rollout_and_its_updates(ppo):
    policy = policy_of(ppo, recurrent_dropout=0.5)
    policy.draw_masks()
    features, no_starts = torch.randn(2, 1, 2).expand(2, 3, 2), torch.zeros(3)
    same = tuple(torch.ones(1, 3, 8) for _ in range(2))

    def output():
        return policy._process_sequence(features[0], same, no_starts, policy.lstm_actor)[0]

    policy.set_training_mode(False)
    rollout = output()
    policy.set_training_mode(True)
    assert torch.equal(output(), rollout)
    assert torch.equal(rollout[0], rollout[1])  # every environment has the same masks
    policy.draw_masks()
    assert not torch.equal(output(), rollout)


def test_a_recurrent_policy_learns(ppo):
    """A few updates of everything together; whether it balances the pole takes minutes."""
    env = ppo.make_vec_env(ppo.make_env, 2)

    class Look(ppo.BaseCallback):
        masks, weights = [], []

        def _on_rollout_start(self):
            (drawn, *_), policy = self.model.policy.masks.values(), self.model.policy
            self.masks.append(drawn[0].keep_h)
            self.weights.append(policy.lstm_actor.weight_hh_l0.detach().clone())

        def _on_step(self):
            return True

    look = Look()
    model = ppo.RecurrentPPO(
        ppo.DropoutPolicy, env, seed=0, n_steps=32, batch_size=32, n_epochs=2,
        policy_kwargs={"lstm_hidden_size": 8, "net_arch": [], "recurrent_dropout": 0.5},
    )  # fmt: skip
    model.learn(128, callback=[ppo.NewMasks(), look])
    assert isinstance(model.policy.lstm_actor, brnn.BayesianLSTM)
    assert len(look.masks) == 2 and not torch.equal(*look.masks)
    assert not torch.equal(*look.weights)
    assert not model.policy.masks
    for parameter in model.policy.parameters():
        assert parameter.isfinite().all()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_is_init_of_torchrl(example, kind):
    """Outputs and gradients of RecurrentModule equal those of torchrl's module."""
    rl = example("torchrl_module", "torchrl", "tensordict")
    ours, theirs = {
        "lstm": (brnn.BayesianLSTM, rl.LSTMModule), "gru": (brnn.BayesianGRU, rl.GRUModule)
    }[kind]  # fmt: skip
    states = ["h", "c"] if kind == "lstm" else ["h"]
    in_keys, out_keys = ["x", *states], ["y", *(("next", state) for state in states)]
    torch.manual_seed(0)
    module = theirs(
        input_size=3, hidden_size=6, in_keys=in_keys, out_keys=out_keys, default_recurrent_mode=True
    )
    torch_layer = getattr(module, kind)
    layer = ours.from_torch(torch_layer)
    given = rl.rollout(4, 9, (3, 6), len(states))
    assert given["is_init"][:, 1:].any()
    results = []
    for call, parameters in (
        (module, torch_layer.parameters()),
        (rl.RecurrentModule(layer, in_keys, out_keys), layer.parameters()),
    ):
        out = call(given.clone())
        ends = [out["next", state][:, -1] for state in states]
        loss = out["y"].square().sum() + sum(end.sum() for end in ends)
        results.append([out["y"], *ends, *torch.autograd.grad(loss, list(parameters))])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

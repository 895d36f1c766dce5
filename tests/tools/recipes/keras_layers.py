"""Prints by how much layers from `from_keras` differ from those of Keras, as JSON.

Run with KERAS_BACKEND in the environment, in a process of its own for each backend.
"""

import json
import os

# beside pytest's processes all of the machine is none of its business
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import keras
import numpy as np
import torch
from torch import nn

import bayesrnn_cuda as brnn

I, H, T, B = 5, 4, 7, 3  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, I)).astype(np.float32)


def of_keras(layer, x=X, **options):
    """What the layer computes, with weights that are not what it began with."""
    layer(x)
    layer.set_weights([RNG.normal(size=w.shape) for w in layer.get_weights()])
    return keras.ops.convert_to_numpy(layer(x, **options))


def of_ours(layer, x=X, **options):
    y, _ = layer(torch.from_numpy(np.array(x)), **options)
    return y.detach().numpy()


def plain(kind, **options):
    layer = kind(H, return_sequences=True, **options)
    expected = of_keras(layer)
    return layer, expected, of_ours(brnn.from_keras(layer).eval())


def both_directions(kind, **options):
    layer = keras.layers.Bidirectional(kind(H, return_sequences=True, **options))
    expected = of_keras(layer)
    return layer, expected, of_ours(brnn.from_keras(layer).eval())


def masked(kind, recurrent_dropout=0.25, **options):
    """With masks of our own in both: Keras's training=True is a call with masks here."""
    p = recurrent_dropout
    layer = kind(H, return_sequences=True, dropout=0.5, recurrent_dropout=p, **options)
    gates = getattr(layer.cell, "dropout_mask_count", None) or 1
    keep_x, keep_h = RNG.random((gates, B, I)) < 0.5, RNG.random((gates, B, H)) < 1 - p
    scaled = keep_x.astype(np.float32) / 0.5, keep_h.astype(np.float32) / (1 - p)
    for name, value in zip(("get_dropout_mask", "get_recurrent_dropout_mask"), scaled, strict=True):
        value = [keras.ops.convert_to_tensor(mask) for mask in value]
        value = value if gates > 1 else value[0]
        setattr(layer.cell, name, lambda _, value=value: value)
    expected = of_keras(layer, training=True)
    ours = brnn.from_keras(layer)
    assert ours.input_dropout == (0.5,) and ours.recurrent_dropout == p
    assert ours.sample_masks(B)[0].keep_x.shape == keep_x.shape
    order = [1, 0, 2] if gates == 3 else list(range(gates))  # z, r, h there, and r, z, n here
    keeps = torch.from_numpy(keep_x[order]), torch.from_numpy(keep_h[order])
    return layer, expected, of_ours(ours, masks=[brnn.LayerMasks(*keeps, 2.0, 1 / (1 - p))])


def frozen():
    """trainable=False, and classes of one's own."""

    @keras.saving.register_keras_serializable()
    class Named(LSTM):
        pass

    class Zero(LSTM):
        def call(self, sequences, initial_state=None, mask=None, training=False):
            return 0 * super().call(sequences, initial_state, mask, training)

    layer = keras.layers.Bidirectional(Named(H, return_sequences=True), trainable=False)
    expected = of_keras(layer)
    ours = brnn.from_keras(layer).eval()
    assert not any(p.requires_grad for p in ours.parameters())
    zero = Zero(H)
    zero(X)
    try:
        brnn.from_keras(zero)
    except ValueError as error:
        assert "Zero, which has call of its own" in str(error)
        return layer, expected, of_ours(ours)
    raise AssertionError("a call of its own was ignored")


def stacked():
    first, second = (keras.layers.GRU(H, return_sequences=True) for _ in range(2))
    expected = of_keras(second, of_keras(first))
    ours = brnn.BayesianGRU(I, H, 2, batch_first=True)
    brnn.load_keras_weights(ours, first.get_weights() + second.get_weights())
    return second, expected, of_ours(ours.eval())


def low_precision():
    initial = {"recurrent_initializer": "glorot_uniform"}  # JAX has no other in bfloat16
    layer = keras.layers.LSTM(H, dtype="bfloat16", **initial)
    of_keras(layer)
    ours = brnn.from_keras(layer)
    arrays = [np.asarray(array, dtype=np.float32) for array in layer.get_weights()]
    return layer, arrays[0].T, ours.weight_ih_l0.detach().numpy()


def padded():
    """Keras's mask of padding is a packed sequence here."""
    layer = keras.layers.LSTM(H, return_sequences=False)
    lengths = [7, 2, 4]
    of_keras(layer)
    mask = np.arange(T) < np.array(lengths)[:, None]
    expected = keras.ops.convert_to_numpy(layer(X, mask=keras.ops.convert_to_tensor(mask)))
    packed = nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(X), torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    _, (h, _) = brnn.from_keras(layer).eval()(packed)
    return layer, expected, h[-1].detach().numpy()


LSTM, GRU, RNN = keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN
CASES = {
    "LSTM": lambda: plain(LSTM),
    "LSTM without bias": lambda: plain(LSTM, use_bias=False),
    "GRU": lambda: plain(GRU),
    "GRU without bias": lambda: plain(GRU, use_bias=False),
    "GRU, reset before": lambda: plain(GRU, reset_after=False),
    "GRU, reset before, without bias": lambda: plain(GRU, reset_after=False, use_bias=False),
    "SimpleRNN": lambda: plain(RNN),
    "LSTM, both directions": lambda: both_directions(LSTM),
    "GRU, both directions": lambda: both_directions(GRU, reset_after=False),
    "LSTM with masks": lambda: masked(LSTM),
    "GRU with masks": lambda: masked(GRU),
    "GRU, reset before, with masks": lambda: masked(GRU, reset_after=False),
    "SimpleRNN with masks": lambda: masked(RNN),
    "LSTM with masks of the input alone": lambda: masked(LSTM, 0.0),
    "GRU with masks of the input alone": lambda: masked(GRU, 0.0),
    "LSTM with masks of the input alone, one per gate": lambda: masked(
        LSTM, 0.0, implementation=1, use_cudnn=False
    ),
    "two layers": stacked,
    "frozen": frozen,
    "bfloat16": low_precision,
    "padded": padded,
}

if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    found = {}
    for name, case in CASES.items():
        _, expected, got = case()
        assert expected.shape == got.shape and np.abs(expected).max() > 0.1, name
        found[name] = float(np.abs(expected.astype(np.float32) - got).max())
    relu = LSTM(H, activation="relu")
    of_keras(relu)
    try:
        brnn.from_keras(relu)
    except ValueError as error:
        found["relu"] = str(error)
    print(json.dumps(found | {"backend": keras.backend.backend()}))

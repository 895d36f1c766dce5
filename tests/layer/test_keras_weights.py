"""Layers from the arrays of Keras, against its equations as its documentation has them, in numpy.

tests/tools/test_keras.py has the same against Keras itself, where that is installed.
"""

import types

import numpy as np
import pytest
import torch

import bayesrnn_cuda as brnn

I, H, T, B = 5, 4, 6, 3  # noqa: E741
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}
OURS = {"LSTM": brnn.BayesianLSTM, "GRU": brnn.BayesianGRU, "SimpleRNN": brnn.BayesianRNN}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def keras_lstm(x, kernel, recurrent, bias=0.0):
    h, c, outputs = np.zeros((B, H)), np.zeros((B, H)), []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, axis=1)


def keras_gru(x, kernel, recurrent, bias=None, *, reset_after):
    by_input, by_state = bias if bias is not None and reset_after else (bias, None)
    by_input = 0.0 if by_input is None else by_input
    by_state = np.zeros(3 * H) if by_state is None else by_state
    h, outputs = np.zeros((B, H)), []
    for t in range(x.shape[1]):
        z, r, n = np.split(x[:, t] @ kernel + by_input, 3, axis=1)
        z = sigmoid(z + h @ recurrent[:, :H] + by_state[:H])
        r = sigmoid(r + h @ recurrent[:, H : 2 * H] + by_state[H : 2 * H])
        if reset_after:
            n = np.tanh(n + r * (h @ recurrent[:, 2 * H :] + by_state[2 * H :]))
        else:
            n = np.tanh(n + (r * h) @ recurrent[:, 2 * H :])
        h = z * h + (1 - z) * n
        outputs.append(h)
    return np.stack(outputs, axis=1)


def keras_rnn(x, kernel, recurrent, bias=0.0):
    h, outputs = np.zeros((B, H)), []
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] @ kernel + h @ recurrent + bias)
        outputs.append(h)
    return np.stack(outputs, axis=1)


def run(name, x, arrays, reset_after):
    if name == "GRU":
        return keras_gru(x, *arrays, reset_after=reset_after)
    return {"LSTM": keras_lstm, "SimpleRNN": keras_rnn}[name](x, *arrays)


class Layer:
    """What from_keras asks of a layer of Keras."""

    trainable = True

    def __init__(self, features=I, *, seed=0, arrays=None, implementation=2, **changes):
        rng = np.random.default_rng(seed)
        name = next(kind.__name__ for kind in type(self).__mro__ if kind.__name__ in GATES)
        self.config = {
            "units": H, "activation": "tanh", "use_bias": True, "dropout": 0.1,
            "recurrent_dropout": 0.2, "go_backwards": False,
        }  # fmt: skip
        if name != "SimpleRNN":
            self.config["recurrent_activation"] = "sigmoid"
        if name == "GRU":
            self.config["reset_after"] = True
        self.config |= changes
        self.cell = CELLS[name]()
        if name != "SimpleRNN":
            self.cell.implementation = 1 if self.config["recurrent_dropout"] else implementation
        columns = GATES[name] * H
        shapes = [(features, columns), (H, columns)]
        if self.config["use_bias"]:
            shapes.append((2, columns) if self.config.get("reset_after") else (columns,))
        self.arrays = [rng.normal(size=shape) for shape in shapes] if arrays is None else arrays
        self.weights = [types.SimpleNamespace(trainable=True) for _ in self.arrays]

    def get_config(self):
        return self.config

    def get_weights(self):
        return self.arrays


def stand_in(name, *bases):
    return type(name, bases or (Layer,), {"__module__": f"keras.src.layers.rnn.{name}"})


KERAS = {name: stand_in(name) for name in GATES}
CELLS = {name: stand_in(f"{name}Cell", object) for name in GATES}


class Directions:
    trainable = True

    def __init__(self, forward, backward, merge_mode="concat"):
        self.forward_layer, self.backward_layer, self.merge_mode = forward, backward, merge_mode


Bidirectional = stand_in("Bidirectional", Directions)


def inputs(features=I):
    return np.random.default_rng(1).normal(size=(B, T, features))


VARIANTS = [
    *((name, bias, True) for name in GATES for bias in (True, False)),
    *(("GRU", bias, False) for bias in (True, False)),
]


@pytest.mark.parametrize(("name", "bias", "reset_after"), VARIANTS)
def test_a_layer_computes_what_keras_documents(name, bias, reset_after):
    options = {"reset_after": reset_after} if name == "GRU" else {}
    layer = KERAS[name](use_bias=bias, **options)
    x = inputs()
    ours = brnn.from_keras(layer)
    assert type(ours) is OURS[name] and ours.batch_first and ours.bias is bias
    assert ours.input_dropout == (0.1,) and ours.recurrent_dropout == 0.2
    y, _ = ours.eval()(torch.from_numpy(x))
    np.testing.assert_allclose(y.detach(), run(name, x, layer.arrays, reset_after), atol=1e-12)


@pytest.mark.parametrize("name", GATES)
def test_both_directions(name):
    forward, backward = KERAS[name](seed=2), KERAS[name](seed=3, go_backwards=True)
    ours = brnn.from_keras(Bidirectional(forward, backward)).eval()
    x = inputs()
    y, _ = ours(torch.from_numpy(x))
    expected = [
        run(name, x, forward.arrays, True),
        run(name, x[:, ::-1], backward.arrays, True)[:, ::-1],
    ]
    np.testing.assert_allclose(y.detach(), np.concatenate(expected, axis=2), atol=1e-12)


@pytest.mark.parametrize("name", GATES)
def test_stacked_layers_load_as_one(name):
    first, second = KERAS[name](seed=4), KERAS[name](H, seed=5)
    ours = OURS[name](I, H, 2, batch_first=True, dtype=torch.float64)
    assert brnn.load_keras_weights(ours, first.arrays + second.arrays) is None
    x = inputs()
    expected = run(name, run(name, x, first.arrays, True), second.arrays, True)
    np.testing.assert_allclose(ours.eval()(torch.from_numpy(x))[0].detach(), expected, atol=1e-12)


def test_options_replace_what_the_layer_has():
    ours = brnn.from_keras(
        KERAS["LSTM"](), input_dropout=0.0, recurrent_dropout=0.5, tie_gates=True,
        engine="reference",
    )  # fmt: skip
    assert ours.input_dropout == (0.0,) and ours.recurrent_dropout == 0.5
    assert ours.tie_gates and ours.engine == "reference" and ours.training


def test_subclasses_and_single_precision():
    layer = stand_in("Named", KERAS["LSTM"])()
    layer.arrays = [array.astype(np.float32) for array in layer.arrays]
    assert brnn.from_keras(layer).weight_hh_l0.dtype == torch.float32
    low = brnn.BayesianLSTM(I, H, dtype=torch.bfloat16)
    low.weight_hh_l0.requires_grad_(False)
    brnn.load_keras_weights(low, layer.arrays)
    assert low.bias_ih_l0.requires_grad and not low.weight_hh_l0.requires_grad
    torch.testing.assert_close(
        low.weight_ih_l0, torch.from_numpy(layer.arrays[0]).T.bfloat16(), rtol=0, atol=0
    )
    expected = low.weight_ih_l0.clone()
    for weights in (
        [array.tolist() for array in layer.arrays],
        tuple(torch.from_numpy(array).requires_grad_() for array in layer.arrays),
        [torch.nn.Parameter(torch.from_numpy(array).bfloat16()) for array in layer.arrays],
    ):
        torch.nn.init.zeros_(low.weight_ih_l0)
        brnn.load_keras_weights(low, weights)
        assert torch.equal(low.weight_ih_l0, expected)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_gates_are_tied_where_keras_has_one_mask_for_them(name):
    """Its implementation=2 has no masks of the state, and what has those runs implementation=1."""
    alone = {"dropout": 0.5, "recurrent_dropout": 0.0}
    gates = GATES[name]

    def masks(*args, **options):
        return [len(keep) for keep in brnn.from_keras(*args, **options).sample_masks(B)[0][:2]]

    assert brnn.from_keras(KERAS[name](**alone)).tie_gates
    assert masks(KERAS[name](**alone), recurrent_dropout=0.1) == [gates, gates]
    assert masks(KERAS[name](**alone), recurrent_dropout=0.1, tie_gates=True) == [1, 1]
    assert masks(KERAS[name]()) == [gates, gates]
    assert not brnn.from_keras(KERAS[name](**alone), tie_gates=False).tie_gates
    separate = KERAS[name](implementation=1, **alone)
    assert not brnn.from_keras(separate).tie_gates
    backward = KERAS[name](go_backwards=True, **alone)
    assert brnn.from_keras(Bidirectional(KERAS[name](**alone), backward)).tie_gates
    with pytest.raises(ValueError, match=r"^layer: expected implementation 1, got 2$"):
        brnn.from_keras(Bidirectional(separate, backward))


def test_weights_that_do_not_train_are_taken_over():
    def trains(ours):
        return {name for name, p in ours.named_parameters() if p.requires_grad}

    frozen = KERAS["GRU"](go_backwards=True)
    frozen.trainable = False
    ours = brnn.from_keras(Bidirectional(KERAS["GRU"](), frozen))
    names = {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
    assert trains(ours) == names
    both = Bidirectional(KERAS["GRU"](), KERAS["GRU"](go_backwards=True))
    both.trainable = False
    assert trains(brnn.from_keras(both)) == set()
    partly = KERAS["LSTM"]()
    partly.weights[1].trainable = False
    assert trains(brnn.from_keras(partly)) == names - {"weight_hh_l0"}
    partly.weights[2].trainable = False
    assert trains(brnn.from_keras(partly)) == {"weight_ih_l0"}
    assert trains(brnn.from_keras(KERAS["LSTM"](use_bias=False))) == names - {
        "bias_ih_l0", "bias_hh_l0",
    }  # fmt: skip


def test_classes_with_behaviour_of_their_own_are_refused():
    class Halved(KERAS["LSTM"]):
        def call(self, x):
            return 0.5 * super().call(x)

    class Named(Halved):
        """Adds nothing itself."""

    class Cell(CELLS["LSTM"]):
        def call(self, x):
            return x

    class Summed(Bidirectional):
        def call(self, x):
            return x

    message = "^layer: expected Keras's {}, got {}, which has call of its own$"
    halved, backward = Halved(), Halved(go_backwards=True)
    for layer in (halved, Named(), Bidirectional(halved, backward)):
        with pytest.raises(ValueError, match=message.format("LSTM", "Halved")):
            brnn.from_keras(layer)
    with pytest.raises(ValueError, match=message.format("Bidirectional", "Summed")):
        brnn.from_keras(Summed(KERAS["GRU"](), KERAS["GRU"](go_backwards=True)))
    layer = KERAS["LSTM"]()
    layer.cell = Cell()
    with pytest.raises(ValueError, match=message.format("LSTMCell", "Cell")):
        brnn.from_keras(layer)
    layer.cell = CELLS["GRU"]()
    expected = r"^layer: expected Keras's LSTMCell as its cell, got GRUCell$"
    with pytest.raises(ValueError, match=expected):
        brnn.from_keras(layer)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("LSTM", {"activation": "relu"}, "layer: expected activation 'tanh', got 'relu'"),
        ("GRU", {"recurrent_activation": "hard_sigmoid"},
         "layer: expected recurrent_activation 'sigmoid', got 'hard_sigmoid'"),
        ("LSTM", {"go_backwards": True}, "layer: expected go_backwards False, got True"),
        ("LSTM", {"arrays": []},
         "layer: expected one with weights, called or built before, got none"),
        ("LSTM", {"arrays": [np.zeros((I, 4 * H)), np.zeros((H, 4 * H))]},
         r"weights: expected 3 arrays, get_weights\(\) of each layer and direction, got 2"),
    ],
)  # fmt: skip
def test_what_the_new_layer_cannot_do_is_named(name, changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        brnn.from_keras(KERAS[name](**changes))


def test_directions_that_are_not_one_layer_are_refused():
    gru = KERAS["GRU"]()
    with pytest.raises(ValueError, match=r"^layer: expected merge_mode 'concat', got 'sum'$"):
        brnn.from_keras(Bidirectional(gru, gru, "sum"))
    with pytest.raises(ValueError, match=r"^layer: expected go_backwards True, got False$"):
        brnn.from_keras(Bidirectional(gru, gru))
    for changes, message in (
        ({"reset_after": False}, "reset_after True, got False"),
        ({"dropout": 0.7}, "dropout 0.1, got 0.7"),
    ):
        other = KERAS["GRU"](go_backwards=True, **changes)
        with pytest.raises(ValueError, match=f"^layer: expected {message}$"):
            brnn.from_keras(Bidirectional(gru, other))
    lstm = KERAS["LSTM"](go_backwards=True)
    with pytest.raises(ValueError, match=r"class of the backward layer 'BayesianGRU', got"):
        brnn.from_keras(Bidirectional(gru, lstm))


def test_other_objects_are_refused():
    class LSTM(Layer):
        """Of that name, but not of Keras."""

    for other in (LSTM(), torch.nn.LSTM(2, 3), None, [KERAS["LSTM"]()]):
        message = rf"^layer: expected a Keras LSTM, .*, got {type(other).__name__}$"
        with pytest.raises(TypeError, match=message):
            brnn.from_keras(other)
    with pytest.raises(TypeError, match=r"^layer: expected one of BayesianLSTM, .*, got Linear$"):
        brnn.load_keras_weights(torch.nn.Linear(1, 1), [])
    lstm = brnn.BayesianLSTM(I, H)
    for weights in ("abc", None, np.zeros(3)):
        with pytest.raises(TypeError, match=r"^weights: expected a list of arrays, got "):
            brnn.load_keras_weights(lstm, weights)
    recurrent = np.zeros((H, 4 * H))
    for wrong in ("abc", recurrent > 0, recurrent * 1j, torch.from_numpy(recurrent * 1j), None):
        message = r"^weights\[1\]: expected an array of numbers \(.*\), got \w+ of dtype [\w<]+$"
        with pytest.raises(TypeError, match=message):
            brnn.load_keras_weights(lstm, [np.zeros((I, 4 * H)), wrong, np.zeros(4 * H)])
    message = (
        r"^weights\[0\]: expected the kernel of l0 of shape .*, got rows of different lengths$"
    )
    with pytest.raises(ValueError, match=message):
        brnn.load_keras_weights(lstm, [[[1.0], [1.0, 2.0]], recurrent, np.zeros(4 * H)])


@pytest.mark.parametrize(
    ("at", "shape", "message"),
    [
        (0, (I + 1, 3 * H), r"weights\[0\]: expected the kernel of l0 of shape \[5, 12\], got "),
        (1, (3 * H, H), r"weights\[1\]: expected the recurrent_kernel of l0 of shape \[4, 12\]"),
        (2, (3 * H,), r"weights\[2\]: expected the bias of l0 of shape \[2, 12\], got \[12\]$"),
        (5, (2, H), r"weights\[5\]: expected the bias of l0_reverse of shape \[2, 12\], got "),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_named_and_changes_nothing(at, shape, message):
    ours = brnn.BayesianGRU(I, H, bidirectional=True)
    before = [p.clone() for p in ours.parameters()]
    arrays = KERAS["GRU"]().arrays * 2
    arrays[at] = np.zeros(shape)
    with pytest.raises(ValueError, match=f"^{message}"):
        brnn.load_keras_weights(ours, arrays)
    assert all(map(torch.equal, before, ours.parameters()))
    # a GRU of the other kind has one bias
    other = brnn.BayesianGRU(I, H, reset_after=False)
    with pytest.raises(ValueError, match=r"shape \[12\], got \[2, 12\]$"):
        brnn.load_keras_weights(other, KERAS["GRU"]().arrays)


def test_parametrized_weights_are_refused():
    lstm = brnn.BayesianLSTM(I, H)
    torch.nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    with pytest.raises(ValueError, match=r"^layer: expected weights that are parameters, got "):
        brnn.load_keras_weights(lstm, KERAS["LSTM"]().arrays)

"""mc_predict holds what layers and outputs say against samples * batch, and takes every output."""

import collections
import dataclasses
import warnings

import pytest
import torch
from predict_cases import B, Function, H, I, Replay, T
from torch import nn

import bayesrnn_cuda as brnn


class Turned(nn.Module):
    """Batch first outside, time first inside."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x.transpose(0, 1))[0].transpose(0, 1)


def gru(**options):
    torch.manual_seed(0)
    return brnn.BayesianGRU(I, H, input_dropout=0.5, recurrent_dropout=0.5, **options)


def assert_same_distribution(module, x, samples=400, **options):
    """As with one call a sample, where nothing is repeated."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(1)
        got = brnn.mc_predict(module, x, samples=samples, keep_draws=True, **options)
        apart = brnn.mc_predict(module, x, samples=samples, chunk=1, keep_draws=True)
    variance = apart.draws.var(dim=0)
    fourth = (apart.draws - apart.mean).pow(4).mean(dim=0)
    of_mean = 2 * variance / samples
    of_variance = 2 * (fourth - variance.square()).clamp_min(0) / samples
    assert ((got.mean - apart.mean).abs() <= 5 * of_mean.sqrt() + 1e-6).all()
    bound = 6 * of_variance.sqrt() + 30 * variance / samples
    assert ((got.std.square() - variance).abs() <= bound + 1e-6).all()
    return got


# Which dimension is the batch


@pytest.mark.parametrize("steps", [6, 1, 40])
@pytest.mark.parametrize("given", [{}, {"batch_dim": 0}])
def test_one_sequence_without_a_batch_is_refused_by_name(steps, given):
    module, x = gru(batch_first=True), torch.randn(steps, I)
    message = rf"batch_dim: expected .* dimension 0 \(size {steps}\) they saw 1 for one .* 1 for 49"
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(module, x, samples=50, **given)
    assert_same_distribution(module, x[None])
    assert brnn.mc_predict(module, x, samples=3, chunk=1).mean.shape == (steps, H)


@pytest.mark.parametrize(("batch", "steps"), [(3, 4), (4, 4), (1, 4), (4, 1), (399, 1), (1, 399)])
def test_a_module_that_turns_its_input_is_seen_through(batch, steps):
    """Where the sizes alone would fit too: 399 sequences of one step, and 399 samples of one."""
    assert_same_distribution(Turned(gru()), torch.randn(batch, steps, I))


def test_a_batch_dim_that_the_layers_contradict():
    x = torch.randn(B, T, I)
    message = rf"batch_dim: .* dimension 1 \(size {T}\) they saw {B} for one sample and {B} for 9"
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(Turned(gru()), x, samples=10, batch_dim=1)
    assert_same_distribution(Turned(gru()), x, batch_dim=0)


@pytest.mark.parametrize("layer", [brnn.LockedDropout(0.5), nn.LSTM(I, I, 2, dropout=0.5)])
def test_other_layers_that_know_their_sequences_speak_too(layer):
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            y = self.layer(x.transpose(0, 1))
            return (y[0] if isinstance(y, tuple) else y).transpose(0, 1)

    assert_same_distribution(Turning(), torch.randn(B, T, I))
    with pytest.raises(ValueError, match="batch_dim"):
        brnn.mc_predict(Turning(), torch.randn(B, T, I), samples=5, batch_dim=1)


def test_a_layer_that_sees_the_same_sequence_in_every_sample():
    """Its masks would be the same for all samples: too little spread, if nobody looked."""

    class Prompt(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = gru()

        def forward(self, x):
            state = self.rnn(torch.ones(T, 1, I))[1]
            return x + state.sum()

    with pytest.raises(ValueError, match=r"batch_dim: .* saw 1 for one sample and 1 for 4"):
        brnn.mc_predict(Prompt(), torch.randn(B, 2), samples=5, batch_dim=0)
    assert (brnn.mc_predict(Prompt(), torch.randn(B, 2), samples=5, chunk=1).std > 0).all()


def test_several_sequences_for_each_of_the_batch():
    """Documents of two sentences."""

    class Documents(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = gru(batch_first=True)

        def forward(self, x):
            y, _ = self.rnn(x.flatten(0, 1))
            return y[:, -1].unflatten(0, x.shape[:2]).mean(dim=1)

    got = assert_same_distribution(Documents(), torch.randn(B, 2, T, I))
    assert got.mean.shape == (B, H)


# Which dimension of the output


@pytest.mark.parametrize("samples", [101, 100, 3])
def test_flattened_logits_are_refused_by_name(samples):
    """samples * batch = 100 is the number of classes."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = gru(), nn.Linear(H, 100)

        def forward(self, x):
            return self.out(self.rnn(x)[0]).reshape(-1, 100)

    x = torch.randn(5, 1, I)
    with pytest.raises(ValueError, match=r"output_batch_dim: .* None for \[5, 100\] and"):
        brnn.mc_predict(Flat(), x, samples=samples)
    if samples == 101:
        with pytest.raises(
            ValueError, match=r"output_batch_dim: .* 1 for \[5, 100\] and \[500, 100"
        ):
            brnn.mc_predict(Flat(), x, samples=samples, output_batch_dim=1)
    assert brnn.mc_predict(Flat(), x, samples=3, chunk=1).mean.shape == (5, 100)


def test_a_batch_of_one_that_the_module_squeezes():
    module = Function(lambda x: nn.functional.dropout(x.sum(-1), 0.5).squeeze())
    got = brnn.mc_predict(module, torch.ones(T, 1, I), samples=9, batch_dim=1)
    assert got.mean.shape == (T, 1)


# Forms of outputs and inputs


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor


class Named(collections.OrderedDict):
    """As transformers' ModelOutput: a dict whose index 0 is the first value."""

    def __getitem__(self, key):
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda y: {"logits": y, "hidden": y * 3}, None),
        (lambda y: {"prediction": y, "name": "x"}, None),
        (lambda y: {"a": y * 3, "b": y}, "b"),
        (lambda y: Named(loss=y.sum(), logits=y), None),
        (lambda y: Named(loss=y.sum(), other=y), 1),
        (lambda y: (y, None), None),
        (lambda y: (None, y), 1),
        (lambda y: (None, y), -1),
        (lambda y: Output(y, y.sum()), lambda out: out.logits),
        (lambda y: {"deep": [0, (y,)]}, lambda out: out["deep"][1]),
    ],
)
def test_every_form_of_output(make, output):
    x = torch.randn(B, 2)
    drop = nn.Dropout(0.5)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = drop

        def forward(self, x):
            return make(self.drop(x))

    got = brnn.mc_predict(Model(), x, samples=2000, output=output)
    assert ((got.mean - x).abs() < 6 * x.abs() / 2000**0.5).all()
    torch.testing.assert_close(got.std, x.abs(), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("make", "output", "message"),
    [
        (lambda y: {"a": y, "b": y}, None, r"output: expected to be given .*\['a', 'b'\]"),
        (lambda y: {"a": y}, "c", r"output: expected a key .*\['a'\], got 'c'"),
        (lambda y: (y,), 3, r"output: expected a key or an index .* tuple, got 3"),
        (lambda y: y.argmax(-1), None, r"output: expected floating point .*, got int64"),
        (lambda y: y > 0, None, r"output: expected floating point .*, got bool"),
        (lambda y: y.to(torch.complex64), None, r"output: expected floating .*, got complex64"),
    ],
)
@pytest.mark.parametrize("chunk", [None, 1])
def test_an_output_that_cannot_be_averaged_is_named(make, output, message, chunk):
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(Function(make), torch.randn(B, 2), samples=3, output=output, chunk=chunk)


@pytest.mark.parametrize(
    ("make", "output", "message"),
    [
        (lambda y: (None, y), None, r"output: expected a tensor, .* got NoneType"),
        (lambda y: Output(y, y), None, r"output: expected a tensor, .* got Output"),
        (lambda y: (), None, r"output: expected a tensor, .* got tuple"),
        (lambda y: (y,), "a", r"output: expected a key or an index .* tuple, got 'a'"),
        (lambda y: {"a": y}, ["a"], r"output: expected a key or an index .*, got \['a'\]"),
    ],
)
def test_an_output_that_is_no_tensor_is_a_wrong_type(make, output, message):
    with pytest.raises(TypeError, match=message):
        brnn.mc_predict(Function(make), torch.randn(B, 2), samples=3, output=output)


def test_keyword_inputs_are_repeated_with_the_batch():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x=None, weight=None, scale=None, name="", nested=None):
            assert name == "twice" and scale.dim() == 0 and len(nested["a"]) == len(x)
            return {"logits": self.drop(x) * weight * scale + nested["a"]}

    x, weight = torch.randn(B, 2), torch.rand(B, 1)
    kwargs = {
        "x": x, "weight": weight, "scale": torch.tensor(2.0), "name": "twice",
        "nested": {"a": torch.ones(B, 2)},
    }  # fmt: skip
    got = brnn.mc_predict(Model(), samples=2000, module_kwargs=kwargs)
    expected = 2 * x * weight + 1
    assert ((got.mean - expected).abs() < 6 * (2 * x * weight).abs() / 2000**0.5).all()
    partly = brnn.mc_predict(
        Model(), x, samples=5, module_kwargs={k: v for k, v in kwargs.items() if k != "x"}
    )
    assert partly.mean.shape == (B, 2)
    lstm, states = brnn.BayesianLSTM(I, H, recurrent_dropout=0.5), torch.ones(1, B, H)
    got = brnn.mc_predict(lstm, torch.randn(T, B, I), module_kwargs={"hx": (states, states)})
    assert got.mean.shape == (T, B, H)


@pytest.mark.parametrize(
    ("inputs", "kwargs", "message"),
    [
        ((), None, r"inputs: expected at least 1 tensor, got 0"),
        ((), {"x": 3}, r"inputs: expected at least 1 tensor, got 0"),
        ((torch.zeros(3, 2),), {"y": torch.zeros(2, 2)}, r"inputs: expected one size .*\[3, 2\]"),
        ((nn.utils.rnn.pack_sequence([torch.zeros(3, 2)]),), None, r"inputs: .* PackedSequence"),
    ],
)
def test_inputs_that_cannot_be_repeated_are_named(inputs, kwargs, message):
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(nn.Dropout(), *inputs, module_kwargs=kwargs, samples=3)


def test_one_sequence_beside_its_resets_is_refused_by_name():
    """Where the batch would be, the resets of a sequence without one have nothing."""
    x, resets = torch.randn(T, I), torch.zeros(T, dtype=torch.bool)
    message = (
        rf"^batch_dim: expected inputs with a batch dimension, .*, got \[{T}, {I}\] and \[{T}\]\. "
        r"A single sequence needs .*; chunk=1 repeats nothing$"
    )
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(gru(), x, module_kwargs={"resets": resets}, samples=5)
    got = brnn.mc_predict(gru(), x, module_kwargs={"resets": resets}, samples=5, chunk=1)
    assert got.mean.shape == (T, H)
    both = nn.ModuleList([gru(), gru(batch_first=True)])
    with pytest.raises(ValueError, match=r"^inputs: expected at least 1 tensor, got 0$"):
        brnn.mc_predict(both, samples=5)


def test_inputs_of_wrong_types_are_named():
    x = torch.zeros(3, 2)
    with pytest.raises(TypeError, match=r"module_kwargs: expected a mapping, got list"):
        brnn.mc_predict(nn.Dropout(), x, module_kwargs=[1], samples=3)
    with pytest.raises(TypeError, match=r"inputs: expected tensors, got int"):
        brnn.mc_predict(nn.Dropout(), x, 3, samples=3)


def test_a_packed_sequence_runs_sample_by_sample():
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, I), torch.randn(2, I)])
    lstm = gru()
    got = brnn.mc_predict(lstm, packed, samples=20, chunk=1, output=lambda out: out[0].data)
    assert got.mean.shape == (6, H) and (got.std > 0).all()


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [1, 700, None])
def test_moments_of_narrow_outputs_are_kept_in_float32(dtype, chunk):
    torch.manual_seed(0)
    draws = (torch.randn(4000, 2, 3) * 300 + 1000).to(dtype)
    got = brnn.mc_predict(Replay(draws), torch.zeros(2), samples=4000, chunk=chunk)
    exact = draws.double()
    assert got.mean.dtype == got.std.dtype == torch.float32
    torch.testing.assert_close(got.mean.double(), exact.mean(dim=0), rtol=1e-5, atol=0)
    std = exact.std(dim=0, correction=0)
    torch.testing.assert_close(got.std.double(), std, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_and_entropies_of_narrow_logits(dtype):
    torch.manual_seed(0)
    draws = torch.randn(2000, 2, 5).to(dtype)
    got = brnn.mc_predict(
        Replay(draws), torch.zeros(2), samples=2000, likelihood="categorical", chunk=1
    )
    p = draws.double().softmax(-1)
    entropy = torch.special.entr(p.mean(0)).sum(-1)
    torch.testing.assert_close(got.mean.double(), p.mean(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(got.entropy.double(), entropy, rtol=1e-4, atol=0)
    information = entropy - torch.special.entr(p).sum(-1).mean(0)
    torch.testing.assert_close(got.mutual_information.double(), information, rtol=1e-3, atol=0)


def test_moments_under_autocast():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(I, 2))
    x = torch.randn(B, I)
    torch.manual_seed(1)
    wide = brnn.mc_predict(module, x, samples=3000, chunk=1)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = brnn.mc_predict(module, x, samples=3000, chunk=1)
    torch.testing.assert_close(narrow.std, wide.std, rtol=0.02, atol=0)
    torch.testing.assert_close(narrow.mean, wide.mean, rtol=0.02, atol=0.01)


# Without dropout


class Functional(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x @ torch.ones(I, 2), 0.5, self.training)


@pytest.mark.parametrize(
    "module",
    [
        Functional(),
        nn.Linear(I, 2),
        nn.Sequential(nn.Dropout(0.0), brnn.LockedDropout(0.0), nn.Linear(I, 2)),
        nn.Sequential(nn.LSTM(I, H, dropout=0.0), Function(lambda y: y[0])),
        brnn.BayesianLSTM(I, H),
    ],
)
@pytest.mark.parametrize("chunk", [None, 1])
def test_a_module_that_draws_nothing_is_told(module, chunk):
    with pytest.warns(UserWarning, match="no dropout drew masks"):
        brnn.mc_predict(module, torch.randn(T, B, I), samples=7, chunk=chunk, batch_dim=1)


def test_a_module_beside_the_one_that_is_called_is_no_excuse():
    class Beside(Functional):
        def __init__(self):
            super().__init__()
            self.unused = nn.Dropout(0.5)

    with pytest.warns(UserWarning, match="no dropout drew masks"):
        brnn.mc_predict(Beside(), torch.randn(B, I), samples=7)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Dropout(0.5), nn.Linear(I, 2)),
        nn.Sequential(brnn.LockedDropout(0.5), nn.Linear(I, 2)),
        nn.Sequential(nn.LSTM(I, H, 2, dropout=0.5), Function(lambda y: y[0])),
        Function(lambda x: nn.functional.dropout(x, 0.5)),  # always on
        torch.compile(nn.Sequential(nn.Dropout(0.5), nn.Linear(I, 2)), backend="eager"),
    ],
)
def test_nothing_is_told_where_samples_differ(module):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        brnn.mc_predict(module, torch.randn(T, B, I), samples=7, batch_dim=1)
        brnn.mc_predict(nn.Dropout(0.5), torch.zeros(B, I), samples=7)  # drew, to no effect

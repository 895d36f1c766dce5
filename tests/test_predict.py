"""mc_dropout and mc_predict."""

import math

import pytest
import torch
from torch import nn

import bayesrnn_cuda as brnn
from bayesrnn_cuda import predict

T, B, I, H = 4, 3, 5, 6  # noqa: E741


class Linear(nn.Module):
    """y = w . LockedDropout(x): its mean and variance are known."""

    def __init__(self, p, weight):
        super().__init__()
        self.dropout = brnn.LockedDropout(p)
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return self.dropout(x) @ self.weight


class Tagger(nn.Module):
    """Dropout of every kind around a recurrent layer; outputs [T, B, 2], or batch first."""

    def __init__(self, batch_first=False):
        super().__init__()
        self.before = brnn.LockedDropout(0.5, batch_first=batch_first)
        self.rnn = brnn.BayesianLSTM(
            I, H, batch_first=batch_first, input_dropout=0.5, recurrent_dropout=0.5
        )
        self.after = nn.Dropout(0.5)
        self.out = nn.Linear(H, 2)

    def forward(self, x):
        return self.out(self.after(self.rnn(self.before(x))[0]))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Replay(nn.Module):
    """Gives recorded outputs, whatever the input: [S*B, ...], sample by sample."""

    def __init__(self, draws):
        super().__init__()
        self.draws, self.start = draws.flatten(0, 1), 0

    def forward(self, x):
        self.start += len(x)
        return self.draws[self.start - len(x) : self.start]


def tagger(**options):
    torch.manual_seed(0)
    return Tagger(**options).eval()


def modes(module):
    return [(m.training, getattr(m, "mc", None)) for m in module.modules()]


# mc_dropout


@pytest.mark.parametrize("training", [False, True])
def test_mc_dropout_draws_and_restores(training):
    module = tagger().train(training)
    x, before = torch.randn(T, B, I), modes(module)
    with brnn.mc_dropout(module) as entered:
        assert entered is module
        for part in (module.before, module.rnn, module.after):
            given = x if part is not module.after else torch.ones(T, B, H)
            first, second = part(given), part(given)
            assert not torch.equal(*(y[0] if isinstance(y, tuple) else y for y in (first, second)))
    assert modes(module) == before
    assert torch.equal(module(x), module(x)) != training


def test_mc_dropout_equals_training_under_the_same_seed():
    module, x = tagger(), torch.randn(T, B, I)
    torch.manual_seed(1)
    with brnn.mc_dropout(module):
        sampled = module(x)
    torch.manual_seed(1)
    assert torch.equal(module.train()(x), sampled)


def test_mc_dropout_restores_after_an_exception():
    module = tagger()
    before = modes(module)
    with pytest.raises(KeyError, match="mine"), brnn.mc_dropout(module):
        raise KeyError("mine")
    assert modes(module) == before


def test_mc_dropout_nests():
    module, x = tagger(), torch.randn(T, B, I)
    before = modes(module)
    with brnn.mc_dropout(module):
        inside = modes(module)
        for inner in (module, module.rnn):
            with brnn.mc_dropout(inner):
                assert modes(module) == inside
            assert modes(module) == inside
        assert not torch.equal(module(x), module(x))
    assert modes(module) == before
    with brnn.mc_dropout(module.rnn):
        assert not torch.equal(module.rnn(x)[0], module.rnn(x)[0])
        assert torch.equal(module.before(x), x)


@pytest.mark.parametrize(
    "layer", [nn.Dropout(), nn.Dropout1d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()], ids=repr
)
def test_mc_dropout_serves_the_dropouts_of_torch(layer):
    x = torch.ones(4, 50, 8)
    with brnn.mc_dropout(layer.eval()):
        assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x), x)


def test_mc_dropout_leaves_batch_norm_alone():
    module = nn.Sequential(nn.BatchNorm1d(I), nn.Dropout()).eval()
    with brnn.mc_dropout(module):
        module(torch.randn(8, I) + 3)
    assert (module[0].running_mean == 0).all()


def test_mc_dropout_of_a_module_without_dropout():
    module, x = nn.Linear(I, 2), torch.randn(B, I)
    with brnn.mc_dropout(module):
        assert torch.equal(module(x), module(x))


def test_backward_under_mc_dropout():
    module = tagger()
    with brnn.mc_dropout(module):
        module(torch.randn(T, B, I)).sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


# mc_predict: values


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("chunk", [None, 700])
def test_mean_and_std_tend_to_the_analytic_ones(p, chunk):
    """y = sum_j w_j x_j m_j / (1 - p): mean w . x, variance p / (1 - p) sum_j (w_j x_j)^2."""
    torch.manual_seed(0)
    module = Linear(p, torch.randn(8, dtype=torch.float64)).eval()
    x = torch.randn(1, B, 8, dtype=torch.float64)
    samples = 4000
    mean, std, entropy, information = brnn.mc_predict(module, x, samples=samples, chunk=chunk)
    assert entropy is information is None
    assert mean.shape == std.shape == (1, B)

    parts = (module.weight * x).detach()
    variance = (p / (1 - p) * parts.square()).sum(dim=-1)
    assert ((mean - parts.sum(dim=-1)).abs() < 5 * (variance / samples).sqrt()).all()
    # the sample variance has variance (mu_4 - sigma^4) / S; mu_4 from the Bernoulli's cumulants
    q = 1 - p
    kappa_4 = (p * (1 - 6 * p * q) / q**3 * parts**4).sum(dim=-1)
    bound = 5 * ((kappa_4 + 2 * variance.square()) / samples).sqrt()
    assert ((std.square() - variance).abs() < bound).all()


@pytest.mark.parametrize("chunk", [None, 1, 3, 10, 50])
def test_moments_equal_those_of_the_draws(chunk):
    torch.manual_seed(0)
    draws = torch.randn(10, B, 2, dtype=torch.float64) + 1e4  # a far mean: no cancellation
    prediction = brnn.mc_predict(Replay(draws), torch.zeros(B), samples=10, chunk=chunk)
    torch.testing.assert_close(prediction.mean, draws.mean(dim=0), rtol=1e-12, atol=0)
    std = draws.std(dim=0, correction=0)
    torch.testing.assert_close(prediction.std, std, rtol=1e-9, atol=0)


@pytest.mark.parametrize("chunk", [None, 1, 3, 10])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_categorical_equals_the_direct_computation(chunk, temperature):
    torch.manual_seed(0)
    logits = temperature * torch.randn(10, B, 4, dtype=torch.float64)
    mean, std, entropy, information = brnn.mc_predict(
        Replay(logits), torch.zeros(B), samples=10, likelihood="categorical", chunk=chunk
    )
    p = logits.softmax(dim=-1)
    total = torch.special.entr(p.mean(dim=0)).sum(dim=-1)
    expected = torch.special.entr(p).sum(dim=-1).mean(dim=0)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(mean, p.mean(dim=0), **close)
    torch.testing.assert_close(std, p.std(dim=0, correction=0), **close)
    torch.testing.assert_close(entropy, total, **close)
    torch.testing.assert_close(information, total - expected, **close)
    torch.testing.assert_close(mean.sum(dim=-1), torch.ones(B, dtype=torch.float64), **close)
    assert (information >= 0).all()
    assert (information <= entropy).all()
    assert (entropy <= math.log(4)).all()


def test_probabilities_are_averaged_and_not_logits():
    """Two sure and opposite samples: mean (1/2, 1/2), all of the entropy is disagreement."""
    logits = torch.tensor([[[40.0, 0.0]], [[-60.0, 0.0]]])  # mean logit -10: surely class 1
    mean, std, entropy, information = brnn.mc_predict(
        Replay(logits),
        torch.zeros(1),
        samples=2,
        likelihood="categorical",
        output_batch_dim=0,
    )
    torch.testing.assert_close(mean, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(std, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(2)]))
    torch.testing.assert_close(information, entropy)


def test_samples_that_agree_inform_of_nothing():
    logits = torch.tensor([[[0.3, -0.2, 1.0]]]).expand(7, 1, 3)
    _, std, entropy, information = brnn.mc_predict(
        Replay(logits), torch.zeros(1), samples=7, likelihood="categorical"
    )
    torch.testing.assert_close(entropy, torch.special.entr(logits[0].softmax(dim=-1)).sum(dim=-1))
    assert information.item() < 1e-6
    assert std.max() < 1e-6


@pytest.mark.parametrize("logits", [[0.0, -math.inf], [1e4, -1e4], [0.0]], ids=str)
def test_certainty_has_no_entropy(logits):
    draws = torch.tensor(logits).expand(3, B, len(logits))
    prediction = brnn.mc_predict(Replay(draws), torch.zeros(B), samples=3, likelihood="categorical")
    assert (prediction.mean == torch.tensor([1.0, 0.0][: len(logits)])).all()
    assert (prediction.entropy == 0).all()
    assert (prediction.mutual_information == 0).all()


def test_one_sample_has_no_spread():
    mean, std, *_ = brnn.mc_predict(tagger(), torch.randn(T, B, I), samples=1)
    assert mean.shape == (T, B, 2)
    assert (std == 0).all()


# mc_predict: samples as batch


@pytest.mark.parametrize("samples", [1, 6, 7])
@pytest.mark.parametrize("chunk", [None, 2, 100])
def test_samples_run_as_batch_in_chunks(samples, chunk):
    module, x, sizes = tagger(), torch.randn(T, B, I), []
    module.rnn.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    brnn.mc_predict(module, x, samples=samples, chunk=chunk, output_batch_dim=1)
    whole = min(samples, chunk or samples)
    assert sum(sizes) == samples * B
    assert set(sizes[:-1]) <= {whole * B}
    assert len(sizes) == math.ceil(samples / whole)


def batch_sizes(module, x, **options):
    """Of the calls that mc_predict makes of a time-major module."""
    sizes = []
    with_hook = module.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    brnn.mc_predict(module, x, batch_dim=1, output_batch_dim=1, **options)
    with_hook.remove()
    return sizes


@pytest.mark.parametrize(
    ("shape", "dtype", "a_sample"),
    [
        ((T, B, 1000), torch.float32, T * B * 1000),
        ((T, B, 1000), torch.float64, T * B * 1000),
        ((T, B, I), torch.float32, T * B * predict.CHUNK_WIDTH),  # a short vector
        ((T, B, I), torch.int64, T * B * I * predict.CHUNK_WIDTH),  # indices
        ((T, B), torch.float32, T * B * predict.CHUNK_WIDTH),  # the last dimension is the batch
    ],
)
def test_default_chunk_bounds_the_batch(monkeypatch, shape, dtype, a_sample):
    """10 samples, of which 4 are within the limit: three calls of about one size."""
    x = torch.ones(shape, dtype=dtype)
    monkeypatch.setattr(predict, "CHUNK_ELEMENTS", 5 * a_sample - 1)
    assert batch_sizes(nn.Identity(), x.float(), samples=10, chunk=10) == [10 * B]
    module = Function(lambda v: v.float())
    assert batch_sizes(module, x, samples=10) == [4 * B, 4 * B, 2 * B]
    assert batch_sizes(module, x, samples=9) == [3 * B, 3 * B, 3 * B]
    assert batch_sizes(module, x, samples=4) == [4 * B]
    monkeypatch.setattr(predict, "CHUNK_ELEMENTS", a_sample - 1)
    assert batch_sizes(module, x, samples=2) == [B, B]


def test_default_chunk_counts_all_inputs(monkeypatch):
    module, sizes = Function(lambda a, b: a + b), []
    module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    monkeypatch.setattr(predict, "CHUNK_ELEMENTS", 2 * 2 * B * 300)
    brnn.mc_predict(module, torch.ones(B, 300), torch.ones(B, 300), samples=4)
    assert sizes == [2 * B, 2 * B]


def test_default_chunk_runs_what_is_small_at_once():
    """The README's example, and an input without elements."""
    assert batch_sizes(nn.Identity(), torch.zeros(35, 1, 64), samples=50) == [50]
    assert batch_sizes(nn.Identity(), torch.zeros(0, 2, 64), samples=50) == [100]


def test_explicit_chunk_wins(monkeypatch):
    monkeypatch.setattr(predict, "CHUNK_ELEMENTS", 1)
    assert batch_sizes(nn.Identity(), torch.zeros(T, B, I), samples=10, chunk=8) == [8 * B, 2 * B]


def test_default_chunk_leaves_the_statistics_alone(monkeypatch):
    torch.manual_seed(0)
    draws = torch.randn(10, B, 2, dtype=torch.float64) + 1e4
    at_once = brnn.mc_predict(Replay(draws), torch.zeros(B), samples=10)
    monkeypatch.setattr(predict, "CHUNK_ELEMENTS", 4 * B * predict.CHUNK_WIDTH)
    module = Replay(draws)
    calls = []
    module.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    in_chunks = brnn.mc_predict(module, torch.zeros(B), samples=10)
    assert calls == [4 * B, 4 * B, 2 * B]
    torch.testing.assert_close(in_chunks.mean, at_once.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(in_chunks.std, at_once.std, rtol=1e-9, atol=0)


def test_repeated_input_is_made_once_for_a_size():
    seen = []
    module = Function(lambda v: seen.append(v) or v.clone())
    x = torch.randn(B, 2)
    brnn.mc_predict(module, x, samples=8, chunk=3)
    first, second, last = (v.data_ptr() for v in seen)
    assert first == second != last
    seen.clear()
    brnn.mc_predict(module, x, samples=1)
    assert seen[0].data_ptr() == x.data_ptr()  # not repeated, not copied


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("inference", [False, True])
def test_what_a_module_writes_into_a_chunk_does_not_reach_the_next(chunk, inference):
    x = torch.randn(B, 2)
    copy = x.clone()
    with torch.inference_mode(inference):
        prediction = brnn.mc_predict(Function(lambda v: v.mul_(2)), x, samples=7, chunk=chunk)
    assert torch.equal(x, copy)
    torch.testing.assert_close(prediction.mean, 2 * copy)


def test_each_input_meets_its_own_output():
    """Inputs and outputs keep their places in the batch, whatever dimension it has."""
    x = torch.arange(6.0).reshape(2, 3)
    for dim in (0, 1, -1):
        out_dim = dim % 2
        identity = brnn.mc_predict(
            nn.Identity(), x, samples=5, batch_dim=dim, output_batch_dim=out_dim
        )
        torch.testing.assert_close(identity.mean, x)
        turned = brnn.mc_predict(
            Function(lambda v: v.T), x, samples=5, batch_dim=dim, output_batch_dim=1 - out_dim
        )
        torch.testing.assert_close(turned.mean, x.T)


def test_equals_a_loop_over_samples():
    """One call with S * B sequences is S calls with B, in distribution: same mean and spread."""
    module, x = tagger(), torch.randn(T, B, I)
    samples = 500
    torch.manual_seed(0)
    mean, std, *_ = brnn.mc_predict(module, x, samples=samples, chunk=250)
    with torch.no_grad(), brnn.mc_dropout(module):
        loop = torch.stack([module(x) for _ in range(samples)])
    variance = loop.var(dim=0)
    fourth = (loop - loop.mean(dim=0)).pow(4).mean(dim=0)
    # twice the variance of one mean, and of one variance: both sides are sampled
    of_mean, of_variance = 2 * variance / samples, 2 * (fourth - variance.square()) / samples
    assert ((mean - loop.mean(dim=0)).abs() < 5 * of_mean.sqrt()).all()
    assert ((std.square() - variance).abs() < 5 * of_variance.sqrt()).all()


def test_manual_seed_reproduces():
    module, x = tagger(), torch.randn(T, B, I)
    predictions = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        predictions.append(brnn.mc_predict(module, x, samples=9).mean)
    assert torch.equal(predictions[0], predictions[1])
    assert not torch.equal(predictions[0], predictions[2])


def test_several_inputs_share_the_batch():
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b[:, 0]

    a, b = torch.randn(B), torch.randn(B, 2)
    mean = brnn.mc_predict(Two(), a, b, samples=4).mean
    torch.testing.assert_close(mean, a + b[:, 0])


@pytest.mark.parametrize("kind", [tuple, list])
def test_first_of_several_outputs_is_taken(kind):
    x = torch.randn(B, 2)
    mean = brnn.mc_predict(Function(lambda v: kind([v, None])), x, samples=4).mean
    torch.testing.assert_close(mean, x)
    lstm = brnn.BayesianLSTM(I, H, recurrent_dropout=0.5)
    assert brnn.mc_predict(lstm, torch.randn(T, B, I), samples=3).mean.shape == (T, B, H)


# mc_predict: which dimension is the batch


@pytest.mark.parametrize("batch_first", [False, True])
def test_batch_dim_as_the_modules_inside_say(batch_first):
    module = tagger(batch_first=batch_first)
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    shapes = []
    module.rnn.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    prediction = brnn.mc_predict(module, x, samples=7)
    assert shapes == [(7 * B, T, I) if batch_first else (T, 7 * B, I)]
    assert prediction.mean.shape == prediction.std.shape == (*x.shape[:2], 2)


def test_batch_dim_of_tokens():
    for batch_first in (False, True):
        module = nn.Sequential(
            brnn.BayesianEmbedding(10, I, dropout=0.5, batch_first=batch_first),
            brnn.BayesianGRU(I, H, batch_first=batch_first),
        )
        tokens = torch.randint(10, (B, T) if batch_first else (T, B))
        prediction = brnn.mc_predict(module, tokens, samples=5)
        assert prediction.mean.shape == (*tokens.shape, H)
        assert (prediction.std > 0).any()


def test_batch_dim_is_0_where_no_module_says():
    module = nn.Sequential(nn.Dropout(), nn.Linear(I, 2))
    assert brnn.mc_predict(module, torch.randn(B, I), samples=7).mean.shape == (B, 2)


def test_batch_dim_of_modules_that_disagree():
    module = nn.Sequential(brnn.LockedDropout(0.5, batch_first=True), brnn.LockedDropout(0.5))
    x = torch.randn(T, B, I)
    with pytest.raises(ValueError, match=r"batch_dim: expected to be given, .*, got None"):
        brnn.mc_predict(module, x, samples=5)
    assert brnn.mc_predict(module, x, samples=5, batch_dim=1).mean.shape == (T, B, I)


def test_output_batch_dim_that_cannot_be_told():
    module = Function(lambda tokens: torch.zeros(2 * B, 2 * B))  # batch first, for input [T, B]
    with pytest.raises(
        ValueError,
        match=r"output_batch_dim: expected to be given, since 2 dimensions .*\[6, 6\].* size 6",
    ):
        brnn.mc_predict(module, torch.randn(T, B), samples=2, batch_dim=1)
    with pytest.raises(ValueError, match=r"output_batch_dim: .* since 0 dimensions"):
        brnn.mc_predict(Function(torch.sum), torch.randn(B, I), samples=2)
    given = brnn.mc_predict(module, torch.randn(T, B), samples=2, batch_dim=1, output_batch_dim=0)
    assert given.mean.shape == (B, 2 * B)


def test_output_batch_dim_is_that_of_the_input_where_both_would_do():
    """T = S * B is no reason to ask: [T, B, I] became [T, S * B, H]."""
    prediction = brnn.mc_predict(tagger(), torch.randn(2 * B, B, I), samples=2)
    assert prediction.mean.shape == (2 * B, B, 2)
    wide = nn.Linear(I, 2 * B)
    assert brnn.mc_predict(wide, torch.randn(B, I), samples=2).mean.shape == (B, 2 * B)


@pytest.mark.parametrize("given", [0, 2, -3, 3, -4])
def test_output_batch_dim_of_another_size(given):
    message = rf"output_batch_dim: expected a dimension of size 15 in \[4, 15, 2\], got {given}"
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(tagger(), torch.randn(T, B, I), samples=5, output_batch_dim=given)


def test_output_batch_dim_may_be_negative():
    module, x = tagger(), torch.randn(T, B, I)
    assert brnn.mc_predict(module, x, samples=5, output_batch_dim=-2).mean.shape == (T, B, 2)


def test_output_batch_dim_is_settled_by_the_first_chunk():
    """The last chunk is smaller: its 2 * 2 sequences must not be taken for the 4 time steps."""
    x = torch.randn(4, 2, I)
    assert brnn.mc_predict(tagger(), x, samples=5, chunk=3).mean.shape == (4, 2, 2)


# mc_predict: what it leaves behind


@pytest.mark.parametrize("training", [False, True])
def test_keeps_no_gradients_and_restores_the_modes(training):
    module = tagger().train(training)
    before = modes(module)
    x = torch.randn(T, B, I, requires_grad=True)
    prediction = brnn.mc_predict(module, x, samples=5, likelihood="categorical")
    assert not any(t.requires_grad for t in prediction)
    assert all(p.grad is None for p in module.parameters())
    assert modes(module) == before
    assert torch.is_grad_enabled()


def test_restores_the_modes_when_the_module_raises():
    module = tagger()
    before = modes(module)
    with pytest.raises(ValueError, match=r"input: expected last dimension 5"):
        brnn.mc_predict(module, torch.randn(T, B, I + 1), samples=5)
    assert modes(module) == before
    assert torch.is_grad_enabled()


def test_inputs_are_left_as_they_were():
    x = torch.randn(B, I)
    copy = x.clone()

    def in_place(v):
        return v.mul_(2)

    prediction = brnn.mc_predict(Function(in_place), x, samples=3)
    assert torch.equal(x, copy)
    torch.testing.assert_close(prediction.mean, 2 * copy)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, r"samples: expected at least 1, got 0"),
        ({"samples": -3}, r"samples: expected at least 1, got -3"),
        ({"chunk": 0}, r"chunk: expected at least 1, got 0"),
        ({"likelihood": "softmax"}, r"likelihood: expected one of .*, got 'softmax'"),
        ({"likelihood": None}, r"likelihood: expected one of .*, got None"),
        ({"batch_dim": 3}, r"batch_dim: expected a dimension of \[4, 3, 5\], got 3"),
        ({"batch_dim": -4}, r"batch_dim: expected a dimension of \[4, 3, 5\], got -4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(tagger(), torch.randn(T, B, I), **arguments)


def test_bad_inputs():
    with pytest.raises(ValueError, match=r"inputs: expected at least 1 tensor, got 0"):
        brnn.mc_predict(tagger())
    with pytest.raises(ValueError, match=r"inputs: expected one size in dimension 0, got \[3, 2\]"):
        brnn.mc_predict(Function(lambda a, b: a), torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"module: expected an nn.Module, .* got function"):
        brnn.mc_predict(lambda x: x, torch.zeros(3))


def test_runs_as_in_eval_but_for_dropout():
    """Batch norm must not see the repeated samples as training data."""
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(I)).train()
    before = module[1].running_mean.clone()
    prediction = brnn.mc_predict(module, torch.randn(B, I), samples=4)
    assert (prediction.std > 0).any()
    assert torch.equal(module[1].running_mean, before)
    assert module[0].training and module[1].training


def test_dropout_inside_torchs_own_layers_stays_on():
    module = nn.LSTM(I, H, num_layers=2, dropout=0.5).eval()
    assert (brnn.mc_predict(module, torch.randn(T, B, I), samples=8).std > 0).any()
    assert not module.training

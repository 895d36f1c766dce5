"""mc_predict: samples as batch, in chunks, and which dimension is the batch."""

import math
import sys

import pytest
import torch
from predict_cases import B, Function, H, I, Replay, T, tagger
from torch import nn

import bayesrnn_cuda as brnn
from bayesrnn_cuda import repeats

# Samples as batch


@pytest.mark.parametrize("samples", [1, 6, 7])
@pytest.mark.parametrize("chunk", [None, 2, 100])
def test_the_first_sample_runs_alone_and_the_rest_in_chunks(samples, chunk):
    module, x, sizes = tagger(), torch.randn(T, B, I), []
    module.rnn.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    brnn.mc_predict(module, x, samples=samples, chunk=chunk)
    rest = samples - 1
    whole = min(rest, chunk or rest)
    assert sizes[0] == B
    assert sum(sizes) == samples * B
    assert set(sizes[1:-1]) <= {whole * B}
    assert len(sizes) == 1 + (math.ceil(rest / whole) if rest else 0)


def batch_sizes(module, x, **options):
    """Of the calls that mc_predict makes of a time-major module, after the first sample's."""
    sizes = []
    with_hook = module.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    brnn.mc_predict(module, x, batch_dim=1, output_batch_dim=1, **options)
    with_hook.remove()
    assert sizes[0] == x.shape[1]
    return sizes[1:]


@pytest.mark.parametrize(
    ("shape", "dtype", "a_sample"),
    [
        ((T, B, 1000), torch.float32, T * B * 1000),
        ((T, B, 1000), torch.float64, T * B * 1000),
        ((T, B, I), torch.float32, T * B * repeats.CHUNK_WIDTH),  # a short vector
        ((T, B, I), torch.int64, T * B * I * repeats.CHUNK_WIDTH),  # indices
        ((T, B), torch.float32, T * B * repeats.CHUNK_WIDTH),  # the last dimension is the batch
    ],
)
def test_default_chunk_bounds_the_batch(monkeypatch, shape, dtype, a_sample):
    """10 samples after the first, of which 4 are within the limit: calls of about one size."""
    x = torch.ones(shape, dtype=dtype)
    monkeypatch.setattr(repeats, "CHUNK_ELEMENTS", 5 * a_sample - 1)
    assert batch_sizes(nn.Identity(), x.float(), samples=11, chunk=10) == [10 * B]
    module = Function(lambda v: v.float())
    assert batch_sizes(module, x, samples=11) == [4 * B, 4 * B, 2 * B]
    assert batch_sizes(module, x, samples=10) == [3 * B, 3 * B, 3 * B]
    assert batch_sizes(module, x, samples=5) == [4 * B]
    monkeypatch.setattr(repeats, "CHUNK_ELEMENTS", a_sample - 1)
    assert batch_sizes(module, x, samples=3) == [B, B]


def test_default_chunk_counts_all_inputs(monkeypatch):
    module, sizes = Function(lambda a, b: a + b), []
    module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    monkeypatch.setattr(repeats, "CHUNK_ELEMENTS", 2 * 2 * B * 300)
    brnn.mc_predict(module, torch.ones(B, 300), torch.ones(B, 300), samples=5)
    assert sizes == [B, 2 * B, 2 * B]


def test_default_chunk_runs_what_is_small_at_once():
    """The README's example, and an input without elements."""
    assert batch_sizes(nn.Identity(), torch.zeros(35, 1, 64), samples=51) == [50]
    assert batch_sizes(nn.Identity(), torch.zeros(0, 2, 64), samples=51) == [100]


def test_explicit_chunk_wins(monkeypatch):
    monkeypatch.setattr(repeats, "CHUNK_ELEMENTS", 1)
    assert batch_sizes(nn.Identity(), torch.zeros(T, B, I), samples=11, chunk=8) == [8 * B, 2 * B]


def test_default_chunk_leaves_the_statistics_alone(monkeypatch):
    torch.manual_seed(0)
    draws = torch.randn(11, B, 2, dtype=torch.float64) + 1e4
    at_once = brnn.mc_predict(Replay(draws), torch.zeros(B), samples=11)
    monkeypatch.setattr(repeats, "CHUNK_ELEMENTS", 4 * B * repeats.CHUNK_WIDTH)
    module = Replay(draws)
    calls = []
    module.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    in_chunks = brnn.mc_predict(module, torch.zeros(B), samples=11)
    assert calls == [B, 4 * B, 4 * B, 2 * B]
    torch.testing.assert_close(in_chunks.mean, at_once.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(in_chunks.std, at_once.std, rtol=1e-9, atol=0)


def test_repeated_input_is_made_once_for_a_size():
    seen = []
    module = Function(lambda v: seen.append(v) or v.clone())
    x = torch.randn(B, 2)
    brnn.mc_predict(module, x, samples=9, chunk=3)
    alone, first, second, last = (v.data_ptr() for v in seen)
    assert alone != first == second != last
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


# Which dimension is the batch


@pytest.mark.parametrize("batch_first", [False, True])
def test_batch_dim_as_the_modules_inside_say(batch_first):
    module = tagger(batch_first=batch_first)
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    shapes = []
    module.rnn.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    prediction = brnn.mc_predict(module, x, samples=7)
    assert shapes[0] == tuple(x.shape)
    assert shapes[1:] == [(6 * B, T, I) if batch_first else (T, 6 * B, I)]
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


@pytest.mark.parametrize("outer_first", [False, True])
def test_batch_dim_of_modules_that_disagree(outer_first):
    """The layers that know their sequences settle it; where there are none, it must be given."""
    turn = Function(lambda x: x.transpose(0, 1))
    layers = [brnn.LockedDropout(0.5, batch_first=flag) for flag in (outer_first, not outer_first)]
    x = torch.randn((B, T, I) if outer_first else (T, B, I))
    prediction = brnn.mc_predict(nn.Sequential(layers[0], turn, layers[1]), x, samples=5)
    assert prediction.mean.shape == ((T, B, I) if outer_first else (B, T, I))
    unaware = nn.Sequential(turn, nn.Dropout(0.5))
    unaware[0].batch_first, unaware[1].batch_first = True, False
    with pytest.raises(ValueError, match=r"batch_dim: expected to be given, .*, got None"):
        brnn.mc_predict(unaware, x, samples=5)
    assert brnn.mc_predict(unaware, x, samples=5, batch_dim=1).mean.shape == (*x.shape[1::-1], I)


def test_output_batch_dim_that_cannot_be_told():
    module = Function(lambda tokens: torch.zeros(2 * B, 2 * B))
    message = r"output_batch_dim: expected .* \(3\) to .* \(6\) .* None for \[6, 6\] and \[6, 6\]"
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(module, torch.randn(T, B), samples=3, batch_dim=1)
    with pytest.raises(ValueError, match=r"output_batch_dim: .* \[\] and \[\]"):
        brnn.mc_predict(Function(torch.sum), torch.randn(B, I), samples=3)


def test_output_batch_dim_is_that_of_the_input_where_both_would_do():
    """T = S * B is no reason to ask: [T, B, I] became [T, S * B, H]."""
    prediction = brnn.mc_predict(tagger(), torch.randn(2 * B, B, I), samples=3)
    assert prediction.mean.shape == (2 * B, B, 2)
    wide = nn.Linear(I, 2 * B)
    assert brnn.mc_predict(wide, torch.randn(B, I), samples=3).mean.shape == (B, 2 * B)


@pytest.mark.parametrize("given", [0, 2, -3, 3, -4])
def test_output_batch_dim_of_another_size(given):
    message = rf"output_batch_dim: expected a dimension of .*\[4, (12|3), 2\], got {given}"
    with pytest.raises(ValueError, match=message):
        brnn.mc_predict(tagger(), torch.randn(T, B, I), samples=5, output_batch_dim=given)


def test_output_batch_dim_may_be_negative():
    module, x = tagger(), torch.randn(T, B, I)
    assert brnn.mc_predict(module, x, samples=5, output_batch_dim=-2).mean.shape == (T, B, 2)


def test_output_batch_dim_is_settled_by_the_first_chunk():
    """The last chunk is smaller: its 2 * 2 sequences must not be taken for the 4 time steps."""
    x = torch.randn(4, 2, I)
    assert brnn.mc_predict(tagger(), x, samples=5, chunk=3).mean.shape == (4, 2, 2)


# Inputs whose batch stands elsewhere


class Packing(nn.Module):
    """The last states of sequences of these lengths."""

    def __init__(self, batch_first=False):
        super().__init__()
        self.rnn = brnn.BayesianGRU(I, H, batch_first=batch_first, recurrent_dropout=0.5)

    def forward(self, x, lengths, start=None):
        sorted_or_not = {"batch_first": self.rnn.batch_first, "enforce_sorted": False}
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, **sorted_or_not)
        return self.rnn(packed, start)[1][-1]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batch_dim", [None, "given"])
def test_lengths_are_a_vector_of_the_batch(batch_first, batch_dim):
    module, lengths = Packing(batch_first), torch.tensor([T, 1, 2])[:B]
    x = torch.randn(T, B, I).transpose(0, int(batch_first))
    given = {"batch_dim": 1 - int(batch_first)} if batch_dim else {}
    torch.manual_seed(1)
    one = brnn.mc_predict(module, x, lengths, None, samples=5, keep_draws=True, **given)
    torch.manual_seed(1)
    loop = brnn.mc_predict(module, x, lengths, samples=5, keep_draws=True, chunk=1)
    assert one.draws.shape == loop.draws.shape == (5, B, H)
    torch.testing.assert_close(one.draws[0], loop.draws[0])
    torch.manual_seed(2)
    in_keywords = brnn.mc_predict(module, x, module_kwargs={"lengths": lengths}, samples=5, **given)
    assert in_keywords.mean.shape == (B, H)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("layer", [brnn.BayesianLSTM, nn.LSTM])
def test_states_have_their_batch_in_dimension_1(layer, keyword, batch_first):
    dropout = {"recurrent_dropout": 0.5} if layer is brnn.BayesianLSTM else {"dropout": 0.5}
    module = layer(I, H, 2, batch_first=batch_first, **dropout)
    x = torch.randn(T, B, I).transpose(0, int(batch_first))
    state = (torch.randn(2, B, H), torch.randn(2, B, H))
    given = {"module_kwargs": {"hx": state}} if keyword else {}
    got = brnn.mc_predict(module, x, *([] if keyword else [state]), samples=40, **given)
    assert got.mean.shape == module(x)[0].shape and got.std.mean() > 0
    other = [s.roll(1, dims=1) for s in state]
    moved = brnn.mc_predict(module, x, other, samples=2)
    assert not torch.allclose(moved.mean, got.mean, atol=0.05)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions take no notes before")
def test_what_a_repeat_broke_has_a_note():
    """One sample alone ran, so the repetition may be the reason; the error stays what it was."""

    class Sorted(Packing):
        def forward(self, x, lengths):
            return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths))[1][-1]

    x, lengths = torch.randn(T, B, I), torch.arange(B, 0, -1)
    with pytest.raises(RuntimeError, match=r"^`lengths` array must be sorted") as caught:
        brnn.mc_predict(Sorted(), x, lengths, samples=3)
    (note,) = caught.value.__notes__
    assert note == (
        "mc_predict: one sample alone ran; 2 were repeated in dimension 1 of the inputs "
        "(batch_dim=). chunk=1 repeats nothing"
    )
    assert brnn.mc_predict(Sorted(), x, lengths, samples=3, chunk=1).mean.shape == (B, H)
    layer = brnn.BayesianLSTM(I, H, recurrent_dropout=0.5)
    with pytest.raises(ValueError, match=rf"^input: expected last dimension {I} ") as caught:
        brnn.mc_predict(layer, torch.randn(T, I), samples=3)
    assert "repeated in dimension 1" in caught.value.__notes__[0]


def test_a_module_that_raises_is_not_repeated_elsewhere():
    """Along the time it would run, and mix the samples."""
    module = nn.Dropout(0.5)
    mixing = Function(lambda v: module(v) + torch.zeros(B, 1, I))
    mixing.add_module("dropout", module)
    with pytest.raises(RuntimeError, match="must match the size"):
        brnn.mc_predict(mixing, torch.randn(B, T, I), samples=3)


@pytest.mark.parametrize("batch_dim", [1, 7, -2])
@pytest.mark.parametrize("chunk", [None, 1])
def test_batch_dim_of_a_lone_vector(batch_dim, chunk):
    with pytest.raises(ValueError, match=rf"^batch_dim: .* dimension of \[3\], got {batch_dim}$"):
        brnn.mc_predict(nn.Dropout(), torch.zeros(3), samples=3, batch_dim=batch_dim, chunk=chunk)


def test_lengths_where_the_modules_disagree():
    class Both(Packing):
        def __init__(self):
            super().__init__()
            self.second = brnn.BayesianGRU(H, H, batch_first=True, recurrent_dropout=0.5)

        def forward(self, x, lengths):
            return self.second(super().forward(x, lengths).unsqueeze(1))[0]

    got = brnn.mc_predict(Both(), torch.randn(T, B, I), torch.full((B,), T), samples=4)
    assert got.mean.shape == (B, 1, H)

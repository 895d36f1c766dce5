"""BayesianEmbedding: a word type is dropped everywhere in its sequence."""

import math

import pytest
import torch
from mask_cases import B, T, assert_independent, assert_rate
from torch import nn

import bayesrnn_cuda as brnn

VOCABULARY, WIDTH = 20, 5


def embedding(p=0.5, **options):
    torch.manual_seed(0)
    return brnn.BayesianEmbedding(VOCABULARY, WIDTH, dropout=p, **options)


def kept_tokens(vectors):
    """Which tokens' vectors are kept; asserts that each is kept or dropped as a whole."""
    nonzero = vectors != 0
    assert torch.equal(nonzero.any(dim=-1), nonzero.all(dim=-1))
    return nonzero.any(dim=-1)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (0.0, False)])
@pytest.mark.parametrize("padding_idx", [None, 0, -1])
@pytest.mark.parametrize("batch_first", [False, True])
def test_embedding_equals_torch(p, training, padding_idx, batch_first):
    ours = embedding(p, padding_idx=padding_idx, batch_first=batch_first).train(training)
    theirs = nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding_idx)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert ours.padding_idx == theirs.padding_idx
    for tokens in (torch.randint(VOCABULARY, (T, B)), torch.randint(VOCABULARY, (T,))):
        tokens[0] = -1 % VOCABULARY
        gradients = []
        for module in (ours, theirs):
            out = module(tokens)
            weight = torch.arange(out.numel()).reshape(out.shape)
            gradients.append(torch.autograd.grad((out * weight).sum(), module.weight)[0])
        assert torch.equal(ours(tokens), theirs(tokens))
        assert torch.equal(*gradients)


def test_embedding_has_the_weights_of_torch_under_the_same_seed():
    modules = []
    for cls in (brnn.BayesianEmbedding, nn.Embedding):
        torch.manual_seed(2)
        modules.append(cls(VOCABULARY, WIDTH, padding_idx=3))
    assert torch.equal(*(m.weight for m in modules))
    assert (modules[0].weight[3] == 0).all()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_repeated_word_is_dropped_everywhere_in_its_sequence(batch_first, dtype):
    module = embedding(batch_first=batch_first)
    tokens = torch.randint(VOCABULARY, (30, 200), dtype=dtype)
    vectors = module(tokens.T if batch_first else tokens)
    vectors = vectors.transpose(0, 1) if batch_first else vectors
    kept = kept_tokens(vectors)
    torch.testing.assert_close(
        vectors, torch.where(kept.unsqueeze(-1), 2 * module.weight[tokens.long()], 0.0)
    )
    # [word, sequence]: how often it stands there, how often it was kept
    one_hot = nn.functional.one_hot(tokens.long(), VOCABULARY)
    stands = one_hot.sum(dim=0).T
    stayed = (one_hot * kept.unsqueeze(-1)).sum(dim=0).T
    assert ((stayed == 0) | (stayed == stands)).all()


def test_words_are_dropped_independently_of_sequence_and_of_each_other():
    module = embedding(0.25)
    tokens = torch.arange(VOCABULARY).unsqueeze(1).expand(VOCABULARY, 4000)
    kept = kept_tokens(module(tokens))
    assert_rate(kept, 0.75)
    assert_independent(kept[:, 1::2], kept[:, ::2], 0.75)
    assert_independent(kept[1::2], kept[::2], 0.75)


def test_rate_of_a_frequent_word_is_that_of_a_word():
    """Each type counts once: fifty "the" in a sequence are one draw, neither rarer nor surer."""
    module = embedding(0.25)
    tokens = torch.zeros(52, 4000, dtype=torch.long)
    tokens[7], tokens[50] = 3, 1
    kept = kept_tokens(module(tokens))
    frequent = kept[tokens[:, 0] == 0]
    assert torch.equal(frequent.all(dim=0), frequent.any(dim=0))
    for word in (frequent[0], kept[7], kept[50]):
        assert_rate(word, 0.75)
    assert_independent(frequent[0], kept[7], 0.75)


def test_one_dimension_of_tokens_is_one_sequence():
    tokens = torch.tensor([1, 2, 1, 3, 1])
    for batch_first in (False, True):
        module = embedding(batch_first=batch_first)
        patterns = torch.stack([kept_tokens(module(tokens)) for _ in range(50)])
        assert patterns.shape == (50, 5)
        assert torch.equal(patterns[:, 0], patterns[:, 2])
        assert torch.equal(patterns[:, 0], patterns[:, 4])
        assert not torch.equal(patterns[:, 0], patterns[:, 1])


@pytest.mark.parametrize("batch_first", [False, True])
def test_held_mask_of_words(batch_first):
    module = embedding(batch_first=batch_first)
    keep = module.sample_mask(B)
    assert keep.shape == (B, VOCABULARY)
    assert keep.dtype == torch.bool
    tokens = torch.randint(VOCABULARY, (12, B))
    expected = torch.stack([keep[b, tokens[:, b]] for b in range(B)], dim=1)
    for training in (True, False):
        module.train(training)
        for given in (tokens, tokens.int()):
            vectors = module(given.T if batch_first else given, keep=keep)
            kept = kept_tokens(vectors)
            assert torch.equal(kept.T if batch_first else kept, expected)
    one = module(tokens[:, 0], keep=keep[:1])
    assert torch.equal(kept_tokens(one), expected[:, 0])


def test_sample_mask_of_words_takes_a_generator():
    module = embedding(0.25)
    before = torch.get_rng_state()
    masks = [module.sample_mask(500, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(*masks)
    assert torch.equal(torch.get_rng_state(), before)
    assert_rate(masks[0], 0.75)


def test_embedding_draws_anew_reproducibly_and_under_mc_dropout():
    module, tokens = embedding(), torch.randint(VOCABULARY, (T, B))
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(module(tokens))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    module.eval()
    with brnn.mc_dropout(module):
        torch.manual_seed(1)
        assert torch.equal(module(tokens), outputs[0])


def test_dropping_every_word():
    module = embedding(1.0)
    vectors = module(torch.randint(VOCABULARY, (T, B)))
    assert (vectors == 0).all()
    vectors.sum().backward()
    assert (module.weight.grad == 0).all()


def test_gradient_of_dropped_words_and_of_padding_is_zero():
    module = embedding(padding_idx=-1)
    tokens = torch.arange(VOCABULARY)
    vectors = module(tokens)
    kept = (vectors != 0).any(dim=-1)
    vectors.sum().backward()
    assert not kept[-1]
    assert (module.weight.grad[kept] == 2).all()
    assert (module.weight.grad[~kept] == 0).all()


@pytest.mark.parametrize("shape", [(0, B), (T, 0), (0,)])
def test_embedding_of_no_tokens(shape):
    tokens = torch.zeros(shape, dtype=torch.long)
    assert embedding()(tokens).shape == (*shape, WIDTH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_embeddings": 0}, r"num_embeddings: expected .* at least 1, got 0"),
        ({"embedding_dim": -2}, r"embedding_dim: expected .* at least 1, got -2"),
        ({"embedding_dim": 2.0}, r"embedding_dim: expected an integer .*, got 2\.0"),
        ({"dropout": 1.5}, r"dropout: expected .* in \[0, 1\], got 1\.5"),
        ({"dropout": math.nan}, r"dropout: expected .* in \[0, 1\], got nan"),
        ({"padding_idx": 20}, r"padding_idx: expected .*20.*, got 20"),
        ({"padding_idx": -21}, r"padding_idx: expected .*20.*, got -21"),
        ({"batch_first": 0}, r"batch_first: expected True or False, got 0"),
    ],
)
def test_embedding_constructor_errors(options, message):
    of_type = "an integer" in message or "True or" in message
    with pytest.raises(TypeError if of_type else ValueError, match=message):
        brnn.BayesianEmbedding(**({"num_embeddings": 20, "embedding_dim": 5} | options))


def test_embedding_forward_errors():
    module, tokens = embedding(), torch.zeros(T, B, dtype=torch.long)
    for shape in ((), (T, B, 1)):
        with pytest.raises(ValueError, match=rf"tokens: expected 1 or 2 .*, got {len(shape)}"):
            module(torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match=r"keep: expected shape \[3, 20\], got \[2, 20\]"):
        module(tokens, keep=module.sample_mask(2))
    with pytest.raises(ValueError, match=r"keep: expected shape \[1, 20\], got \[3, 20\]"):
        module(tokens[:, 0], keep=module.sample_mask(B))
    with pytest.raises((ValueError, RuntimeError), match=r"keep: expected .*bool.*, got .*float32"):
        module(tokens, keep=torch.ones(B, VOCABULARY))


def test_embedding_repr():
    assert repr(embedding()) == "BayesianEmbedding(20, 5, dropout=0.5)"
    shown = repr(embedding(0.25, padding_idx=-1, batch_first=True))
    assert shown == "BayesianEmbedding(20, 5, dropout=0.25, padding_idx=19, batch_first=True)"

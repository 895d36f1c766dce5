"""The sentiment model: equations, initial parameters, which masks it draws."""

import dataclasses

import pytest
import torch
from torch import nn

import bayesrnn_cuda as brnn
from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.sentiment.model import (
    SentimentConfig,
    SentimentModel,
    model_content,
    restore_model,
)
from bayesrnn_cuda.experiments.training.checkpoint import CheckpointError

V, T, B, E, H = 10, 6, 4, 5, 7
KINDS = ("none", "naive", "bayesian")
NO_DROPOUT = {
    "embedding_dropout": 0.0,
    "input_dropout": 0.0,
    "recurrent_dropout": 0.0,
    "output_dropout": 0.0,
}


@pytest.fixture(autouse=True)
def same_masks_each_time():
    torch.manual_seed(0)


@pytest.fixture
def tokens():
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(5))


def config_of(**settings) -> SentimentConfig:
    return SentimentConfig(**{"vocabulary": V, "embedding": E, "hidden": H, **settings})


def model_of(**settings) -> SentimentModel:
    return SentimentModel(config_of(**settings))


def layer_of(model: SentimentModel) -> brnn.BayesianLSTM | brnn.BayesianGRU:
    return model.recurrent.layers[0] if hasattr(model.recurrent, "layers") else model.recurrent


@pytest.mark.parametrize("kind", KINDS)
def test_lstm_evaluation_equals_torch_layers(kind, tokens):
    model = model_of(dropout_kind=kind).eval()
    layer = nn.LSTM(E, H, batch_first=True)
    layer.load_state_dict(layer_of(model).state_dict())
    _, (h_n, _) = layer(model.embedding.weight[tokens])
    expected = h_n[0] @ model.decoder.weight[0] + model.decoder.bias
    ratings = model(tokens)
    assert ratings.shape == (B,)
    torch.testing.assert_close(ratings, expected)


def test_gru_evaluation_resets_before_the_recurrent_weights(tokens):
    model = model_of(cell="gru").eval()
    w_ih, w_hh = model.recurrent.weight_ih_l0.chunk(3), model.recurrent.weight_hh_l0.chunk(3)
    h = torch.zeros(B, H)
    for t in range(T):
        x = model.embedding.weight[tokens[:, t]]
        r = (x @ w_ih[0].t() + h @ w_hh[0].t()).sigmoid()
        z = (x @ w_ih[1].t() + h @ w_hh[1].t()).sigmoid()
        n = (x @ w_ih[2].t() + (r * h) @ w_hh[2].t()).tanh()
        h = (1 - z) * n + z * h
    expected = h @ model.decoder.weight[0] + model.decoder.bias
    torch.testing.assert_close(model(tokens), expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_initial_parameters_are_those_of_the_seed(cell):
    models = [model_of(cell=cell, dropout_kind=kind, seed=3) for kind in KINDS]
    torch.rand(1)
    for model in models[1:]:
        for mine, first in zip(model.parameters(), models[0].parameters(), strict=True):
            assert torch.equal(mine, first)
    other = model_of(cell=cell, dropout_kind="none", seed=4)
    for name in ("embedding.weight", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0"):
        assert not torch.equal(other.get_parameter(name), models[0].get_parameter(name))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_initial_parameters_are_the_authors(cell):
    model = SentimentModel(config_of(cell=cell, vocabulary=200, embedding=60, hidden=40))
    assert model.embedding.weight.shape == (203, 60)
    weights = model.recurrent.layer_weights("l0")

    def assert_uniform(weight, bound):
        assert 0.97 * bound < weight.abs().max() <= bound
        assert weight.mean().abs() < 0.1 * bound

    assert_uniform(model.embedding.weight, 0.05)
    for gate in weights.weight_ih.split(40):
        assert_uniform(gate, (6 / (60 + 40)) ** 0.5)
    for gate in weights.weight_hh.split(40):
        torch.testing.assert_close(gate @ gate.t(), 1.1**2 * torch.eye(40))
    bias = torch.zeros(4 if cell == "lstm" else 3, 40)
    if cell == "lstm":
        bias[1] = 1.0  # torch's gates are i, f, g, o
    assert torch.equal(weights.bias_ih + weights.bias_hh, bias.flatten())
    assert model.decoder.weight.abs().max() <= (6 / 41) ** 0.5
    assert model.decoder.weight.abs().max() > 0.8 * (6 / 41) ** 0.5
    assert model.decoder.bias.item() == 0


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter(kind, cell, tokens):
    model = model_of(dropout_kind=kind, cell=cell)
    model(tokens).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("name", ["embedding_dropout", "input_dropout"])
def test_bayesian_drops_word_types_and_inputs(name, tokens):
    """With p = 1 the layer sees nothing, whatever the words."""
    ratings = model_of(**{**NO_DROPOUT, name: 1.0})(tokens)
    assert torch.equal(ratings, ratings[:1].expand(B))
    ratings = model_of(**NO_DROPOUT)(tokens)
    assert len(ratings.unique()) == B


def test_bayesian_drops_the_recurrent_connections(tokens):
    model = model_of(**{**NO_DROPOUT, "recurrent_dropout": 1.0})
    ratings = model(tokens)
    with torch.no_grad():
        model.recurrent.weight_hh_l0.zero_()
    torch.testing.assert_close(ratings, model.eval()(tokens))


@pytest.mark.parametrize("kind", ["naive", "bayesian"])
def test_last_state_is_dropped(kind, tokens):
    model = model_of(dropout_kind=kind, **{**NO_DROPOUT, "output_dropout": 1.0})
    with torch.no_grad():
        model.decoder.bias.fill_(0.25)
    assert model(tokens).tolist() == [0.25] * B


def seen_by_layer(model: SentimentModel, tokens: torch.Tensor) -> torch.Tensor:
    """What the recurrent layer gets as input, [T, B, E]."""
    seen = []
    layer_of(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(tokens)
    return seen[0]


def test_bayesian_masks_hold_over_time():
    """A word that is repeated is dropped everywhere; the layer draws one set of masks a gate."""
    model = model_of(embedding=50, tie_gates=False)
    words = torch.arange(V).unsqueeze(1).expand(V, T)
    seen = seen_by_layer(model, words)
    assert torch.equal(seen, seen[:1].expand_as(seen))
    dropped = seen[0].eq(0).all(dim=1)
    assert dropped.any() and not dropped.all()

    def gates(model: SentimentModel) -> tuple[int, int]:
        ((keep_x, keep_h, _, _),) = model.recurrent.sample_masks(B)
        return len(keep_x), len(keep_h)

    assert gates(model) == (4, 4)
    assert gates(model_of(tie_gates=True)) == (1, 1)
    assert gates(model_of(cell="gru")) == (3, 3)


def test_naive_masks_are_new_every_step():
    model = model_of(embedding=50, dropout_kind="naive", embedding_dropout=0.9)
    words = torch.arange(V).unsqueeze(1).expand(V, T)
    kept = seen_by_layer(model, words).ne(0)
    assert not torch.equal(kept[0], kept[1])
    # Input features one by one, not words as a whole.
    assert 0.4 < kept.float().mean() < 0.6
    assert kept.any(dim=2).all()
    ((keep_x, keep_h, _, _),) = layer_of(model).sample_masks(B)
    assert keep_x is None and keep_h is None


def test_no_dropout_draws_nothing(tokens):
    model, before = model_of(dropout_kind="none"), torch.get_rng_state()
    assert torch.equal(model(tokens), model.eval()(tokens))
    assert torch.equal(torch.get_rng_state(), before)


def test_defaults_are_the_authors():
    config = SentimentConfig()
    assert (config.seq_len, config.vocabulary, config.embedding, config.hidden) == (
        200,
        20_000,
        128,
        128,
    )
    assert (config.epochs, config.batch_size, config.lr) == (250, 128, 1e-3)
    assert (config.weight_decay, config.mc_samples, config.mc_samples_epoch) == (1e-6, 50, 10)
    assert config.describe_dropout() == "Bayesian dropout E=0.5 W=0.5 U=0.5 dense=0.5"
    assert config.samples_masks()


@pytest.mark.parametrize(
    ("settings", "words", "samples"),
    [
        ({"dropout_kind": "none"}, "no dropout", False),
        ({"dropout_kind": "naive"}, "naive dropout W=0.5 dense=0.5", False),
        ({"tie_gates": True}, "Bayesian dropout E=0.5 W=0.5 U=0.5 dense=0.5 tied", True),
        (NO_DROPOUT, "Bayesian dropout E=0.0 W=0.0 U=0.0 dense=0.0", False),
        ({**NO_DROPOUT, "output_dropout": 0.1}, "Bayesian dropout E=0.0 W=0.0 U=0.0 dense=0.1", 1),
    ],
)
def test_dropout_in_words(settings, words, samples):
    config = SentimentConfig(**settings)
    assert (config.describe_dropout(), config.samples_masks()) == (words, samples)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "own"}, "--split: expected one of authors, deduplicated, got 'own'"),
        ({"vocabulary": 4}, "--vocabulary: expected a whole number from 5 .*, got 4"),
        ({"pieces": 3}, "--pieces: expected a whole number from 4 .*, got 3"),
        ({"seq_len": 0}, "--seq-len: expected a whole number from 1 .*, got 0"),
        ({"cell": "rnn"}, "--cell: expected one of lstm, gru, got 'rnn'"),
        ({"output_dropout": 1.5}, "--output-dropout: expected a probability .*, got 1.5"),
        ({"mc_samples_epoch": -1}, "--mc-samples-epoch: expected a whole number from 0 .*, got -1"),
    ],
)
def test_mistaken_options(settings, message):
    with pytest.raises(UserError, match=f"^argument {message}"):
        SentimentConfig(**settings)


def test_model_from_the_content_of_a_checkpoint(tokens):
    config = config_of(cell="gru", seed=9)
    model = SentimentModel(config)
    with torch.no_grad():
        model.decoder.bias.fill_(0.5)
    content = model_content(model, ["a"], 0.6, 0.2, config)
    restored, own_config = restore_model(content)
    assert own_config == config and not restored.training
    assert torch.equal(restored(tokens), model.eval()(tokens))
    assert (content["words"], content["mean"], content["standard_deviation"]) == (["a"], 0.6, 0.2)
    bigger = {**content, "config": dataclasses.asdict(dataclasses.replace(config, hidden=H + 1))}
    for broken in ({**content, "config": {}}, {"config": content["config"]}, bigger):
        with pytest.raises(CheckpointError) as caught:
            restore_model(broken)
        assert "\n" not in str(caught.value)

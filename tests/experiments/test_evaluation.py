"""Perplexities of models whose answer is known."""

import math

import pytest
import torch

from bayesrnn_cuda.experiments.evaluation import mc_perplexity, perplexity, perplexity_of
from bayesrnn_cuda.experiments.language_model import LanguageModel, LanguageModelConfig

V = 9
SETTINGS = {"seq_len": 4, "state": "carry"}


@pytest.fixture
def stream():
    return torch.randint(V, (43,), generator=torch.Generator().manual_seed(2))


def model_of(**settings) -> LanguageModel:
    base = {"embedding": 5, "hidden": 6, "layers": 1, "init_range": 0.8}
    return LanguageModel(V, LanguageModelConfig(**{**base, **settings}))


def log_probabilities(model, inputs, targets, masks=None):
    """log p of the targets, [T, B], in one pass without windows."""
    with torch.no_grad():
        logits, _ = model.eval()(inputs, masks=masks)
    return logits.double().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_uniform_model_has_the_perplexity_of_the_vocabulary(stream, batch_size):
    model = model_of()
    with torch.no_grad():
        model.decoder.weight.zero_()
        model.decoder.bias.fill_(1.7)
    assert perplexity(model, stream, batch_size=batch_size, **SETTINGS) == pytest.approx(V)
    assert mc_perplexity(model, stream, samples=4, seed=1, **SETTINGS) == pytest.approx(V)


def test_perplexity_counts_every_prediction_once(stream):
    """42 predictions in windows of 4, the last one shorter; equal to one long pass."""
    model = model_of()
    log_p = log_probabilities(model, stream[:-1, None], stream[1:, None])
    assert log_p.numel() == 42
    expected = math.exp(-log_p.mean().item())
    assert perplexity(model, stream, **SETTINGS) == pytest.approx(expected, rel=1e-6)


def test_perplexity_over_lanes(stream):
    model = model_of()
    columns = stream[:42].view(3, 14).t()
    expected = math.exp(-log_probabilities(model, columns[:-1], columns[1:]).mean().item())
    actual = perplexity(model, stream, batch_size=3, **SETTINGS)
    assert actual == pytest.approx(expected, rel=1e-6)


def test_zero_state_evaluates_each_window_alone(stream):
    model = model_of()
    parts = [
        log_probabilities(model, stream[start:stop, None], stream[start + 1 : stop + 1, None])
        for start, stop in ((s, min(s + 4, 42)) for s in range(0, 42, 4))
    ]
    expected = math.exp(-torch.cat(parts).mean().item())
    actual = perplexity(model, stream, seq_len=4, state="zero")
    assert actual == pytest.approx(expected, rel=1e-6)
    assert actual != pytest.approx(perplexity(model, stream, **SETTINGS), rel=1e-4)


def test_stream_shorter_than_the_lanes(stream):
    model = model_of()
    assert perplexity(model, stream[:7], batch_size=20, **SETTINGS) == pytest.approx(
        perplexity(model, stream[:7], **SETTINGS)
    )


def test_mc_without_dropout_is_the_approximation(stream):
    model = model_of(
        input_dropout=0.0, recurrent_dropout=0.0, output_dropout=0.0, embedding_dropout=0.0
    )
    expected = perplexity(model, stream, **SETTINGS)
    actual = mc_perplexity(model, stream, samples=5, seed=1, **SETTINGS)
    assert actual == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("lanes_per_pass", [1, 2, 100])
def test_mc_averages_probabilities_over_masks_held_for_the_stream(stream, lanes_per_pass):
    """Equal to a pass without windows per sample; averaging log p instead gives another value."""
    model = model_of(input_dropout=0.4, recurrent_dropout=0.4, output_dropout=0.4)
    generator = torch.Generator().manual_seed(7)
    log_p = []
    for lanes in (2, 2, 1) if lanes_per_pass == 2 else (5,) if lanes_per_pass == 100 else (1,) * 5:
        masks = model.sample_masks(lanes, embedding=False, generator=generator)
        inputs, targets = (part[:, None].expand(-1, lanes) for part in (stream[:-1], stream[1:]))
        log_p.append(log_probabilities(model, inputs, targets, masks))
    log_p = torch.cat(log_p, dim=1)
    actual = mc_perplexity(
        model, stream, samples=5, seed=7, lanes_per_pass=lanes_per_pass, **SETTINGS
    )
    assert actual == pytest.approx(math.exp(-log_p.exp().mean(1).log().mean().item()), rel=1e-6)
    assert actual != pytest.approx(math.exp(-log_p.mean().item()), rel=1e-3)


def test_mc_embedding_dropout_is_an_option(stream):
    model = model_of(
        embedding_dropout=0.5, input_dropout=0.0, recurrent_dropout=0.0, output_dropout=0.0
    )
    off = mc_perplexity(model, stream, samples=3, seed=1, **SETTINGS)
    on = mc_perplexity(model, stream, samples=3, seed=1, embedding_dropout=True, **SETTINGS)
    assert off == pytest.approx(perplexity(model, stream, **SETTINGS), rel=1e-6)
    assert on != pytest.approx(off, rel=1e-3)


def test_evaluation_leaves_mode_and_generator_as_found(stream):
    model = model_of().train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = mc_perplexity(model, stream, samples=3, seed=1, **SETTINGS)
    perplexity(model, stream, **SETTINGS)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert mc_perplexity(model, stream, samples=3, seed=1, **SETTINGS) == first
    assert mc_perplexity(model, stream, samples=3, seed=2, **SETTINGS) != first


def test_progress_counts_steps(stream):
    steps = []
    mc_perplexity(
        model_of(), stream, samples=3, seed=1, lanes_per_pass=2, on_steps=steps.append, **SETTINGS
    )
    assert sum(steps) == 2 * 42


def test_hopeless_loss_is_infinite_perplexity():
    assert perplexity_of(math.log(5)) == pytest.approx(5)
    assert perplexity_of(1e5) == math.inf

"""Perplexities of models whose answer is known."""

import itertools
import math

import pytest
import torch

from bayesrnn_cuda.experiments.language import evaluation
from bayesrnn_cuda.experiments.language.evaluation import (
    McResult,
    mc_evaluate,
    perplexity,
    perplexity_of,
    validation_perplexity,
)
from bayesrnn_cuda.experiments.language.model import (
    LanguageModel,
    LanguageModelConfig,
    ModelMasks,
)

V = 9
SETTINGS = {"seq_len": 4, "state": "carry"}


@pytest.fixture
def stream():
    return torch.randint(V, (43,), generator=torch.Generator().manual_seed(2))


def model_of(**settings) -> LanguageModel:
    base = {"embedding": 5, "hidden": 6, "layers": 1, "init_range": 0.8}
    return LanguageModel(V, LanguageModelConfig(**{**base, **settings}))


def mc_perplexity(model, tokens, **settings):
    return mc_evaluate(model, tokens, **settings).perplexity


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


def test_documents_are_evaluated_from_zero(stream):
    """Within windows and at their edges. The first word of a document is predicted from the one
    before."""
    model = model_of()
    resets = torch.zeros(43, dtype=torch.bool)
    resets[[0, 6, 8, 9, 30]] = True
    pieces = ((0, 6), (6, 8), (8, 9), (9, 30), (30, 42))
    parts = [
        log_probabilities(model, stream[start:stop, None], stream[start + 1 : stop + 1, None])
        for start, stop in pieces
    ]
    expected = math.exp(-torch.cat(parts).mean().item())
    settings = {"seq_len": 4, "state": "documents", "resets": resets}
    assert perplexity(model, stream, **settings) == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(perplexity(model, stream, **SETTINGS), rel=1e-4)
    with torch.no_grad():  # without dropout each sampled model is the mean network
        none = model_of(embedding_dropout=0.0, input_dropout=0.0, recurrent_dropout=0.0,
                        output_dropout=0.0)  # fmt: skip
    none.load_state_dict(model.state_dict())
    sampled = mc_perplexity(none, stream, samples=3, seed=1, **settings)
    assert sampled == pytest.approx(expected, rel=1e-6)


def test_stream_shorter_than_the_lanes(stream):
    model = model_of()
    assert perplexity(model, stream[:7], batch_size=20, **SETTINGS) == pytest.approx(
        perplexity(model, stream[:7], **SETTINGS)
    )


def test_authors_validation_counts_a_part_of_a_window_it_leaves_out():
    """2 lanes of 11 steps: 3 windows of 3 divided by (11 - 1) / 3; the 10th prediction is lost."""
    tokens = torch.randint(V, (22,), generator=torch.Generator().manual_seed(4))
    model, columns = model_of(), tokens.view(2, 11).t()
    log_p = log_probabilities(model, columns[:-1], columns[1:])
    errors = [-log_p[start : start + 3].mean().item() for start in (0, 3, 6)]
    expected = math.exp(sum(errors) / ((11 - 1) / 3))
    actual = validation_perplexity(model, tokens, batch_size=2, seq_len=3, state="carry")
    assert actual.authors == pytest.approx(expected, rel=1e-6)
    assert actual.corrected == pytest.approx(math.exp(-log_p.mean().item()), rel=1e-6)
    assert actual.authors < 0.9 * actual.corrected


def test_authors_validation_without_a_part_of_a_window():
    tokens = torch.randint(V, (20,), generator=torch.Generator().manual_seed(4))
    actual = validation_perplexity(model_of(), tokens, batch_size=2, seq_len=3, state="carry")
    assert actual.authors == actual.corrected


def test_authors_validation_on_the_penn_treebank():
    """105 windows of 20 lanes by 105.343: their figure to the power 1.003265 is the corrected."""
    tokens = torch.zeros(73760, dtype=torch.int64)
    model = model_of(embedding=1, hidden=1)
    with torch.no_grad():
        model.decoder.weight.zero_()
    actual = validation_perplexity(model, tokens, batch_size=20, seq_len=35, state="carry")
    assert actual.corrected == pytest.approx(actual.authors**1.003265, rel=2e-6)


def test_mc_without_dropout_is_the_approximation(stream):
    model = model_of(
        input_dropout=0.0, recurrent_dropout=0.0, output_dropout=0.0, embedding_dropout=0.0
    )
    expected = perplexity(model, stream, **SETTINGS)
    actual = mc_evaluate(model, stream, samples=5, seed=1, **SETTINGS)
    assert actual.perplexity == pytest.approx(expected, rel=1e-6)
    assert actual.entropy > 0.1
    assert 0 <= actual.mutual_information < 1e-6
    assert actual.standard_deviation < 1e-6


class TestMc:
    """Against one sample at a time, in one pass or window by window, in float64."""

    SAMPLES = 5

    @pytest.fixture
    def model(self):
        return model_of(
            cell="gru",
            layers=2,
            embedding_dropout=0.3,
            input_dropout=0.4,
            recurrent_dropout=0.4,
            output_dropout=0.4,
        )

    def one_by_one(self, model, stream, state, masks_per, embedding=False):
        """log p of all words [S, tokens - 1, V]: the whole stream, or windows of 4, a sample."""
        generator = torch.Generator().manual_seed(7)
        length = 42 if (state, masks_per) == ("carry", "pass") else 4
        carried, parts, masks = [None] * self.SAMPLES, [], None
        for start in range(0, 42, length):
            if masks is None or masks_per == "window":
                masks = model.sample_masks(self.SAMPLES, embedding=embedding, generator=generator)
            inputs, part = stream[start : min(start + length, 42), None], []
            for s in range(self.SAMPLES):
                lane = ModelMasks(
                    masks.embedding[s : s + 1] if embedding else None,
                    [layer.index_select(torch.tensor([s])) for layer in masks.recurrent],
                    masks.output[s : s + 1],
                )
                with torch.no_grad():
                    logits, after = model.eval()(inputs, carried[s], masks=lane)
                carried[s] = after if state == "carry" else None
                part.append(logits.double().log_softmax(-1).squeeze(1))
            parts.append(torch.stack(part))
        return torch.cat(parts, dim=1)

    @pytest.mark.parametrize("lanes_per_pass", [1, 2, None])
    @pytest.mark.parametrize("masks_per", ["pass", "window"])
    @pytest.mark.parametrize("state", ["carry", "zero"])
    def test_figures(self, model, stream, state, masks_per, lanes_per_pass):
        log_p = self.one_by_one(model, stream, state, masks_per)
        p = log_p.exp()
        true = p[:, range(42), stream[1:]]
        mean = p.mean(0)
        entropy = -(mean * mean.log()).sum(-1)
        information = entropy - -(p * log_p).sum(-1).mean(0)
        deviation = (true - true.mean(0)).square().mean(0).sqrt()
        expected = McResult(
            math.exp(-true.mean(0).log().mean()),
            entropy.mean().item(),
            information.mean().item(),
            deviation.mean().item(),
        )
        settings = {"masks_per": masks_per, "lanes_per_pass": lanes_per_pass}
        actual = mc_evaluate(
            model, stream, samples=self.SAMPLES, seed=7, seq_len=4, state=state, **settings
        )
        assert actual == pytest.approx(expected, rel=2e-5)
        assert actual.perplexity == pytest.approx(expected.perplexity, rel=1e-6)
        assert actual.perplexity != pytest.approx(math.exp(-true.log().mean()), rel=1e-3)

    def test_cases_differ(self, model, stream):
        """What tells the cases of `test_figures` apart is not lost in its tolerance."""
        cases = [(s, m) for s in ("carry", "zero") for m in ("pass", "window")]
        settings = {"samples": self.SAMPLES, "seed": 7, "seq_len": 4}
        found = [mc_perplexity(model, stream, state=s, masks_per=m, **settings) for s, m in cases]
        assert min(abs(a / b - 1) for a, b in itertools.combinations(found, 2)) > 1e-4

    @pytest.mark.parametrize("masks_per", ["pass", "window"])
    def test_words_dropped_too(self, model, stream, masks_per):
        log_p = self.one_by_one(model, stream, "carry", masks_per, embedding=True)
        true = log_p.exp()[:, range(42), stream[1:]]
        actual = mc_perplexity(
            model, stream, samples=self.SAMPLES, seed=7, embedding_dropout=True,
            masks_per=masks_per, lanes_per_pass=2, **SETTINGS,
        )  # fmt: skip
        assert actual == pytest.approx(math.exp(-true.mean(0).log().mean()), rel=1e-6)

    def test_chunks_are_within_the_bound_of_the_logits(self, model, stream, monkeypatch):
        """7 samples, at most 3 of them in 4 steps of 9 logits: three calls of 3, 3 and 1."""
        sizes = []
        forward = model.forward
        model.forward = lambda tokens, *a, **k: (
            sizes.append(tokens.shape[1]),
            forward(tokens, *a, **k),
        )[1]
        monkeypatch.setattr(evaluation, "MAX_LOGITS", 4 * V * 4 - 1)
        mc_evaluate(model, stream[:5], samples=7, seed=1, **SETTINGS)
        assert sizes == [3, 3, 1]
        monkeypatch.setattr(evaluation, "MAX_LOGITS", 1)
        mc_evaluate(model, stream[:5], samples=2, seed=1, **SETTINGS)
        assert sizes[3:] == [1, 1]

    def test_one_sample_knows_no_other_model(self, model, stream):
        result = mc_evaluate(model, stream, samples=1, seed=1, **SETTINGS)
        assert result.standard_deviation == 0
        assert 0 <= result.mutual_information < 1e-6
        assert result.entropy > 0.1


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
    settings = {**SETTINGS, "on_steps": steps.append}
    perplexity(model_of(), stream, batch_size=3, **settings)
    assert steps == [4, 4, 4, 1]
    steps.clear()
    mc_perplexity(model_of(), stream, samples=3, seed=1, lanes_per_pass=2, **settings)
    assert steps == [8, 4] * 10 + [4, 2]


def test_hopeless_loss_is_infinite_perplexity():
    assert perplexity_of(math.log(5)) == pytest.approx(5)
    assert perplexity_of(1e5) == math.inf


def test_a_model_in_bfloat16_is_averaged_in_float32(stream):
    """Only its logits are rounded: a perplexity of 9 would move by 1 % if its averages were."""

    class Rounded(LanguageModel):
        def forward(self, *arguments, **options):
            logits, state = super().forward(*arguments, **options)
            return logits.to(self.dtype), state

    figures = []
    for dtype in (torch.bfloat16, torch.float64):
        torch.manual_seed(0)
        config = LanguageModelConfig(embedding=5, hidden=6, layers=1, init_range=0.8)
        model = Rounded(V, config)
        model.dtype = torch.bfloat16
        if dtype == torch.float64:  # the same rounded logits, and everything after in float64
            model.forward = lambda *a, m=model, **o: (
                (out := Rounded.forward(m, *a, **o))[0].double(), out[1]
            )  # fmt: skip
        mc = mc_evaluate(model, stream, samples=50, seed=1, **SETTINGS)
        figures.append([perplexity(model, stream, **SETTINGS), *mc])
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)

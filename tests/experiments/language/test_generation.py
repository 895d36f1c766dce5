"""Text from a model."""

import dataclasses

import pytest
import torch

from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.language.generation import encode_prompt, generate, load_model
from bayesrnn_cuda.experiments.language.model import LanguageModel, LanguageModelConfig
from bayesrnn_cuda.experiments.language.task import LanguageModelTask
from bayesrnn_cuda.experiments.language.text import END, UNKNOWN, Vocabulary
from bayesrnn_cuda.experiments.training.trainer import Trainer

VOCABULARY = Vocabulary([END, UNKNOWN, "the", "dog", "cat", "sees"])


@pytest.fixture
def model():
    config = LanguageModelConfig(embedding=5, hidden=6, layers=1, init_range=1.0)
    return LanguageModel(len(VOCABULARY), config).eval()


def with_logits(model, logits):
    """The model changed to give these logits after any word."""
    with torch.no_grad():
        model.decoder.weight.zero_()
        model.decoder.bias.copy_(torch.tensor(logits))
    return model


def test_likeliest_words_follow_the_model(model):
    """top_k = 1 is greedy: the same as reading the whole text again for each word."""
    tokens = generate(model, VOCABULARY, torch.tensor([2, 3]), 8, top_k=1)
    assert tokens[:2] == [2, 3]
    for position in range(2, 10):
        read = torch.tensor([VOCABULARY.end, *tokens[:position]]).view(-1, 1)
        logits = model(read)[0][-1, 0].detach()
        logits[VOCABULARY.unknown] = -torch.inf
        assert tokens[position] == logits.argmax()


def test_unknown_is_never_drawn(model):
    model = with_logits(model, [0.0, 50.0, 0.0, 0.0, 0.0, 0.0])
    tokens = generate(model, VOCABULARY, torch.tensor([], dtype=torch.int64), 50)
    assert len(tokens) == 50 and VOCABULARY.unknown not in tokens


def test_temperature_and_top_k_bound_the_choice(model):
    model = with_logits(model, [0.0, 0.0, 1.0, 0.9, 0.5, 0.0])
    empty = torch.tensor([], dtype=torch.int64)
    assert set(generate(model, VOCABULARY, empty, 200, top_k=2)) == {2, 3}
    assert set(generate(model, VOCABULARY, empty, 200, temperature=0.01)) == {2}
    hot = generate(model, VOCABULARY, empty, 2000, temperature=100.0)
    assert hot.count(2) / 2000 == pytest.approx(0.2, abs=0.04)


def test_seed_reproduces_and_mc_holds_one_set_of_masks(model, monkeypatch):
    empty = torch.tensor([], dtype=torch.int64)
    first = generate(model, VOCABULARY, empty, 30, seed=4)
    assert first == generate(model, VOCABULARY, empty, 30, seed=4)
    assert first != generate(model, VOCABULARY, empty, 30, seed=5)
    used = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *a, masks: (used.append(masks), forward(*a, masks=masks))[1]
    )
    sampled = generate(model, VOCABULARY, empty, 30, seed=4, mc=True)
    assert sampled != first
    assert len(used) == 30 and used[0] is not None and all(masks is used[0] for masks in used)


def test_prompt_is_cut_as_the_training_text():
    documentation = LanguageModelConfig()
    folder = LanguageModelConfig(data="somewhere")
    assert encode_prompt("The dog", VOCABULARY, folder).tolist() == [2, 3]
    assert encode_prompt("the dog-cat", VOCABULARY, documentation).tolist() == [2, 3, 1, 4]
    assert encode_prompt("the zebra", VOCABULARY, folder).tolist() == [2, 1]
    assert encode_prompt("", VOCABULARY, folder).dtype == torch.int64
    closed = Vocabulary([END, "the"])
    with pytest.raises(
        UserError, match="--prompt: expected words of the training text, got 'zebra'"
    ):
        encode_prompt("the zebra", closed, folder)


def test_run_folder_gives_its_best_epoch(tiny, corpus, tmp_path):
    """With any engine of this machine, whatever the run had named."""
    trainer = Trainer.start(LanguageModelTask(tiny(engine="reference"), corpus), tmp_path)
    trainer.run()
    for path in (tmp_path, tmp_path / "best.pt"):
        model, vocabulary, config = load_model(path)
        assert vocabulary.words == corpus.vocabulary.words
        assert config == dataclasses.replace(trainer.config, engine="auto")
        assert not model.training

"""Text from a trained language model."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ...cli import UserError
from ..training.checkpoint import load_checkpoint, read_config
from ..training.evaluating import evaluating, seeded_generator
from ..training.runs import RunFolder
from .model import LanguageModel, LanguageModelConfig, restore_model
from .text import Vocabulary, prose_words


def load_model(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[LanguageModel, Vocabulary, LanguageModelConfig]:
    """Model, vocabulary and configuration of a run folder (its best epoch) or of a checkpoint file.

    Raises:
        CheckpointError: no checkpoint there, or a damaged or foreign one.
    """
    file = RunFolder(path).best if path.is_dir() else path
    content = load_checkpoint(file, LanguageModelConfig.kind())
    # The run may have named an engine of its machine; sampling takes what this one has.
    config = replace(read_config(content, LanguageModelConfig), engine="auto")
    model, vocabulary, config = restore_model({**content, "config": asdict(config)})
    return model.to(device), vocabulary, config


def encode_prompt(prompt: str, vocabulary: Vocabulary, config: LanguageModelConfig) -> Tensor:
    """Tokens of `prompt`, cut into words as the text that the model was trained on: int64 [tokens].

    Raises:
        UserError: a word is not in the vocabulary, in lower case neither, and it has no `<unk>`.
    """
    words = prose_words(prompt) if config.data is None else prompt.split()
    known = [word if word in vocabulary else word.lower() for word in words]
    foreign = [word for word in known if word not in vocabulary]
    if foreign and vocabulary.unknown is None:
        raise UserError(
            f"argument --prompt: expected words of the training text, got '{foreign[0]}'"
        )
    return vocabulary.encode(known)


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    mc: bool = False,
    seed: int = 0,
) -> list[int]:
    """Prompt and `length` tokens drawn after it, one by one. `<unk>` is never drawn.

    Args:
        model: its mode is left as found.
        vocabulary: of the model.
        prompt: int64 [tokens], may be empty: text begins as after an `<eos>`.
        length: tokens to draw.
        temperature: divides the logits; lower is more likely text.
        top_k: draws among the k most likely words only.
        mc: one set of masks for the whole text, that is one sampled model; Bayesian dropout only.
        seed: of the words and the masks.
    """
    device = model.decoder.weight.device
    generator = seeded_generator("cpu", seed)
    with evaluating(model):
        masks = model.sample_masks(1, generator=seeded_generator(device, seed)) if mc else None
        read = torch.cat([torch.tensor([vocabulary.end]), prompt])
        tokens, state = prompt.tolist(), None
        for _ in range(length):
            logits, state = model(read.view(-1, 1).to(device), state, masks=masks)
            read = _draw(logits[-1, 0].cpu(), vocabulary, temperature, top_k, generator)
            tokens.append(read.item())
    return tokens


def _draw(
    logits: Tensor,
    vocabulary: Vocabulary,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> Tensor:
    """One token, int64 [1], from logits [V]."""
    logits = logits.double() / temperature
    if vocabulary.unknown is not None:
        logits[vocabulary.unknown] = -torch.inf
    if top_k is not None and top_k < len(logits):
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    return torch.multinomial(logits.softmax(dim=0), 1, generator=generator)

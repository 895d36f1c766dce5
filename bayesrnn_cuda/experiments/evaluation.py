"""Perplexity with the dropout approximation and with MC dropout (paper, eq. 5, sections 4.3 and
4.5).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .language_model import LanguageModel, ModelMasks
from .text import lanes, windows

LANES_PER_PASS = 100  # bounds the memory of the logits, [T, lanes, V]


def perplexity_of(nats: float) -> float:
    """exp of a mean negative log-likelihood; infinity where that overflows."""
    return math.exp(nats) if nats < 700 else math.inf


def ignore_steps(steps: int) -> None:
    """Stands for a caller that does not follow the progress."""


def perplexity(
    model: LanguageModel,
    tokens: Tensor,
    *,
    batch_size: int = 1,
    seq_len: int,
    state: str,
    on_steps: Callable[[int], None] = ignore_steps,
) -> float:
    """Perplexity of one stream by the dropout approximation: one pass without masks.

    The mean is over the predictions really made. (The authors' validation code counts 105 windows
    as 105.34, which makes their figure too low: 77.9 for 79.0.)

    Args:
        model: the model; its mode is left as found.
        tokens: int64 [tokens]; the first of each lane is not predicted.
        batch_size: lanes to cut the stream into, fewer if it is shorter than a window a lane.
        seq_len: steps of a window.
        state: "carry" or "zero", as in training.
        on_steps: called after every window with its number of steps; may raise to stop.
    """
    batch_size = max(1, min(batch_size, tokens.numel() // (seq_len + 1)))
    total, count = 0.0, 0
    with evaluating(model):
        for log_p in target_log_probabilities(
            model, lanes(tokens, batch_size), seq_len, state, None
        ):
            total -= log_p.double().sum().item()
            count += log_p.numel()
            on_steps(log_p.shape[0])
    return perplexity_of(total / count)


def mc_perplexity(
    model: LanguageModel,
    tokens: Tensor,
    *,
    samples: int,
    seq_len: int,
    state: str,
    seed: int,
    embedding_dropout: bool = False,
    lanes_per_pass: int = LANES_PER_PASS,
    on_steps: Callable[[int], None] = ignore_steps,
) -> float:
    """Perplexity of one stream with MC dropout: each word's probability is the average over
    `samples` sampled models.

    Every sample is one lane of the batch with one set of masks for the whole stream, and its own
    recurrent state.

    Args:
        model: a model with Bayesian dropout; its mode is left as found.
        tokens: int64 [tokens]; the first is not predicted.
        samples: S, sampled sets of masks.
        seq_len, state, on_steps: as for `perplexity`.
        seed: of the masks, drawn from a generator of their own.
        embedding_dropout: whether word types are dropped too (the authors leave them).
        lanes_per_pass: samples that run as one batch.
    """
    generator = seeded_generator(model.decoder.weight.device, seed)
    sums: Tensor | None = None  # log of the sum of the samples' probabilities, [tokens - 1]
    with evaluating(model):
        for start in range(0, samples, lanes_per_pass):
            batch = min(lanes_per_pass, samples - start)
            masks = model.sample_masks(batch, embedding=embedding_dropout, generator=generator)
            stream = lanes(tokens, 1).expand(-1, batch)
            parts = []
            for log_p in target_log_probabilities(model, stream, seq_len, state, masks):
                parts.append(log_p.double().logsumexp(dim=1))
                on_steps(log_p.shape[0])
            log_sum = torch.cat(parts)
            sums = log_sum if sums is None else torch.logaddexp(sums, log_sum)
    return perplexity_of(-(sums - math.log(samples)).mean().item())


def target_log_probabilities(
    model: LanguageModel, stream: Tensor, seq_len: int, state: str, masks: ModelMasks | None
) -> Iterator[Tensor]:
    """log p of every next word of `stream` [steps, B], window by window: [T, B]."""
    device = model.decoder.weight.device
    carried = None
    for tokens, targets in windows(stream, seq_len):
        logits, carried = model(
            tokens.to(device), carried if state == "carry" else None, masks=masks
        )
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.to(device).flatten(), reduction="none"
        )
        yield -loss.view(targets.shape)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`eval()` without gradients; leaves the mode as found."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def seeded_generator(device: torch.device | str, seed: int) -> torch.Generator:
    """A generator of its own: what is drawn from it leaves the global ones as they are."""
    return torch.Generator(device=device).manual_seed(seed)

"""Perplexity with the dropout approximation and with MC dropout, and predictive uncertainty (paper,
eq. 5, sections 4.3 and 4.5).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...moments import at_least_float32
from ..naive_dropout import State
from ..training.evaluating import evaluating, seeded_generator
from .model import LanguageModel, ModelMasks
from .text import lanes, windows

# Of one call, T * samples * V: 512 MiB of float32, and two more such tensors beside them.
MAX_LOGITS = 1 << 27


class ValidationPerplexity(NamedTuple):
    """Perplexity of one stream, counted in two ways."""

    corrected: float  # the mean over all predictions made
    authors: float  # as the authors' validation code counts, which is too low


class McResult(NamedTuple):
    """MC dropout over one stream; the last three are means over its words, in nats but the last."""

    perplexity: float  # of the averaged probabilities
    entropy: float  # of the averaged probabilities: the whole predictive uncertainty
    mutual_information: float  # entropy minus the samples' mean entropy: the model's share of it
    standard_deviation: float  # over the samples (1/S), of the probability of the word that came


def perplexity_of(nats: float) -> float:
    """exp of a mean negative log-likelihood; infinity where that overflows."""
    return math.exp(nats) if nats < 700 else math.inf


def ignore_steps(steps: int) -> None:
    """Stands for a caller that does not follow the progress."""


def perplexity(model: LanguageModel, tokens: Tensor, **settings) -> float:
    """The corrected one of `validation_perplexity`, whose arguments it takes."""
    return validation_perplexity(model, tokens, **settings).corrected


def validation_perplexity(
    model: LanguageModel,
    tokens: Tensor,
    *,
    batch_size: int = 1,
    seq_len: int,
    state: str,
    resets: Tensor | None = None,
    on_steps: Callable[[int], None] = ignore_steps,
) -> ValidationPerplexity:
    """Perplexity of one stream by the dropout approximation: one pass without masks.

    The authors' code adds up whole windows and divides by (steps - 1) / seq_len, which counts the
    shorter last window without its loss: 105 windows by 105.34 on the Penn Treebank, 77.9 for 79.0.
    A stream without a whole window has perplexity 1 there.

    Args:
        model: the model; its mode is left as found.
        tokens: int64 [tokens]; the first of each lane is not predicted.
        batch_size: lanes to cut the stream into, fewer if it is shorter than a window a lane.
        seq_len: steps of a window.
        state: "zero" starts each window from zero, else the state is carried, as in training.
        resets: bool [tokens], where it is zero in between; None: nowhere.
        on_steps: called after every window with its number of steps; may raise to stop.
    """
    device = model.decoder.weight.device
    batch_size = max(1, min(batch_size, tokens.numel() // (seq_len + 1)))
    # summed on the device: reading every window's loss would wait for it
    total, whole = torch.zeros(2, dtype=torch.float64, device=device)
    count, carried = 0, None
    with evaluating(model):
        for inputs, targets, begins in windows_of(tokens, resets, batch_size, seq_len, device):
            logits, carried = model(inputs, None if state == "zero" else carried, resets=begins)
            loss = nn.functional.cross_entropy(
                at_least_float32(logits).flatten(0, 1), targets.flatten(), reduction="none"
            )
            loss = loss.double().sum()
            total += loss
            whole += loss if inputs.shape[0] == seq_len else 0.0
            count += targets.numel()
            on_steps(inputs.shape[0])
    return ValidationPerplexity(
        perplexity_of(total.item() / count), perplexity_of(whole.item() / count)
    )


def mc_evaluate(
    model: LanguageModel,
    tokens: Tensor,
    *,
    samples: int,
    seq_len: int,
    state: str,
    seed: int,
    embedding_dropout: bool = False,
    masks_per: str = "pass",
    resets: Tensor | None = None,
    lanes_per_pass: int | None = None,
    on_steps: Callable[[int], None] = ignore_steps,
) -> McResult:
    """MC dropout on one stream: each word's probability is the average over `samples` sampled
    models.

    Every sample is one lane of the batch with masks and recurrent state of its own.

    Args:
        model: a model with Bayesian dropout; its mode is left as found.
        tokens: int64 [tokens]; the first is not predicted.
        samples: S >= 1, sampled sets of masks.
        seq_len, state, resets: as for `validation_perplexity`.
        seed: of the masks, drawn from a generator of their own.
        embedding_dropout: whether word types are dropped too (the authors leave them).
        masks_per: "pass" draws masks once for the stream (the authors' large model), "window" anew
            for each window (their small one, with state "zero").
        lanes_per_pass: samples that run as one batch; None: as many as keep the logits within
            MAX_LOGITS. Changes the result by rounding only.
        on_steps: called after every call of the model with its number of steps, times its samples;
            may raise to stop.
    """
    device = model.decoder.weight.device
    if lanes_per_pass is None:
        lanes_per_pass = _lanes_per_pass(samples, seq_len, model.decoder.out_features)
    generator = seeded_generator(device, seed)
    chunks = torch.arange(samples, device=device).split(lanes_per_pass)
    chunk_masks: list[ModelMasks] = []
    states: list[State | None] = [None] * len(chunks)
    totals, count = torch.zeros(4, dtype=torch.float64, device=device), 0
    with evaluating(model):
        for inputs, targets, begins in windows_of(tokens, resets, 1, seq_len, device):
            if not chunk_masks or masks_per == "window":
                # all samples at once, so that the chunks do not change what is drawn
                masks = model.sample_masks(
                    samples, embedding=embedding_dropout, generator=generator
                )
                chunk_masks = [_of_lanes(masks, chunk) for chunk in chunks]
            window = _WindowSamples(targets)
            for index, masks in enumerate(chunk_masks):
                size = chunks[index].numel()
                begins_of = None if begins is None else begins.expand(-1, size)
                logits, after = model(
                    inputs.expand(-1, size), states[index], masks=masks, resets=begins_of
                )
                states[index] = None if state == "zero" else after
                window.add(logits)
                on_steps(inputs.shape[0] * size)
            totals += window.sums()
            count += targets.shape[0]
    nats, entropy, information, deviation = (totals / count).tolist()
    # rounding can push a difference of equal numbers below its true bound of 0
    return McResult(perplexity_of(nats), entropy, max(0.0, information), deviation)


def windows_of(
    tokens: Tensor, resets: Tensor | None, batch_size: int, seq_len: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Inputs, targets and resets of each window, [T, B] each."""
    pairs = windows(lanes(tokens, batch_size).to(device), seq_len)
    if resets is None:
        yield from ((*pair, None) for pair in pairs)
        return
    begins = windows(lanes(resets, batch_size).to(device), seq_len)
    yield from ((*pair, of_inputs) for pair, (of_inputs, _) in zip(pairs, begins, strict=True))


class _WindowSamples:
    """What the samples of one window add up to, in chunks that arrive one by one.

    Args:
        targets: int64 [T, 1], the words that come.
    """

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self.log_p: list[Tensor] = []  # of the targets: float64 [T, samples of the chunk]
        self.p: Tensor | float = 0.0  # sum over samples: float64 [T, V]
        self.entropy: Tensor | float = 0.0  # sum over samples: float64 [T]

    def add(self, logits: Tensor) -> None:
        """Logits of some samples, [T, samples, V]; whole tensors stay in float32 or their dtype."""
        log_p = at_least_float32(logits).log_softmax(dim=-1)
        targets = self.targets.expand(log_p.shape[:2]).unsqueeze(-1)
        self.log_p.append(log_p.gather(-1, targets).squeeze(-1).double())
        p = log_p.exp()
        self.p = self.p + p.sum(dim=1).double()
        # log_p is finite, so that 0 * log 0 = 0; its place serves for the product
        self.entropy = self.entropy - log_p.mul_(p).sum(dim=-1).double().sum(dim=1)

    def sums(self) -> Tensor:
        """Sums over the window of negative log-likelihood, entropy, mutual information and standard
        deviation, as in McResult: float64 [4].
        """
        log_p = torch.cat(self.log_p, dim=1)
        samples = log_p.shape[1]
        nats = math.log(samples) - log_p.logsumexp(dim=1)
        entropy = torch.special.entr(self.p / samples).sum(dim=-1)
        information = entropy - self.entropy / samples
        deviation = log_p.exp().std(dim=1, correction=0)
        return torch.stack([nats, entropy, information, deviation]).sum(dim=1)


def _lanes_per_pass(samples: int, steps: int, vocabulary_size: int) -> int:
    """Samples of one call within MAX_LOGITS, in calls of about one size."""
    most = max(1, MAX_LOGITS // (steps * vocabulary_size))
    calls = -(-samples // most)
    return -(-samples // calls)


def _of_lanes(masks: ModelMasks, index: Tensor) -> ModelMasks:
    """The masks of the lanes in `index` (int64 [B'])."""
    return ModelMasks(
        embedding=None if masks.embedding is None else masks.embedding[index],
        recurrent=[layer.index_select(index) for layer in masks.recurrent],
        output=masks.output[index],
    )

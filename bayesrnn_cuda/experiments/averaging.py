"""Why MC dropout and the dropout approximation differ (section 4.3): one trained model, predicted
in several ways that each take one cause away.

The causes that the ways separate:

- **too few samples**: the error over S falls as S grows;
- **the kind of mean** (Melis et al. 2018, "Pushing the bounds of dropout"): the arithmetic mean of
  probabilities, eq. 5, beside their geometric mean, which the approximation resembles;
- **sharpness**: an average is flatter than what it averages; a temperature (a scale of the ratings)
  that is fitted on other data takes that away;
- **the size of the masks' noise**: the same model with part of its dropout probabilities;
- **a fault of the masks**: one sample alone, without an average, is what training minimised, so
  that its error must be that of training mode.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from ..cli import UserError
from .language.evaluation import perplexity_of, windows_of
from .language.model import LanguageModel, LanguageModelConfig
from .language.task import LanguageModelTask
from .language.text import Corpus
from .sentiment.evaluation import PIECES_PER_PASS, predict, root_mean_square
from .sentiment.model import SentimentConfig, SentimentModel
from .sentiment.reviews import Reviews
from .sentiment.task import SentimentTask
from .trained import load_trained
from .training.checkpoint import read_config
from .training.command_line import about
from .training.evaluating import seeded_generator
from .training.task import Task

APPROXIMATION = "dropout approximation"
ALONE = "one sample alone"
ARITHMETIC = "arithmetic mean"
GEOMETRIC = "geometric mean"

TEMPERATURES = torch.arange(10, 31) / 20  # 0.5 to 1.5
_ONE = 10  # index of temperature 1
_PROBABILITIES = ("embedding_dropout", "input_dropout", "recurrent_dropout", "output_dropout")


class Way(NamedTuple):
    """A way to predict, and what it comes to on the test data."""

    name: str
    samples: float  # S; 0 of the approximation, infinite of an extrapolation
    error: float  # perplexity or RMSE
    fitted: float  # temperature or scale, fitted on the validation text or the training pieces
    error_fitted: float  # with it


class Masks(NamedTuple):
    """What is dropped while predicting."""

    name: str
    part: float  # of the probabilities of training
    embedding: bool


MASKS = (
    Masks("as in training", 1.0, True),
    Masks("words not dropped", 1.0, False),
    Masks("half of p", 0.5, True),
    Masks("a quarter of p", 0.25, True),
)


def averaging(path: Path, samples: Sequence[int], items: int) -> Iterator[Way]:
    """The ways, one by one, of a run or a checkpoint; masks are drawn from the run's seed.

    Args:
        path: run folder (its best epoch; of sentiment its last, as the test of it) or checkpoint.
        samples: numbers of mask sets, rising.
        items: words of the validation and of the test text, or pieces of the training and of the
            test data, at most.

    Raises:
        UserError: no run there, or one without Bayesian dropout, or its data are not there.
    """
    task, content = load_trained(path, list(_WAYS))
    with about("RUN"):
        config = replace(read_config(content, task.config_class), engine="auto")
    if not config.samples_masks():
        raise UserError(f"argument RUN: expected Bayesian dropout in '{path}', got none")
    data = task.load_data(config)
    for masks in MASKS:
        dropout = {name: masks.part * getattr(config, name) for name in _PROBABILITIES}
        if not masks.embedding:
            dropout["embedding_dropout"] = 0.0
        predicting = replace(config, **dropout)
        with about("RUN"):
            model = task.restore(content, predicting, data).model.eval()
        sizes = samples if masks is MASKS[0] else samples[-1:]
        yield from _WAYS[task](model, predicting, data, masks, sizes, items)


def _language_ways(
    model: LanguageModel,
    config: LanguageModelConfig,
    corpus: Corpus,
    masks: Masks,
    samples: Sequence[int],
    words: int,
) -> Iterator[Way]:
    streams = []
    for split, text in (("valid", corpus.valid), ("test", corpus.test)):
        resets = corpus.resets(split, config.state)
        streams.append((text[: words + 1], None if resets is None else resets[: words + 1]))
    valid, test = [_nats(model, config, *stream, samples) for stream in streams]
    for (name, size), nats in test.items():
        best = valid[name, size].argmin()
        fitted = TEMPERATURES[best].item(), perplexity_of(nats[best].item())
        if name == ALONE:
            fitted = math.nan, math.nan
        if size:
            yield Way(f"{name}, {masks.name}", size, perplexity_of(nats[_ONE].item()), *fitted)
        elif masks is MASKS[0]:  # the approximation has no masks to vary
            yield Way(name, size, perplexity_of(nats[_ONE].item()), *fitted)


@torch.no_grad()
def _nats(
    model: LanguageModel,
    config: LanguageModelConfig,
    text: Tensor,
    resets: Tensor | None,
    samples: Sequence[int],
) -> dict[tuple[str, float], Tensor]:
    """Way and S -> mean negative log-likelihood of `text` by temperature, float64 [temperatures].

    Args:
        model: in `eval()`.
        config: how it carries its state, how long masks hold, and their seed.
        text: int64 [words + 1].
        resets: bool [words + 1], where the state is zero; None: nowhere.
        samples: numbers of mask sets, rising.
    """
    most, generator = samples[-1], seeded_generator("cpu", config.seed)
    totals: dict[tuple[str, float], Tensor] = {}
    approximate_state, state, masks = None, None, None
    for inputs, targets, begins in windows_of(text, resets, 1, config.seq_len, text.device):
        if masks is None or config.mc_masks == "window":
            masks = model.sample_masks(most, generator=generator)
        approximate, approximate_state = model(inputs, approximate_state, resets=begins)
        begins = None if begins is None else begins.expand(-1, most)
        sampled, state = model(inputs.expand(-1, most), state, masks=masks, resets=begins)
        if config.state == "zero":
            approximate_state = state = None
        log_p = sampled.float().log_softmax(dim=-1)  # [T, S, V]
        ways = {(APPROXIMATION, 0): approximate.squeeze(1).float()}
        for size in samples:
            part = log_p[:, :size]
            ways[ARITHMETIC, size] = part.logsumexp(dim=1)
            ways[GEOMETRIC, size] = part.mean(dim=1)
        sums = {way: _by_temperature(logits, targets) for way, logits in ways.items()}
        each = -log_p.gather(-1, targets.expand(-1, most).unsqueeze(-1)).double().mean(dim=1).sum()
        sums[ALONE, 1] = each.expand(len(TEMPERATURES))
        for way, nats in sums.items():
            totals[way] = totals.get(way, 0.0) + nats / (text.numel() - 1)
    return totals


def _by_temperature(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods of `targets` [T, 1] under `logits` [T, V] divided by each
    temperature: float64 [temperatures].
    """
    return torch.stack(
        [
            nn.functional.cross_entropy(logits / t, targets.flatten(), reduction="sum").double()
            for t in TEMPERATURES
        ]
    )


def _sentiment_ways(
    model: SentimentModel,
    config: SentimentConfig,
    data: Reviews,
    masks: Masks,
    samples: Sequence[int],
    pieces: int,
) -> Iterator[Way]:
    mean, deviation = data.mean, data.standard_deviation
    truth, draws, approximate = [], [], []
    for part in (data.train.first(pieces), data.test.first(pieces)):
        truth.append((part.ratings - mean) / deviation)
        draws.append(_draws(model, part.tokens, samples[-1], config.seed))
        approximate.append(predict(model, part.tokens, on_pieces=lambda _: None))

    def way(name: str, size: float, predicted: Sequence[Tensor]) -> Way:
        slope, offset = _line(predicted[0], truth[0])
        errors = [predicted[1] - truth[1], slope * predicted[1] + offset - truth[1]]
        plain, fitted = [deviation * root_mean_square(error) for error in errors]
        return Way(f"{name}, {masks.name}" if size else name, size, plain, slope, fitted)

    if masks is MASKS[0]:
        yield way(APPROXIMATION, 0, approximate)
    alone = deviation * root_mean_square(draws[1] - truth[1])
    yield Way(f"{ALONE}, {masks.name}", 1, alone, math.nan, math.nan)
    for size in samples:
        last = way(ARITHMETIC, size, [drawn[:size].mean(dim=0) for drawn in draws])
        yield last
    if size > 1:  # the mean of S samples has 1/S of their variance for an error of its own
        noise = deviation**2 * draws[1].var(dim=0).mean().item() / size
        limit = math.sqrt(max(0.0, last.error**2 - noise))
        yield Way(f"{ARITHMETIC}, {masks.name}", math.inf, limit, math.nan, math.nan)


def _draws(model: SentimentModel, tokens: Tensor, samples: int, seed: int) -> Tensor:
    """Standardized ratings of every mask set: float64 [S, pieces]."""
    parts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in tokens.split(PIECES_PER_PASS):
            drawn = brnn.mc_predict(
                model,
                part,
                samples=samples,
                keep_draws=True,
                batch_dim=0,
                output_batch_dim=0,
                chunk=4,
            ).draws
            parts.append(drawn.double())
    return torch.cat(parts, dim=1)


def _line(predicted: Tensor, truth: Tensor) -> tuple[float, float]:
    """Slope and offset of the least squares line from predicted to true, [pieces] each."""
    centred = predicted - predicted.mean()
    slope = (centred @ truth / centred.square().sum()).item()
    return slope, (truth.mean() - slope * predicted.mean()).item()


_WAYS: dict[type[Task], Callable[..., Iterator[Way]]] = {
    LanguageModelTask: _language_ways,
    SentimentTask: _sentiment_ways,
}


def table(ways: Iterable[Way]) -> Iterator[str]:
    """Lines of a Markdown table, each as soon as its way is known."""
    for number, way in enumerate(ways):
        if not number:
            yield "| way | S | error | fitted temperature or scale | error with it |"
            yield "|---|---|---|---|---|"
        fitted = "" if math.isnan(way.fitted) else f"{way.fitted:.2f}"
        with_it = "" if math.isnan(way.fitted) else f"{way.error_fitted:.5g}"
        size = way.samples if math.isinf(way.samples) else int(way.samples) or ""
        yield f"| {way.name} | {size} | {way.error:.5g} | {fitted} | {with_it} |"

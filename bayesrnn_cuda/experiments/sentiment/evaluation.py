"""Error and uncertainty of the sentiment regression, with the dropout approximation and with MC
dropout (paper, sections 4.1 and 4.3).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import bayesrnn_cuda as brnn

from ..training.evaluating import evaluating
from .model import SentimentModel

PIECES_PER_PASS = 200  # pieces times samples in one call of the model: bounds its memory
CALIBRATION_BINS = 10


class Prediction(NamedTuple):
    """Standardized ratings predicted by the average over mask sets, on the CPU."""

    mean: Tensor  # float64 [pieces]
    standard_deviation: Tensor  # float64 [pieces], over the mask sets: without the noise of ratings


def predict(model: SentimentModel, tokens: Tensor, *, on_pieces: Callable[[int], None]) -> Tensor:
    """Standardized ratings, float64 [pieces] on the CPU, by the dropout approximation.

    Args:
        model: its mode is left as found.
        tokens: int64 [pieces, T].
        on_pieces: called after every pass with the pieces that it took; may raise to stop.
    """
    device, parts = model.decoder.weight.device, []
    with evaluating(model):
        for part in tokens.split(PIECES_PER_PASS):
            parts.append(model(part.to(device)).double().cpu())
            on_pieces(len(part))
    return torch.cat(parts)


def mc_predict(
    model: SentimentModel,
    tokens: Tensor,
    *,
    samples: int,
    seed: int,
    on_pieces: Callable[[int], None],
) -> Prediction:
    """Mean and standard deviation of the outputs over `samples` mask sets, new ones each piece.

    Args:
        model, tokens: as for `predict`.
        samples: S, run as batch.
        seed: of the masks; torch's generators are left as found.
        on_pieces: as for `predict`; a piece counts once a sample.
    """
    device, means, deviations = model.decoder.weight.device, [], []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for part in tokens.split(max(1, PIECES_PER_PASS // samples)):
            prediction = brnn.mc_predict(
                model,
                part.to(device),
                samples=samples,
                batch_dim=0,
                output_batch_dim=0,
                chunk=min(samples, PIECES_PER_PASS),
            )
            means.append(prediction.mean.double().cpu())
            deviations.append(prediction.std.double().cpu())
            on_pieces(samples * len(part))
    return Prediction(torch.cat(means), torch.cat(deviations))


def root_mean_square(errors: Tensor) -> float:
    """Square root of the mean of squares of `errors`."""
    return errors.square().mean().sqrt().item()


def calibration(
    errors: Tensor, deviations: Tensor, bins: int = CALIBRATION_BINS
) -> list[dict[str, Any]]:
    """Pieces by rising predicted deviation in `bins` equal parts: is the error what was predicted?

    Args:
        errors: predicted minus true ratings, [pieces].
        deviations: their predicted standard deviations, [pieces], in the same unit.
        bins: number of parts, fewer if there are fewer pieces.

    Returns:
        One dict a bin: "predicted", the mean deviation; "rmse"; "pieces".
    """
    order = deviations.argsort(stable=True)
    return [
        {
            "predicted": deviations[part].mean().item(),
            "rmse": root_mean_square(errors[part]),
            "pieces": len(part),
        }
        for part in order.tensor_split(min(bins, len(order)))
    ]


def rank_correlation(a: Tensor, b: Tensor) -> float | None:
    """Spearman's correlation of a and b, [n] each; None where one of them is constant."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    ranks -= ranks.mean(dim=1, keepdim=True)
    norms = ranks.norm(dim=1)
    if not norms.all():
        return None
    return (ranks[0] @ ranks[1] / norms.prod()).item()


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, float64 [n]; equal values share the mean of their ranks."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(dim=0).double()
    return (last - (counts + 1) / 2)[group]

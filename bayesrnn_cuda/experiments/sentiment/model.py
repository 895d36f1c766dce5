"""The paper's sentiment regression (sections 4.1 to 4.4): configuration and model."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from ..naive_dropout import StepwiseDropoutRNN
from ..training.checkpoint import CheckpointError, read_config
from ..training.configuration import (
    COUNT,
    FRACTION,
    NATURAL,
    POSITIVE,
    PROBABILITY,
    TRAINING,
    Range,
    RunConfig,
    check_options,
    option,
)
from .reviews import RESERVED, SPLITS

_DATA, _MODEL, _DROPOUT, _EVALUATION = "data", "model", "dropout", "evaluation"
# What a vocabulary needs beside words, and one word.
_VOCABULARY = Range("a whole number from 5 to 2147483647", RESERVED + 2, 2**31 - 1)
_PIECES = Range("a whole number from 4 to 2147483647", 4, 2**31 - 1)


@dataclass(frozen=True)
class SentimentConfig(RunConfig):
    """Everything that determines a run. Probabilities are of dropping, named as in the paper.

    The defaults are those of the authors' sentiment_lstm_regression.py.
    """

    experiment: ClassVar = "sentiment"

    data: str | None = option(
        None,
        "folder with reviews.tsv, the Cornell scale data, or that file",
        group=_DATA,
        metavar="DIR",
        resumable=True,  # it may have moved; `Task.fingerprint` says whether it is the same
    )
    split: str = option(
        "authors",
        "authors: by piece, copies of a text may be on both sides; deduplicated: every text once, "
        "by review, with the vocabulary of the training reviews",
        group=_DATA,
        choices=SPLITS,
    )
    seq_len: int = option(200, "tokens of a piece of a review", group=_DATA, within=COUNT)
    vocabulary: int = option(
        20_000, "token numbers, for the N - 4 most frequent words", group=_DATA, within=_VOCABULARY
    )
    pieces: int | None = option(
        None,
        "train on the first N pieces and test on the first N / 4 (default: all)",
        group=_DATA,
        within=_PIECES,
    )

    cell: str = option("lstm", "recurrent cell", group=_MODEL, choices=("lstm", "gru"))
    embedding: int = option(128, "size of the word vectors", group=_MODEL, within=COUNT)
    hidden: int = option(128, "hidden units", group=_MODEL, within=COUNT)

    dropout_kind: str = option(
        "bayesian",
        "bayesian: masks held for the sequence; naive: new masks every step, not on recurrent "
        "connections; none",
        group=_DROPOUT,
        choices=("bayesian", "naive", "none"),
    )
    embedding_dropout: float = option(
        0.5, "p_E: of a word type; bayesian only", group=_DROPOUT, within=PROBABILITY
    )
    input_dropout: float = option(
        0.5, "p_W: of the layer's inputs", group=_DROPOUT, within=PROBABILITY
    )
    recurrent_dropout: float = option(
        0.5, "p_U: of the recurrent connections; bayesian only", group=_DROPOUT, within=PROBABILITY
    )
    output_dropout: float = option(
        0.5, "p_dense: of the last state", group=_DROPOUT, within=PROBABILITY
    )
    tie_gates: bool = option(False, "one mask for all gates", group=_DROPOUT)

    batch_size: int = option(128, "pieces of an update", group=TRAINING, within=COUNT)
    epochs: int = option(
        250, "passes over the training data", group=TRAINING, within=COUNT, resumable=True
    )
    lr: float = option(1e-3, "learning rate of Adam", group=TRAINING, within=POSITIVE)
    weight_decay: float = option(
        1e-6,
        "X times the sum of the squares of all parameters is added to the loss, the mean squared "
        "error of standardized ratings",
        group=TRAINING,
        within=FRACTION,
    )

    mc_samples: int = option(
        50,
        "mask sets of the final MC dropout test, 0: none",
        group=_EVALUATION,
        within=NATURAL,
        resumable=True,
    )
    mc_samples_epoch: int = option(
        10,
        "mask sets of the MC dropout test after each epoch, 0: none",
        group=_EVALUATION,
        within=NATURAL,
    )

    def __post_init__(self) -> None:
        check_options(self)

    def describe_dropout(self) -> str:
        """Kind and probabilities, in a few words."""
        w, dense = self.input_dropout, self.output_dropout
        if self.dropout_kind == "none":
            return "no dropout"
        if self.dropout_kind == "naive":
            return f"naive dropout W={w} dense={dense}"
        e, u = self.embedding_dropout, self.recurrent_dropout
        tied = " tied" if self.tie_gates else ""
        return f"Bayesian dropout E={e} W={w} U={u} dense={dense}{tied}"

    def samples_masks(self) -> bool:
        """Whether MC dropout makes predictions of its own: Bayesian dropout with some p above 0."""
        probabilities = (
            self.embedding_dropout,
            self.input_dropout,
            self.recurrent_dropout,
            self.output_dropout,
        )
        return self.dropout_kind == "bayesian" and any(probabilities)


class SentimentModel(nn.Module):
    """A piece of a review in, its standardized rating out: embedding, recurrent layer, dense
    output of the last state.

    The GRU's reset gate acts before the recurrent weights, as in the authors' code. The parameters
    start from `config.seed`, the same for all kinds of dropout.

    Args:
        config: sizes, dropout and engine.
    """

    def __init__(self, config: SentimentConfig) -> None:
        super().__init__()
        bayesian, naive = config.dropout_kind == "bayesian", config.dropout_kind == "naive"
        cell = brnn.BayesianLSTM
        if config.cell == "gru":
            cell = functools.partial(brnn.BayesianGRU, reset_after=False)
        self.embedding = brnn.BayesianEmbedding(
            config.vocabulary + RESERVED,  # as many as the authors; the last ones are never read
            config.embedding,
            dropout=config.embedding_dropout if bayesian else 0.0,
        )
        if naive:
            self.recurrent = StepwiseDropoutRNN(
                cell,
                config.embedding,
                config.hidden,
                1,
                dropout=config.input_dropout,
                engine=config.engine,
            )
        else:
            self.recurrent = cell(
                config.embedding,
                config.hidden,
                input_dropout=config.input_dropout if bayesian else 0.0,
                recurrent_dropout=config.recurrent_dropout if bayesian else 0.0,
                tie_gates=config.tie_gates,
                engine=config.engine,
            )
        # One state a sequence: a new mask each time is a mask per sequence.
        self.output_dropout = nn.Dropout(config.output_dropout if bayesian or naive else 0.0)
        self.decoder = nn.Linear(config.hidden, 1)
        self._initialize(torch.Generator().manual_seed(config.seed))

    def forward(self, tokens: Tensor) -> Tensor:
        """Standardized ratings [B] of the pieces `tokens`, int64 [B, T]."""
        output, _ = self.recurrent(self.embedding(tokens.t()))
        return self.decoder(self.output_dropout(output[-1])).squeeze(-1)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator) -> None:
        """As the authors' Keras: word vectors U(-0.05, 0.05), W Glorot-uniform and U orthogonal
        times 1.1 gate by gate, bias 1 of the LSTM's forget gate, the other biases 0."""
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05, generator=generator)
        naive = isinstance(self.recurrent, StepwiseDropoutRNN)
        layer = self.recurrent.layers[0] if naive else self.recurrent
        weights = layer.layer_weights("l0")
        for gate in weights.weight_ih.chunk(layer.cell.gates):
            nn.init.xavier_uniform_(gate, generator=generator)
        for gate in weights.weight_hh.chunk(layer.cell.gates):
            nn.init.orthogonal_(gate, gain=1.1, generator=generator)
        for bias in (weights.bias_ih, weights.bias_hh, self.decoder.bias):
            nn.init.zeros_(bias)
        if isinstance(layer, brnn.BayesianLSTM):
            nn.init.ones_(weights.bias_ih.chunk(layer.cell.gates)[1])  # gates i, f, g, o
        nn.init.xavier_uniform_(self.decoder.weight, generator=generator)


def model_content(
    model: SentimentModel,
    words: Sequence[str],
    mean: float,
    standard_deviation: float,
    config: SentimentConfig,
) -> dict[str, Any]:
    """What a checkpoint needs to restore the model and to rate new text with it."""
    return {
        "config": asdict(config),
        "words": list(words),
        "mean": mean,
        "standard_deviation": standard_deviation,
        "model": model.state_dict(),
    }


def restore_model(content: dict[str, Any]) -> tuple[SentimentModel, SentimentConfig]:
    """Model (in `eval()`, on the CPU) and configuration from `load_checkpoint`.

    Raises:
        CheckpointError: the content is incomplete or does not fit together.
    """
    try:
        config = read_config(content, SentimentConfig)
        model = SentimentModel(config)
        model.load_state_dict(content["model"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"expected a complete checkpoint of a sentiment model, got {reason}"
        ) from error
    return model.eval(), config

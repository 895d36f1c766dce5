"""The paper's sentiment regression (sections 4.1 to 4.4): configuration and model."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from ..naive_dropout import StepwiseDropoutRNN
from ..recurrent_model import RecurrentConfig, recurrent_layers
from ..training.checkpoint import expecting, read_config
from ..training.configuration import (
    COUNT,
    FRACTION,
    NATURAL,
    POSITIVE,
    PROBABILITY,
    TRAINING,
    Range,
    options,
)
from .reviews import RESERVED, SPLITS

_data, _model, _dropout = options("data"), options("model"), options("dropout")
_training, _evaluation = options(TRAINING), options("evaluation")
# What a vocabulary needs beside words, and one word.
_VOCABULARY = Range("a whole number from 5 to 2147483647", RESERVED + 2, 2**31 - 1)
_PIECES = Range("a whole number from 4 to 2147483647", 4, 2**31 - 1)


@dataclass(frozen=True)
class SentimentConfig(RecurrentConfig):
    """Everything that determines a run. The defaults are those of the authors'
    sentiment_lstm_regression.py.
    """

    experiment: ClassVar = "sentiment"
    letters: ClassVar = ("E", "W", "U", "dense")

    data: str | None = _data(
        None,
        "folder with reviews.tsv, the Cornell scale data, or that file",
        metavar="DIR",
        resumable=True,  # it may have moved; `Task.fingerprint` says whether it is the same
    )
    split: str = _data(
        "authors",
        "authors: by piece, copies of a text may be on both sides; deduplicated: every text once, "
        "by review, with the vocabulary of the training reviews",
        choices=SPLITS,
    )
    seq_len: int = _data(200, "tokens of a piece of a review", COUNT)
    vocabulary: int = _data(20_000, "token numbers, for the N - 4 most frequent words", _VOCABULARY)
    pieces: int | None = _data(
        None, "train on the first N pieces and test on the first N / 4 (default: all)", _PIECES
    )
    embedding: int = _model(128, "size of the word vectors", COUNT)
    hidden: int = _model(128, "hidden units", COUNT)
    embedding_dropout: float = _dropout(0.5, "p_E: of a word type; bayesian only", PROBABILITY)
    input_dropout: float = _dropout(0.5, "p_W: of the layer's inputs", PROBABILITY)
    recurrent_dropout: float = _dropout(
        0.5, "p_U: of the recurrent connections; bayesian only", PROBABILITY
    )
    output_dropout: float = _dropout(0.5, "p_dense: of the last state", PROBABILITY)
    batch_size: int = _training(128, "pieces of an update", COUNT)
    epochs: int = _training(250, "passes over the training data", COUNT, resumable=True)
    lr: float = _training(1e-3, "learning rate of Adam", POSITIVE)
    weight_decay: float = _training(
        1e-6,
        "X times the sum of the squares of all parameters is added to the loss, the mean squared "
        "error of standardized ratings",
        FRACTION,
    )
    mc_samples_epoch: int = _evaluation(
        10, "mask sets of the MC dropout test after each epoch, 0: none", NATURAL
    )


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
        cell = brnn.BayesianLSTM
        if config.cell == "gru":
            cell = functools.partial(brnn.BayesianGRU, reset_after=False)
        self.embedding = brnn.BayesianEmbedding(
            config.vocabulary + RESERVED,  # as many as the authors; the last ones are never read
            config.embedding,
            dropout=config.p("embedding_dropout"),
        )
        self.recurrent = recurrent_layers(cell, config)
        # One state a sequence: a new mask each time is a mask per sequence.
        self.output_dropout = nn.Dropout(config.p("output_dropout"))
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
    with expecting("a complete checkpoint of a sentiment model"):
        config = read_config(content, SentimentConfig)
        model = SentimentModel(config)
        model.load_state_dict(content["model"])
    return model.eval(), config

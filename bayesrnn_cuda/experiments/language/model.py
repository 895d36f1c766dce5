"""The paper's word-level language model (section 4.5 and appendix) and its configuration."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from ..naive_dropout import State, StepwiseDropoutRNN
from ..training.checkpoint import CheckpointError, read_config
from ..training.configuration import (
    AT_LEAST_ONE,
    COUNT,
    FRACTION,
    NATURAL,
    POSITIVE,
    PROBABILITY,
    TRAINING,
    RunConfig,
    check_options,
    option,
)
from .text import Vocabulary

_LEARNING_RATES = {"sgd": 1.0, "adam": 0.01}
_TEXT, _MODEL, _DROPOUT, _EVALUATION = "text", "model", "dropout", "evaluation"


@dataclass(frozen=True)
class LanguageModelConfig(RunConfig):
    """Everything that determines a run. Probabilities are of dropping, named as in the paper."""

    experiment: ClassVar = "language_model"

    data: str | None = option(
        None,
        "folder with train, valid and test .txt files, one sentence a line (default: CPython's "
        "documentation)",
        group=_TEXT,
        metavar="DIR",
        resumable=True,  # it may have moved; `Task.fingerprint` says whether it is the same
    )
    min_count: int | None = option(
        None,
        "rarer training words become <unk> (default: 1 with --data, 3 for the documentation)",
        group=_TEXT,
        within=COUNT,
    )

    cell: str = option("lstm", "recurrent cell", group=_MODEL, choices=("lstm", "gru"))
    embedding: int = option(200, "size of the word vectors", group=_MODEL, within=COUNT)
    hidden: int = option(200, "hidden units a layer", group=_MODEL, within=COUNT)
    layers: int = option(1, "recurrent layers", group=_MODEL, within=COUNT)
    init_range: float = option(
        0.1, "parameters start uniform in [-X, X]", group=_MODEL, within=POSITIVE
    )

    dropout_kind: str = option(
        "bayesian",
        "bayesian: masks held for the sequence; naive: new masks every step, not on recurrent "
        "connections; none",
        group=_DROPOUT,
        choices=("bayesian", "naive", "none"),
    )
    embedding_dropout: float = option(
        0.25, "p_x: of a word type; bayesian only", group=_DROPOUT, within=PROBABILITY
    )
    input_dropout: float = option(
        0.25, "p_i: of each layer's inputs", group=_DROPOUT, within=PROBABILITY
    )
    recurrent_dropout: float = option(
        0.25, "p_h: of the recurrent connections; bayesian only", group=_DROPOUT, within=PROBABILITY
    )
    output_dropout: float = option(
        0.25, "p_o: of the inputs of the decoder", group=_DROPOUT, within=PROBABILITY
    )
    tie_gates: bool = option(False, "one mask for all gates of a layer", group=_DROPOUT)

    state: str = option(
        "carry",
        "carry the recurrent state from window to window, or start each window from zero; in "
        "training, validation and test",
        group=TRAINING,
        choices=("carry", "zero"),
    )
    seq_len: int = option(
        35, "steps of a window: back-propagation is truncated there", group=TRAINING, within=COUNT
    )
    batch_size: int = option(20, "lanes of text read side by side", group=TRAINING, within=COUNT)
    optimizer: str = option(
        "adam",
        "the loss is the mean over lanes of the sum over a window's steps, so sgd's --lr and both "
        "optimizers' --clip belong to one --seq-len",
        group=TRAINING,
        choices=("sgd", "adam"),
    )
    lr: float | None = option(
        None,
        "learning rate (default: 1 with sgd, as the authors, 0.01 with adam)",
        group=TRAINING,
        within=POSITIVE,
    )
    lr_decay: float = option(
        1.0,
        "after the constant epochs, divide the learning rate by X each epoch",
        group=TRAINING,
        within=AT_LEAST_ONE,
    )
    lr_constant_epochs: int = option(
        10,
        "epochs before the first division (the authors' max_epoch + 1)",
        group=TRAINING,
        within=NATURAL,
    )
    clip: float = option(5.0, "largest norm of the whole gradient", group=TRAINING, within=POSITIVE)
    weight_decay: float = option(
        0.0,
        "every update shrinks all parameters by 1 - X with sgd (as the authors), by 1 - lr * X "
        "with adam",
        group=TRAINING,
        within=FRACTION,
    )

    mc_samples: int = option(
        50,
        "mask sets of the MC dropout test, 0: none",
        group=_EVALUATION,
        within=NATURAL,
        resumable=True,
    )
    mc_masks: str = option(
        "pass",
        "masks of the MC dropout test hold for the whole pass (the authors' large model) or for a "
        "window (their small one)",
        group=_EVALUATION,
        choices=("pass", "window"),
        resumable=True,
    )
    mc_embedding_dropout: bool = option(
        False,
        "drop word types in the MC dropout test too (the authors do not)",
        group=_EVALUATION,
        resumable=True,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.lr is None:
            object.__setattr__(self, "lr", _LEARNING_RATES[self.optimizer])

    def describe_dropout(self) -> str:
        """Kind and probabilities, in a few words."""
        i, o = self.input_dropout, self.output_dropout
        if self.dropout_kind == "none":
            return "no dropout"
        if self.dropout_kind == "naive":
            return f"naive dropout i={i} o={o}"
        x, h = self.embedding_dropout, self.recurrent_dropout
        tied = " tied" if self.tie_gates else ""
        return f"Bayesian dropout x={x} i={i} h={h} o={o}{tied}"

    def samples_masks(self) -> bool:
        """Whether MC dropout makes predictions of its own: Bayesian dropout with some p above 0."""
        probabilities = (
            self.embedding_dropout,
            self.input_dropout,
            self.recurrent_dropout,
            self.output_dropout,
        )
        return self.dropout_kind == "bayesian" and any(probabilities)


class ModelMasks(NamedTuple):
    """Masks of the whole model, to hold over many windows; None leaves a part to its own rule."""

    embedding: Tensor | None  # bool [B, V]
    recurrent: list[brnn.LayerMasks] | None
    output: Tensor | None  # bool [B, H]


class LanguageModel(nn.Module):
    """Words in, logits of the next word out: embedding, recurrent layers, decoder.

    The parameters start uniform in [-init_range, init_range] from `config.seed`: the same for all
    kinds of dropout.

    Args:
        vocabulary_size: V.
        config: sizes, dropout and engine.
    """

    def __init__(self, vocabulary_size: int, config: LanguageModelConfig) -> None:
        super().__init__()
        bayesian, naive = config.dropout_kind == "bayesian", config.dropout_kind == "naive"
        cell = brnn.BayesianLSTM if config.cell == "lstm" else brnn.BayesianGRU
        self.embedding = brnn.BayesianEmbedding(
            vocabulary_size, config.embedding, dropout=config.embedding_dropout if bayesian else 0.0
        )
        sizes = (config.embedding, config.hidden, config.layers)
        if naive:
            self.recurrent = StepwiseDropoutRNN(
                cell, *sizes, dropout=config.input_dropout, engine=config.engine
            )
            self.output_dropout = nn.Dropout(config.output_dropout)
        else:
            self.recurrent = cell(
                *sizes,
                input_dropout=config.input_dropout if bayesian else 0.0,
                recurrent_dropout=config.recurrent_dropout if bayesian else 0.0,
                tie_gates=config.tie_gates,
                engine=config.engine,
            )
            self.output_dropout = brnn.LockedDropout(config.output_dropout if bayesian else 0.0)
        self.decoder = nn.Linear(config.hidden, vocabulary_size)
        self.bayesian = bayesian
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-config.init_range, config.init_range, generator=generator)

    def forward(
        self, tokens: Tensor, state: State | None = None, *, masks: ModelMasks | None = None
    ) -> tuple[Tensor, State]:
        """Logits [T, B, V] of the word after each of `tokens` [T, B], and the state after the last.

        Args:
            tokens: int64 [T, B].
            state: where to go on from; None starts from zero.
            masks: from `sample_masks`; None draws new ones in training and none in `eval()`.
        """
        if masks is None:
            output, state = self.recurrent(self.embedding(tokens), state)
            return self.decoder(self.output_dropout(output)), state
        output, state = self.recurrent(
            self.embedding(tokens, keep=masks.embedding), state, masks=masks.recurrent
        )
        return self.decoder(self.output_dropout(output, keep=masks.output)), state

    def sample_masks(
        self,
        batch_size: int,
        *,
        embedding: bool = True,
        generator: torch.Generator | None = None,
    ) -> ModelMasks:
        """One set of masks per lane; a model with Bayesian dropout only.

        Args:
            batch_size: lanes.
            embedding: whether word types are dropped too.
            generator: on the model's device; None takes torch's global one.
        """
        if not self.bayesian:
            raise ValueError("dropout_kind: expected bayesian to hold masks, got another kind")
        weight, drawn = self.decoder.weight, {"generator": generator}
        return ModelMasks(
            embedding=self.embedding.sample_mask(batch_size, **drawn) if embedding else None,
            recurrent=self.recurrent.sample_masks(batch_size, **drawn),
            output=self.output_dropout.sample_mask(
                batch_size, weight.shape[1], device=weight.device, **drawn
            ),
        )


def model_content(
    model: LanguageModel, vocabulary: Vocabulary, config: LanguageModelConfig
) -> dict[str, Any]:
    """What a checkpoint needs to restore the model."""
    return {"config": asdict(config), "vocabulary": vocabulary.words, "model": model.state_dict()}


def restore_model(content: dict[str, Any]) -> tuple[LanguageModel, Vocabulary, LanguageModelConfig]:
    """Model (in `eval()`, on the CPU), vocabulary and configuration from `load_checkpoint`.

    Raises:
        CheckpointError: the content is incomplete or does not fit together.
    """
    try:
        config = read_config(content, LanguageModelConfig)
        vocabulary = Vocabulary(content["vocabulary"])
        model = LanguageModel(len(vocabulary), config)
        model.load_state_dict(content["model"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"expected a complete checkpoint of a language model, got {_line(error)}"
        ) from error
    return model.eval(), vocabulary, config


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]

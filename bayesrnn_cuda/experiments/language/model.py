"""The paper's word-level language model (section 4.5 and appendix) and its configuration."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from ..naive_dropout import State
from ..recurrent_model import RecurrentConfig, recurrent_layers
from ..training.checkpoint import expecting, read_config
from ..training.configuration import (
    AT_LEAST_ONE,
    COUNT,
    FRACTION,
    NATURAL,
    POSITIVE,
    TRAINING,
    options,
)
from .text import Vocabulary

_LEARNING_RATES = {"sgd": 1.0, "adam": 0.01}
_text, _model, _training = options("text"), options("model"), options(TRAINING)
_evaluation = options("evaluation")


@dataclass(frozen=True)
class LanguageModelConfig(RecurrentConfig):
    """Everything that determines a run."""

    experiment: ClassVar = "language_model"

    data: str | None = _text(
        None,
        "folder with train, valid and test .txt files, one sentence a line (default: CPython's "
        "documentation)",
        metavar="DIR",
        resumable=True,  # it may have moved; `Task.fingerprint` says whether it is the same
    )
    min_count: int | None = _text(
        None,
        "rarer training words become <unk> (default: 1 with --data, 3 for the documentation)",
        COUNT,
    )
    layers: int = _model(1, "recurrent layers", COUNT)
    init_range: float = _model(0.1, "parameters start uniform in [-X, X]", POSITIVE)
    state: str = _training(
        "carry",
        "carry the recurrent state from window to window, carry it within documents and start each "
        "from zero (topics of the documentation; in a folder a blank line ends a document), or "
        "start each window from zero; in training, validation and test",
        choices=("carry", "documents", "zero"),
    )
    seq_len: int = _training(35, "steps of a window: back-propagation is truncated there", COUNT)
    batch_size: int = _training(20, "lanes of text read side by side", COUNT)
    optimizer: str = _training(
        "adam",
        "the loss is the mean over lanes of the sum over a window's steps, so sgd's --lr and both "
        "optimizers' --clip belong to one --seq-len",
        choices=("sgd", "adam"),
    )
    lr: float | None = _training(
        None, "learning rate (default: 1 with sgd, as the authors, 0.01 with adam)", POSITIVE
    )
    lr_decay: float = _training(
        1.0, "after the constant epochs, divide the learning rate by X each epoch", AT_LEAST_ONE
    )
    lr_constant_epochs: int = _training(
        10, "epochs before the first division (the authors' max_epoch + 1)", NATURAL
    )
    clip: float = _training(5.0, "largest norm of the whole gradient", POSITIVE)
    weight_decay: float = _training(
        0.0,
        "every update shrinks all parameters by 1 - X with sgd (as the authors), by 1 - lr * X "
        "with adam",
        FRACTION,
    )
    mc_masks: str = _evaluation(
        "pass",
        "masks of the MC dropout test hold for the whole pass (the authors' large model) or for a "
        "window (their small one)",
        choices=("pass", "window"),
        resumable=True,
    )
    mc_embedding_dropout: bool = _evaluation(
        False, "drop word types in the MC dropout test too (the authors do not)", resumable=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr is None:
            object.__setattr__(self, "lr", _LEARNING_RATES[self.optimizer])

    def describe_layers(self) -> str:
        return f"{self.layers} x {super().describe_layers()}"


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
        cell = brnn.BayesianLSTM if config.cell == "lstm" else brnn.BayesianGRU
        self.bayesian = config.dropout_kind == "bayesian"
        self.embedding = brnn.BayesianEmbedding(
            vocabulary_size, config.embedding, dropout=config.p("embedding_dropout")
        )
        self.recurrent = recurrent_layers(cell, config, config.layers)
        output = nn.Dropout if config.dropout_kind == "naive" else brnn.LockedDropout
        self.output_dropout = output(config.p("output_dropout"))
        self.decoder = nn.Linear(config.hidden, vocabulary_size)
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-config.init_range, config.init_range, generator=generator)

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        masks: ModelMasks | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Logits [T, B, V] of the word after each of `tokens` [T, B], and the state after the last.

        Args:
            tokens: int64 [T, B].
            state: where to go on from; None starts from zero.
            masks: from `sample_masks`; None draws new ones in training and none in `eval()`.
            resets: bool [T, B], where the state is zero instead; None: nowhere.
        """
        if masks is None:
            output, state = self.recurrent(self.embedding(tokens), state, resets=resets)
            return self.decoder(self.output_dropout(output)), state
        output, state = self.recurrent(
            self.embedding(tokens, keep=masks.embedding),
            state,
            masks=masks.recurrent,
            resets=resets,
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
    with expecting("a complete checkpoint of a language model"):
        config = read_config(content, LanguageModelConfig)
        vocabulary = Vocabulary(content["vocabulary"])
        model = LanguageModel(len(vocabulary), config)
        model.load_state_dict(content["model"])
    return model.eval(), vocabulary, config

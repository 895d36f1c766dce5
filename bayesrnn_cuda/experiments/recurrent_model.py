"""What the models of both experiments share: options of cell and dropout, and the recurrent layers
with each kind of dropout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .naive_dropout import StepwiseDropoutRNN
from .training.configuration import COUNT, NATURAL, PROBABILITY, RunConfig, options

_model, _dropout, _evaluation = options("model"), options("dropout"), options("evaluation")
_FIELDS = ("embedding_dropout", "input_dropout", "recurrent_dropout", "output_dropout")
_USED = {"bayesian": _FIELDS, "naive": ("input_dropout", "output_dropout"), "none": ()}


@dataclass(frozen=True)
class RecurrentConfig(RunConfig):
    """A run of a model with one of the three kinds of dropout. Probabilities are of dropping.

    Attributes:
        letters: the experiment's names of the four probabilities, in their order here.
    """

    letters: ClassVar[tuple[str, ...]] = ("x", "i", "h", "o")

    cell: str = _model("lstm", "recurrent cell", choices=("lstm", "gru"))
    embedding: int = _model(200, "size of the word vectors", COUNT)
    hidden: int = _model(200, "hidden units a layer", COUNT)
    dropout_kind: str = _dropout(
        "bayesian",
        "bayesian: masks held for the sequence; naive: new masks every step, not on recurrent "
        "connections; none",
        choices=tuple(_USED),
    )
    embedding_dropout: float = _dropout(0.25, "p_x: of a word type; bayesian only", PROBABILITY)
    input_dropout: float = _dropout(0.25, "p_i: of each layer's inputs", PROBABILITY)
    recurrent_dropout: float = _dropout(
        0.25, "p_h: of the recurrent connections; bayesian only", PROBABILITY
    )
    output_dropout: float = _dropout(0.25, "p_o: of the inputs of the decoder", PROBABILITY)
    tie_gates: bool = _dropout(False, "one mask for all gates of a layer")
    mc_samples: int = _evaluation(
        50, "mask sets of the final MC dropout test, 0: none", NATURAL, resumable=True
    )

    def p(self, field: str) -> float:
        """The probability of that field; 0 where this kind of dropout has none there."""
        return getattr(self, field) if field in _USED[self.dropout_kind] else 0.0

    def describe_layers(self) -> str:
        """Sizes and cell, in a few words."""
        return f"{self.hidden} {self.cell}"

    def describe_dropout(self) -> str:
        """Kind and probabilities, in a few words."""
        kind = {"bayesian": "Bayesian", "naive": "naive", "none": "no"}[self.dropout_kind]
        words = [f"{kind} dropout"]
        for field, letter in zip(_FIELDS, self.letters, strict=True):
            if field in _USED[self.dropout_kind]:
                words.append(f"{letter}={getattr(self, field)}")
        if self.tie_gates and self.dropout_kind == "bayesian":
            words.append("tied")
        return " ".join(words)

    def samples_masks(self) -> bool:
        """Whether MC dropout makes predictions of its own: Bayesian dropout with some p above 0."""
        return self.dropout_kind == "bayesian" and any(map(self.p, _FIELDS))


def recurrent_layers(
    cell: Callable[..., nn.Module], config: RecurrentConfig, layers: int = 1
) -> nn.Module:
    """Layers of `cell` with the kind of dropout that `config` names."""
    sizes = (config.embedding, config.hidden, layers)
    if config.dropout_kind == "naive":
        return StepwiseDropoutRNN(cell, *sizes, dropout=config.input_dropout, engine=config.engine)
    p = {field: config.p(field) for field in ("input_dropout", "recurrent_dropout")}
    return cell(*sizes, **p, tie_gates=config.tie_gates, engine=config.engine)

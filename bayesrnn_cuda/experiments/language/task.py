"""The language model as a task for the Trainer: truncated back-propagation over lanes of text,
perplexities.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...cli import UserError
from ..naive_dropout import State, detached, map_state
from ..training.distributed import ALONE, Workers
from ..training.task import Check, Task
from .evaluation import mc_evaluate, perplexity, perplexity_of, validation_perplexity
from .model import LanguageModel, LanguageModelConfig, model_content, restore_model
from .text import Corpus, lanes, load_corpus


class LanguageModelTask(Task):
    """A language model and its text. Several processes share the lanes, that is the batch.

    Args:
        config: model, text and training.
        corpus: the text that `config` names.
        workers: the processes that train together.
        model: None makes a new one.

    Raises:
        UserError: the device or the engine is not there, the text is too short for one window, or
            the lanes cannot be shared.
    """

    config_class = LanguageModelConfig
    restore_model = staticmethod(restore_model)
    unit = "tokens"
    metric = "valid_perplexity"
    tests_best = True
    axis = "perplexity"
    curves: ClassVar = {
        "valid_perplexity": "validation",
        "train_perplexity": "training, with its dropout",
    }

    def __init__(
        self,
        config: LanguageModelConfig,
        corpus: Corpus,
        workers: Workers = ALONE,
        *,
        model: LanguageModel | None = None,
    ) -> None:
        self.config, self.data, self.workers = config, corpus, workers
        workers.check_divides(config.batch_size)
        device = workers.device(config)
        self.clip = config.clip
        all_lanes = lanes(corpus.train, config.batch_size)
        self.updates = max(0, all_lanes.shape[0] - 1) // config.seq_len
        self.items = config.seq_len * config.batch_size
        if self.updates == 0:
            raise UserError(
                f"arguments --batch-size, --seq-len: expected at least {config.batch_size} x "
                f"({config.seq_len} + 1) training tokens, got {corpus.train.numel()}"
            )
        own = workers.share(config.batch_size)
        self.lanes = all_lanes[:, own].contiguous().to(device)
        begins = corpus.resets("train", config.state)
        self.begins = (
            None if begins is None else lanes(begins, config.batch_size)[:, own].to(device)
        )
        self.model = (model or LanguageModel(len(corpus.vocabulary), config)).to(device)
        self.carried: State | None = None
        self.check_engine(lambda: self.model(self.lanes[:1]))

    @classmethod
    def load_data(cls, config: LanguageModelConfig) -> Corpus:
        return load_corpus(config.data, config.min_count)

    def content(self) -> dict[str, Any]:
        return model_content(self.model, self.data.vocabulary, self.config)

    def optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.config)

    def learning_rate(self, epoch: int) -> float:
        return learning_rate(self.config, epoch)

    def start_epoch(self, epoch: int) -> None:
        self.carried = None

    def loss(self, model: nn.Module, update: int) -> Tensor:
        start, stop = update * self.config.seq_len, (update + 1) * self.config.seq_len
        begins = None if self.begins is None else self.begins[start:stop]
        logits, state = model(self.lanes[start:stop], self.carried, resets=begins)
        self.carried = None if self.config.state == "zero" else detached(state)
        return window_loss(logits, self.lanes[start + 1 : stop + 1])

    def after_update(self) -> None:
        if self.config.optimizer == "sgd" and self.config.weight_decay:
            decay_parameters(self.model.parameters(), self.config.weight_decay)

    def state(self) -> dict[str, Any]:
        return {"carried": _on_device(self.carried, "cpu")}

    def load_state(self, state: dict[str, Any]) -> None:
        self.carried = _on_device(state["carried"], self.device)

    def training_record(self, loss: float) -> dict[str, float]:
        nats = loss / self.config.seq_len
        return {"train_loss": nats, "train_perplexity": perplexity_of(nats)}

    def evaluate(self, check: Check) -> dict[str, float]:
        config = self.config
        corrected, authors = validation_perplexity(
            self.model,
            self.data.valid,
            batch_size=config.batch_size,
            seq_len=config.seq_len,
            state=config.state,
            resets=self.data.resets("valid", config.state),
            on_steps=lambda _: check(),
        )
        return {"valid_perplexity": corrected, "valid_perplexity_authors": authors}

    def test(self, check: Check) -> dict[str, Any]:
        config, tokens = self.config, self.data.test
        samples = config.mc_samples if config.samples_masks() else 0
        with self.test_progress((1 + samples) * (tokens.numel() - 1), check) as advance:
            settings = {
                "seq_len": config.seq_len, "state": config.state, "on_steps": advance,
                "resets": self.data.resets("test", config.state),
            }  # fmt: skip
            figures = {
                "test_perplexity": perplexity(self.model, tokens, **settings),
                "test_perplexity_mc": None,
                "mc_samples": samples,
            }
            if samples:
                figures["test_perplexity_mc"], *uncertainty = mc_evaluate(
                    self.model,
                    tokens,
                    samples=samples,
                    seed=config.seed,
                    masks_per=config.mc_masks,
                    embedding_dropout=config.mc_embedding_dropout,
                    **settings,
                )
                names = ("entropy", "mutual_information", "standard_deviation")
                figures |= {f"mean_{n}": x for n, x in zip(names, uncertainty, strict=True)}
        return figures


def _on_device(state: State | None, device: torch.device | str) -> State | None:
    return None if state is None else map_state(lambda part: part.to(device), state)


def window_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats: summed over a window's steps, averaged over its lanes.

    This is the authors' objective; their learning rate and gradient clipping belong to it.

    Args:
        logits: [T, B, V].
        targets: int64 [T, B].
    """
    logits = logits.flatten(0, 1).float()  # not a sum in the model's bfloat16
    total = nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
    return total / targets.shape[1]


def learning_rate(config: LanguageModelConfig, epoch: int) -> float:
    """Learning rate of `epoch`, counted from 1: constant, then divided by `lr_decay` every epoch.

    The authors' code divides first after epoch `max_epoch + 1`: their 10 is 11 constant epochs.
    """
    return config.lr * config.lr_decay ** -max(0, epoch - config.lr_constant_epochs)


def make_optimizer(model: nn.Module, config: LanguageModelConfig) -> torch.optim.Optimizer:
    """SGD, to be followed by `decay_parameters`, or Adam with decoupled weight decay (AdamW)."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.lr)
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    return torch.optim.AdamW(model.parameters(), **settings, fused=True)


@torch.no_grad()
def decay_parameters(parameters: Iterable[Tensor], weight_decay: float) -> None:
    """Multiplies every parameter by 1 - weight_decay, whatever the rate (authors' code)."""
    for parameter in parameters:
        parameter.mul_(1.0 - weight_decay)

"""What an experiment brings to the Trainer: data, model, loss and evaluation."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...cli import UserError
from .configuration import RunConfig
from .distributed import ALONE, Workers

Check = Callable[[], None]  # raises to stop at a clean point: a signal, or no time left


class Task(abc.ABC):
    """One experiment with its data loaded and its model made.

    Every process of a data-parallel run has its own: the same model, its share of every batch.

    Attributes:
        config_class: class of `config`.
        unit: what throughput counts, such as "tokens".
        metric: key of the record that chooses the best epoch; lower is better.
        tests_best: whether `test` is of the best epoch; if not, of the last.
        axis: quantity of the learning curves, with its unit if it has one.
        curves: key of the record -> legend of its curve; those of training are dashed.
        config: everything that determines the run.
        workers: which share of a batch is this process's.
        model: on its device.
        updates: number of updates an epoch, at least 1.
        items: `unit`s that one update reads, over all processes.
        clip: largest norm of the whole gradient; None: any.
    """

    config_class: type[RunConfig]
    unit: str
    metric: str
    tests_best: bool
    axis: str
    curves: ClassVar[Mapping[str, str]]
    config: RunConfig
    workers: Workers
    model: nn.Module
    updates: int
    items: int
    clip: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @classmethod
    @abc.abstractmethod
    def load_data(cls, config: RunConfig) -> Any:
        """The data that `config` names. Raises UserError if they are missing or malformed."""

    @classmethod
    def load(cls, config: RunConfig, workers: Workers = ALONE) -> "Task":
        """The task with a new model and the data that `config` names."""
        return cls(config, cls.load_data(config), workers)

    @classmethod
    @abc.abstractmethod
    def restore(
        cls, content: dict[str, Any], config: RunConfig, data: Any, workers: Workers = ALONE
    ) -> "Task":
        """The task with the model of a checkpoint, under `config`. Raises CheckpointError."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Data in one line; model, dropout and device in another."""

    @abc.abstractmethod
    def fingerprint(self) -> int:
        """Checksum of the data: a run is resumed on the data it began with."""

    @abc.abstractmethod
    def content(self) -> dict[str, Any]:
        """What a checkpoint needs to restore the model, without the state of training: "config",
        the fields of `config`; "model", its state_dict; and what else it takes."""

    @abc.abstractmethod
    def start_epoch(self, epoch: int) -> None:
        """Called before the first update of `epoch`, counted from 1; and where a run is resumed
        within `epoch`, before `load_state`."""

    @abc.abstractmethod
    def loss(self, model: nn.Module, update: int) -> Tensor:
        """Loss of this process's share of the batch, scalar; averaged over processes it is that of
        the whole batch.

        Args:
            model: `self.model`, or its data-parallel wrapper: call this one.
            update: of the epoch, counted from 0; called in order.
        """

    @abc.abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer of the model's parameters; the Trainer sets its learning rate."""

    @abc.abstractmethod
    def learning_rate(self, epoch: int) -> float:
        """Learning rate of `epoch`, counted from 1."""

    def after_update(self) -> None:  # noqa: B027 (most tasks have nothing to do)
        """Called after every update of the parameters (the authors' weight decay goes here)."""

    def state(self) -> dict[str, Any]:
        """What this process carries from update to update beside parameters, on the CPU."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027 (likewise)
        """Puts back what `state` gave."""

    @abc.abstractmethod
    def training_record(self, loss: float) -> dict[str, float]:
        """What the mean `loss` of updates is reported as, such as a perplexity."""

    @abc.abstractmethod
    def evaluate(self, check: Check) -> dict[str, float]:
        """Figures after an epoch, `metric` among them. Uses no random number of the global
        generators. Called in the main process alone, as is `test`.
        """

    @abc.abstractmethod
    def test(self, check: Check) -> dict[str, Any]:
        """Figures of the finished run, from `self.model` as it is: plain values for the last line
        of metrics.jsonl."""

    def autocast(self) -> torch.autocast:
        """The precision of the training loss."""
        on = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)

    def check_engine(self, run: Callable[[], Any]) -> None:
        """Raises UserError unless `run`, a call of the model on little data, works here."""
        try:
            with self.autocast():
                run()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"argument --engine: expected one for {self.device}, got '{self.config.engine}', "
                f"which says: {reason}"
            ) from error

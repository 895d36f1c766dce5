"""What an experiment brings to the Trainer: data, model, loss and evaluation."""

import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...cli import UserError
from .configuration import RunConfig
from .distributed import ALONE, Workers
from .evaluating import evaluating
from .runs import progress_bar

Check = Callable[[], None]  # raises to stop at a clean point: a signal, or no time left


class Task(abc.ABC):
    """One experiment with its data loaded and its model made.

    Every process of a data-parallel run has its own: the same model, its share of every batch.
    """

    config_class: type[RunConfig]
    # The model, first of a tuple, from the content of a checkpoint.
    restore_model: ClassVar[Callable[[dict[str, Any]], tuple[nn.Module, Any]]]
    unit: str  # what throughput counts, such as "tokens"
    metric: str  # key of the record that chooses the best epoch; lower is better
    tests_best: bool  # whether `test` is of the best epoch; if not, of the last
    axis: str  # quantity of the learning curves, with its unit if it has one
    curves: ClassVar[Mapping[str, str]]  # key of the record -> legend; those of training are dashed
    none_if_infinite: ClassVar[tuple[str, ...]] = ()  # keys of figures that JSON has no number for
    config: RunConfig  # everything that determines the run
    data: Any  # from `load_data`
    workers: Workers  # which share of a batch is this process's
    model: nn.Module  # on its device
    updates: int  # of an epoch, at least 1
    items: int  # `unit`s that one update reads, over all processes
    clip: float | None = None  # largest norm of the whole gradient; None: any

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
    def restore(
        cls, content: dict[str, Any], config: RunConfig, data: Any, workers: Workers = ALONE
    ) -> "Task":
        """The task with the model of a checkpoint, under `config`. Raises CheckpointError."""
        model, *_ = cls.restore_model({**content, "config": asdict(config)})
        return cls(config, data, workers, model=model)

    def describe(self) -> str:
        """Data in one line; model, dropout and device in another."""
        return f"{self.data.describe()}\nmodel: {self.describe_model()}"

    def describe_model(self) -> str:
        """One line on model, dropout and machine, of a RecurrentConfig."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        shared = f" in each of {self.workers.size} processes" if self.workers.size > 1 else ""
        return (
            f"{self.config.describe_layers()}, {size:,} parameters, "
            f"{self.config.describe_dropout()}, {self.updates} updates an epoch on {self.device}"
            f"{shared}"
        )

    def fingerprint(self) -> int:
        """Checksum of the data: a run is resumed on the data it began with."""
        return self.data.fingerprint()

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

    @contextmanager
    def test_progress(self, items: int, check: Check) -> Iterator[Callable[[int], None]]:
        """A bar over that many `unit`s of the test; what it gives is called after each few."""
        with progress_bar("test", total=items, unit=self.unit) as bar:

            def advance(count: int) -> None:
                bar.update(count)
                check()

            yield advance

    def check_engine(self, run: Callable[[], Any]) -> None:
        """Raises UserError unless `run`, a call of the model on little data, works here."""
        try:
            with evaluating(self.model), self.autocast():
                run()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"argument --engine: expected one for {self.device}, got '{self.config.engine}', "
                f"which says: {reason}"
            ) from error

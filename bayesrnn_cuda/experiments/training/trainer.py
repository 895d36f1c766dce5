"""Training of any Task: updates, evaluation, checkpoints, exact resumption, data parallelism."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...cli import UserError
from .checkpoint import expecting, load_checkpoint, read_config, save_checkpoint
from .configuration import RunConfig, resumed_config
from .plots import run_figure, save_figure
from .runs import Interrupted, Interruption, RunFolder, deadline_after, progress_bar, summary_writer
from .task import Task

_BAR_UPDATES = 20  # updates between readings of the loss, each of which waits for the device


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number. The run folder keeps the last checkpoint before that."""


@dataclass
class Progress:
    """Where a run stands, the same in all its processes."""

    epoch: int = 1  # being trained, counted from 1
    update: int = 0  # next one of it
    seconds: float = 0.0  # spent on this epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # one record an epoch


@dataclass(frozen=True)
class RunResult:
    """What a finished run found."""

    history: list[dict[str, Any]]
    best_epoch: int
    final: dict[str, Any]  # last line of metrics.jsonl


class Trainer:
    """One run: task, optimizer and folder. `start` and `resume` make it, changing no file.

    Every process of a data-parallel run has one and calls it alike; the main one writes and prints.

    Raises:
        UserError: TensorBoard is asked for and not there.
    """

    def __init__(self, task: Task, path: Path, progress: Progress) -> None:
        self.task, self.config, self.workers = task, task.config, task.workers
        self.folder = RunFolder(path)
        self.progress = progress
        self.resumed = False
        self.loss = 0.0  # sum over this epoch's updates, of this process
        self.device = task.device
        self.optimizer = task.optimizer()
        self.model = self.workers.parallel(task.model)
        if self.workers.size > 1:
            self._settle_buckets()
        self.interruption = Interruption()
        self.writer = summary_writer() if self.config.tensorboard and self.workers.main else None

    @classmethod
    def start(cls, task: Task, path: Path) -> "Trainer":
        """A new run in the folder `path`. Raises UserError if there is something in it."""
        RunFolder(path).check_new()
        trainer = cls(task, path, Progress())
        torch.manual_seed(trainer.workers.seed(task.config.seed))
        return trainer

    @classmethod
    def resume(cls, content: dict[str, Any], task: Task, path: Path) -> "Trainer":
        """The run that `read_run` has read, to go on where it stopped.

        Args:
            content: from `read_run`.
            task: restored from it.
            path: folder of the run.

        Raises:
            UserError: the data or the number of processes is not that of the run.
            CheckpointError: the checkpoint is incomplete.
        """
        with expecting(f"the state of a training run in '{path}'"):
            training = content["training"]
            progress, fingerprint = Progress(**training["progress"]), training["fingerprint"]
            size = len(training["workers"])
        if fingerprint != task.fingerprint():
            raise UserError(
                f"argument --data: expected the data that '{path}' was trained on, got other or "
                "changed ones"
            )
        if size != task.workers.size:
            raise UserError(
                f"argument --resume: expected {size} process{'es' if size > 1 else ''} as in the "
                f"run to resume, got {task.workers.size}"
            )
        trainer = cls(task, path, progress)
        trainer.resumed = True
        with expecting(f"the state of a training run in '{path}'"):
            trainer.optimizer.load_state_dict(training["optimizer"])
            task.start_epoch(progress.epoch)
            trainer._load_own_state(training["workers"][task.workers.rank])
        return trainer

    def run(self, deadline: float | None = None) -> RunResult:
        """Trains to the last epoch or to the early stop, then tests the best epoch or the last.

        Args:
            deadline: from `deadline_after`; None: as the configuration's max_minutes has it.

        Raises:
            Interrupted: by a signal or the deadline; last.pt holds everything needed to go on.
            TrainingDiverged: the loss is not finite.
        """
        deadline = deadline_after(self.config.max_minutes) if deadline is None else deadline
        self.workers.barrier()  # all have seen the folder as it was
        with self._folder(), Interruption() as self.interruption:
            room = True  # for a plot
            try:
                self.save()
                with self._open_writer() as writer:  # no file of it where there is no checkpoint
                    while not self.finished():
                        self._epoch(deadline)
                        self._report(writer)
                return self._test()
            except Interrupted as stop:
                self.save()
                raise Interrupted(stop.number, self._where()) from None
            except OSError:
                room = False
                raise
            finally:
                if room and self.progress.history and self.workers.main:
                    drawn = self.progress.history, self.task.curves, self.task.axis
                    save_figure(self.folder.curves, run_figure, *drawn)

    def finished(self) -> bool:
        """Whether no epoch is left, or patience is at its end, and none has begun."""
        if self.progress.update:  # by a run that was stopped, and goes on with less patience
            return False
        return self.progress.epoch > self.config.epochs or self._patience_is_over()

    def step(self) -> Tensor:
        """One update; returns this process's loss, a scalar on the device."""
        with self.task.autocast():
            loss = self.task.loss(self.model, self.progress.update)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.task.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip)
        self.optimizer.step()
        self.task.after_update()
        self.progress.update += 1
        return loss.detach()

    def _settle_buckets(self) -> None:
        """One gradient for nothing, before there is a state that it could change.

        DistributedDataParallel regroups its buckets after the first; sums over three and more
        processes round differently then, and a resumed run would not be exact.
        """
        self.model.train()
        self.task.start_epoch(self.progress.epoch)
        with self.task.autocast():
            loss = self.task.loss(self.model, 0)
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.start_epoch(self.progress.epoch)

    def save(self) -> None:
        """Writes last.pt."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        own = {
            "loss": self.loss,
            "generator": torch.get_rng_state(),
            "cuda_generator": cuda,
            "task": self.task.state(),
        }
        workers = self.workers.gather(own)
        if self.workers.main:
            training = {
                "progress": dict(vars(self.progress)),
                "optimizer": self.optimizer.state_dict(),
                "workers": workers,
                "fingerprint": self.task.fingerprint(),
            }
            self._save(self.folder.last, training=training)

    def _save(self, path: Path, **more: Any) -> None:
        save_checkpoint(path, self.config.kind(), {**self.task.content(), **more})

    def _load(self, path: Path) -> dict[str, Any]:
        return load_checkpoint(path, self.config.kind())

    def _load_own_state(self, own: dict[str, Any]) -> None:
        """Puts back what `save` took from this process."""
        self.loss = own["loss"]
        torch.set_rng_state(own["generator"])
        if own["cuda_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda_generator"], self.device)
        self.task.load_state(own["task"])

    @contextmanager
    def _folder(self) -> Iterator[None]:
        """The folder of the run, made and held by the main process, as it was when it was read."""
        if not self.workers.main:
            yield
            return
        self.folder.create()
        with self.folder.locked():
            if not self.resumed:
                self.folder.check_new()
            elif self._load(self.folder.last)["training"]["progress"] != vars(self.progress):
                raise UserError(
                    f"argument --resume: expected '{self.folder.path}' as it was a moment ago, got "
                    "it trained on by another process"
                )
            config = {"experiment": self.config.experiment, **asdict(self.config)}
            self.folder.write_config(config)
            self.folder.write_metrics(self.progress.history)
            if self.progress.history or self.progress.update:
                print(f"resumed {self._where()}", flush=True)
            yield

    def _epoch(self, deadline: float | None) -> None:
        """Trains the rest of the epoch, evaluates, records and saves."""
        progress = self.progress
        if progress.update == 0:
            self.task.start_epoch(progress.epoch)
        self._train(deadline)
        loss = self.workers.mean(self.loss / self.task.updates)
        record = self.workers.in_main(lambda: self._record(loss))
        if not math.isfinite(record[self.task.metric]):
            raise self._diverged()
        progress.history.append(record)
        if self.workers.main and self._best_record() is record:
            self._save(self.folder.best)
        progress.epoch += 1
        progress.update, progress.seconds, self.loss = 0, 0.0, 0.0
        self.save()
        if self.workers.main:
            self.folder.write_metrics(progress.history)

    def _train(self, deadline: float | None) -> None:
        """The updates that are left of the epoch."""
        progress, task = self.progress, self.task
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = task.learning_rate(progress.epoch)
        began = time.perf_counter() - progress.seconds
        loss = torch.tensor(self.loss, dtype=torch.float64, device=self.device)
        with progress_bar(
            f"epoch {progress.epoch}/{self.config.epochs}",
            total=task.updates * task.items,
            unit=task.unit,
            initial=progress.update * task.items,
            show=self.workers.main,
        ) as bar:
            try:
                while progress.update < task.updates:
                    loss += self.step()
                    # Armed by an update: a test longer than the limit would never end otherwise.
                    self.interruption.deadline = deadline
                    bar.update(task.items)
                    if progress.update % _BAR_UPDATES == 0 or progress.update == task.updates:
                        mean = loss.item() / progress.update
                        if self.workers.largest(not math.isfinite(mean)):
                            raise self._diverged()
                        bar.set_postfix_str(_figures(task.training_record(mean)), refresh=False)
                    if number := self.workers.largest(self.interruption.number):
                        raise Interrupted(number)
            finally:
                self.loss, progress.seconds = loss.item(), time.perf_counter() - began

    def _record(self, loss: float) -> dict[str, Any]:
        """The line of metrics.jsonl on the epoch that has been trained, with mean `loss`."""
        progress, task = self.progress, self.task
        items = task.updates * task.items
        return {
            "epoch": progress.epoch,
            "lr": task.learning_rate(progress.epoch),
            "train_loss": loss,
            **task.training_record(loss),
            **task.evaluate(self.interruption.check),
            "seconds": round(progress.seconds, 3),
            f"{task.unit}_per_second": round(items / progress.seconds),
        }

    def _patience_is_over(self) -> bool:
        """Whether the best epoch is so long ago that no better one is waited for."""
        history, patience = self.progress.history, self.config.patience
        factor = self.config.patience_factor
        if not history or (patience is None and factor is None):
            return False
        best = self._best_record()["epoch"]
        return history[-1]["epoch"] - best >= max(patience or 0, (factor or 0) * best)

    def _report(self, writer: Any) -> None:
        """Prints the last record, and adds it to TensorBoard's."""
        if not self.workers.main:
            return
        record, unit = self.progress.history[-1], self.task.unit
        figures = {key: value for key, value in record.items() if key in self.task.curves}
        best = "  best" if self._best_record() is record else ""
        print(
            f"epoch {record['epoch']:3d}/{self.config.epochs}  lr {record['lr']:.4g}  "
            f"{_figures(figures)}  {record[f'{unit}_per_second']:,} {unit}/s  "
            f"{record['seconds']:.1f} s{best}",
            flush=True,
        )
        if writer is not None:
            for key, value in record.items():
                if key != "epoch":
                    writer.add_scalar(key, value, record["epoch"])
            writer.flush()

    def _open_writer(self) -> Any:
        if self.writer is None:
            return nullcontext()
        # What an interrupted run wrote of the epoch to come is of no use.
        return self.writer(str(self.folder.path), purge_step=self.progress.epoch)

    def _best_record(self) -> dict[str, Any]:
        """The first record with the lowest metric."""
        return min(self.progress.history, key=lambda record: record[self.task.metric])

    def _where(self) -> str:
        progress = self.progress
        if self.finished():
            return "in the final test"
        return f"in epoch {progress.epoch}, after update {progress.update} of {self.task.updates}"

    def _diverged(self) -> TrainingDiverged:
        task = self.task
        clip = "" if task.clip is None else f" or --clip (now {task.clip})"
        return TrainingDiverged(
            f"the loss is not finite {self._where()}; lower --lr (now "
            f"{task.learning_rate(self.progress.epoch):g}){clip}"
        )

    def _test(self) -> RunResult:
        """Tests the best epoch or the last and writes the last line of the metrics."""
        task, best = self.task, self._best_record()

        def final_record() -> dict[str, Any]:
            with self._best_parameters() if task.tests_best else nullcontext():
                return task.test(self.interruption.check)

        ended = "epochs" if self.progress.epoch > self.config.epochs else "patience"
        final = {"final": True, "best_epoch": best["epoch"], "ended": ended}
        if task.tests_best:
            final[task.metric] = best[task.metric]
        final |= self.workers.in_main(final_record)
        if self.workers.main:
            self.folder.write_metrics([*self.progress.history, final])
        return RunResult(self.progress.history, best["epoch"], final)

    @contextmanager
    def _best_parameters(self) -> Iterator[None]:
        """The parameters of best.pt in the model; afterwards those it had."""
        model = self.task.model
        best = self._load(self.folder.best)
        last = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        try:
            with expecting(f"the state of a training run in '{self.folder.best}'"):
                model.load_state_dict(best["model"])
            yield
        finally:
            model.load_state_dict(last)


def read_run(
    task_class: type[Task], path: Path, given: Mapping[str, Any]
) -> tuple[dict[str, Any], RunConfig]:
    """Checkpoint and configuration of the run in `path`, with the options `given` now.

    Raises:
        UserError: no run there, or an option differs that a resumed run must keep.
        CheckpointError: last.pt or best.pt is damaged or foreign.
    """
    folder = RunFolder(path)
    folder.check_resumable()
    content = load_checkpoint(folder.last, task_class.config_class.kind())
    if folder.best.exists():
        load_checkpoint(folder.best, task_class.config_class.kind())
    return content, resumed_config(read_config(content, task_class.config_class), given)


def _figures(record: Mapping[str, float]) -> str:
    """The figures of `record` in one line."""
    return "  ".join(f"{key.replace('_', ' ')} {value:.5g}" for key, value in record.items())

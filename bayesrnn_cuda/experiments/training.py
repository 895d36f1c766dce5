"""Training of a language model: truncated back-propagation, validation, checkpoints, exact
resumption.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .configuration import UserError, resumed_config
from .evaluation import LANES_PER_PASS, evaluating, mc_perplexity, perplexity, perplexity_of
from .language_model import (
    KIND,
    LanguageModel,
    LanguageModelConfig,
    State,
    detached,
    model_content,
    read_config,
    restore_model,
)
from .optimization import decay_parameters, learning_rate, make_optimizer, window_loss
from .plots import run_figure, save_figure
from .runs import Interrupted, Interruption, RunFolder, progress_bar
from .text import Corpus, lanes

_BAR_WINDOWS = 20  # windows between readings of the loss, each of which waits for the device


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number. The run folder keeps the last checkpoint before that."""


@dataclass
class Progress:
    """Where a run stands: what it needs beside parameters, optimizer and generators."""

    epoch: int = 1  # being trained, counted from 1
    window: int = 0  # next window of it
    carried: State | None = None
    loss: float = 0.0  # sum of the window losses of this epoch
    seconds: float = 0.0  # spent on this epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # one record an epoch


@dataclass(frozen=True)
class RunResult:
    """What a finished run found: perplexities of the epoch with the best validation."""

    history: list[dict[str, Any]]
    best_epoch: int
    valid: float
    test: float  # dropout approximation
    test_mc: float | None  # MC dropout, for a model that has Bayesian dropout


class Trainer:
    """One run: model, optimizer, text and folder. `start` and `resume` make it, changing no file.

    Raises:
        UserError: the device or the engine is not there, or the text is too short for one window.
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        corpus: Corpus,
        model: LanguageModel,
        path: Path,
        progress: Progress,
    ) -> None:
        self.config = config
        self.corpus = corpus
        self.folder = RunFolder(path)
        self.progress = progress
        self.device = config.resolved_device()
        self.model = model.to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.lanes = lanes(corpus.train, config.batch_size).to(self.device)
        self.windows = max(0, self.lanes.shape[0] - 1) // config.seq_len
        if self.windows == 0:
            raise UserError(
                f"arguments --batch-size, --seq-len: expected at least {config.batch_size} x "
                f"({config.seq_len} + 1) training tokens, got {corpus.train.numel()}"
            )
        self._check_engine()

    @classmethod
    def start(cls, config: LanguageModelConfig, corpus: Corpus, path: Path) -> "Trainer":
        """A new run in the folder `path`. Raises UserError if there is something in it."""
        RunFolder(path).check_new()
        model = LanguageModel(len(corpus.vocabulary), config)
        trainer = cls(config, corpus, model, path, Progress())
        torch.manual_seed(config.seed)
        return trainer

    @classmethod
    def resume(
        cls, content: dict[str, Any], config: LanguageModelConfig, corpus: Corpus, path: Path
    ) -> "Trainer":
        """The run that `read_run` has read, to go on where it stopped.

        Raises:
            UserError: the text is not that of the run.
            CheckpointError: the checkpoint is incomplete.
        """
        model, _, config = restore_model({**content, "config": asdict(config)})
        with _incomplete_checkpoint(path):
            training = content["training"]
            progress, fingerprint = Progress(**training["progress"]), training["fingerprint"]
        if fingerprint != corpus.fingerprint():
            raise UserError(
                f"argument --data: expected the text that '{path}' was trained on, got another or "
                "a changed one"
            )
        trainer = cls(config, corpus, model, path, progress)
        with _incomplete_checkpoint(path):
            progress.carried = _on_device(progress.carried, trainer.device)
            trainer.optimizer.load_state_dict(training["optimizer"])
            torch.set_rng_state(training["generator"])
            if training["cuda_generator"] is not None and trainer.device.type == "cuda":
                torch.cuda.set_rng_state(training["cuda_generator"], trainer.device)
        return trainer

    def describe(self) -> str:
        """One line on model, dropout and machine."""
        config = self.config
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"{config.layers} x {config.hidden} {config.cell}, {size:,} parameters, "
            f"{config.describe_dropout()}, {self.windows} updates an epoch on {self.device}"
        )

    def run(self) -> RunResult:
        """Trains to the last epoch or to the early stop, then tests the best epoch.

        Raises:
            Interrupted: by a signal; last.pt holds everything needed to go on.
            TrainingDiverged: the loss is not finite.
        """
        self.folder.create()
        self.folder.write_config(asdict(self.config))
        self.folder.write_metrics(self.progress.history)
        if self.progress.history or self.progress.window:
            print(f"resumed {self._where()}", flush=True)
        with Interruption() as interruption:
            try:
                self.save()
                while not self.finished():
                    self._epoch(interruption.check)
                return self._test(interruption.check)
            except Interrupted as stop:
                self.save()
                raise Interrupted(stop.number, self._where()) from None
            finally:
                if self.progress.history:
                    save_figure(self.folder.curves, run_figure, self.progress.history)

    def finished(self) -> bool:
        """Whether no epoch is left, or patience is at its end."""
        history = self.progress.history
        if self.progress.epoch > self.config.epochs:
            return True
        return (
            self.config.patience is not None
            and bool(history)
            and (history[-1]["epoch"] - best_record(history)["epoch"] >= self.config.patience)
        )

    def step(self) -> Tensor:
        """One update on the next window; returns its loss, a scalar on the device."""
        config, progress = self.config, self.progress
        start = progress.window * config.seq_len
        inputs = self.lanes[start : start + config.seq_len]
        targets = self.lanes[start + 1 : start + config.seq_len + 1]
        logits, state = self.model(inputs, progress.carried)
        loss = window_loss(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        if config.optimizer == "sgd" and config.weight_decay:
            decay_parameters(self.model.parameters(), config.weight_decay)
        progress.carried = detached(state) if config.state == "carry" else None
        progress.window += 1
        return loss.detach()

    def save(self) -> None:
        """Writes last.pt."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        training = {
            "progress": dict(vars(self.progress)),
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
            "cuda_generator": cuda,
            "fingerprint": self.corpus.fingerprint(),
        }
        content = model_content(self.model, self.corpus.vocabulary, self.config)
        save_checkpoint(self.folder.last, KIND, {**content, "training": training})

    def _epoch(self, check: Callable[[], None]) -> None:
        """Trains the rest of the epoch, validates, records and saves."""
        progress = self.progress
        self._train_windows(check)
        valid = perplexity(
            self.model,
            self.corpus.valid,
            batch_size=self.config.batch_size,
            seq_len=self.config.seq_len,
            state=self.config.state,
            on_steps=lambda _: check(),
        )
        if not math.isfinite(valid):
            raise self._diverged()
        progress.history.append(self._record(valid))
        if best_record(progress.history) is progress.history[-1]:
            content = model_content(self.model, self.corpus.vocabulary, self.config)
            save_checkpoint(self.folder.best, KIND, content)
        self._report()
        progress.epoch += 1
        progress.window, progress.carried, progress.loss, progress.seconds = 0, None, 0.0, 0.0
        self.save()
        self.folder.write_metrics(progress.history)

    def _train_windows(self, check: Callable[[], None]) -> None:
        progress, tokens = self.progress, self.config.seq_len * self.config.batch_size
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, progress.epoch)
        began = time.perf_counter() - progress.seconds
        loss = torch.tensor(progress.loss, dtype=torch.float64, device=self.device)
        name = f"epoch {progress.epoch}/{self.config.epochs}"
        with progress_bar(
            name, total=self.windows * tokens, initial=progress.window * tokens
        ) as bar:
            try:
                while progress.window < self.windows:
                    loss += self.step()
                    bar.update(tokens)
                    if progress.window % _BAR_WINDOWS == 0 or progress.window == self.windows:
                        mean = loss.item() / (progress.window * self.config.seq_len)
                        if not math.isfinite(mean):
                            raise self._diverged()
                        bar.set_postfix_str(
                            f"loss {mean:.3f}, perplexity {perplexity_of(mean):.1f}", refresh=False
                        )
                    check()
            finally:
                progress.loss, progress.seconds = loss.item(), time.perf_counter() - began

    def _record(self, valid: float) -> dict[str, Any]:
        progress, config = self.progress, self.config
        mean = progress.loss / (self.windows * config.seq_len)
        return {
            "epoch": progress.epoch,
            "lr": learning_rate(config, progress.epoch),
            "train_loss": mean,
            "train_perplexity": perplexity_of(mean),
            "valid_perplexity": valid,
            "seconds": round(progress.seconds, 3),
            "tokens_per_second": round(
                self.windows * config.seq_len * config.batch_size / progress.seconds
            ),
        }

    def _report(self) -> None:
        record = self.progress.history[-1]
        best = "  best" if best_record(self.progress.history) is record else ""
        print(
            f"epoch {record['epoch']:3d}/{self.config.epochs}  lr {record['lr']:.4g}  "
            f"train {record['train_perplexity']:8.2f}  valid {record['valid_perplexity']:8.2f}  "
            f"{record['tokens_per_second']:,} tokens/s  {record['seconds']:.1f} s{best}",
            flush=True,
        )

    def _check_engine(self) -> None:
        """Raises UserError unless the layers can run here, before anything is written."""
        try:
            with evaluating(self.model):
                self.model(self.lanes[:1])
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"argument --engine: expected one for {self.device}, got '{self.config.engine}', "
                f"which says: {reason}"
            ) from error

    def _where(self) -> str:
        progress = self.progress
        if self.finished():
            return "in the final test"
        return f"in epoch {progress.epoch}, after window {progress.window} of {self.windows}"

    def _diverged(self) -> TrainingDiverged:
        return TrainingDiverged(
            f"the loss is not finite {self._where()}; lower --lr (now {self.config.lr}) or --clip "
            f"(now {self.config.clip})"
        )

    def _test(self, check: Callable[[], None]) -> RunResult:
        """Tests the best epoch and writes the last line of the metrics."""
        config, tokens = self.config, self.corpus.test
        best_content = load_checkpoint(self.folder.best, KIND)
        model, _, _ = restore_model({**best_content, "config": asdict(config)})
        model.to(self.device)
        sampled = config.mc_samples if config.samples_masks() else 0
        passes = 1 + math.ceil(sampled / LANES_PER_PASS)
        with progress_bar("test", total=passes * (tokens.numel() - 1)) as bar:

            def on_steps(steps: int) -> None:
                bar.update(steps)
                check()

            settings = {"seq_len": config.seq_len, "state": config.state, "on_steps": on_steps}
            test, test_mc = perplexity(model, tokens, **settings), None
            if sampled:
                settings |= {"seed": config.seed, "embedding_dropout": config.mc_embedding_dropout}
                test_mc = mc_perplexity(model, tokens, samples=sampled, **settings)
        best = best_record(self.progress.history)
        result = RunResult(
            self.progress.history, best["epoch"], best["valid_perplexity"], test, test_mc
        )
        final = {
            "final": True,
            "best_epoch": result.best_epoch,
            "valid_perplexity": result.valid,
            "test_perplexity": test,
            "test_perplexity_mc": test_mc,
            "mc_samples": sampled,
        }
        self.folder.write_metrics([*self.progress.history, final])
        return result


def read_run(path: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], LanguageModelConfig]:
    """Checkpoint and configuration of the run in `path`, with the options `given` now.

    Raises:
        UserError: no run there, or an option differs that a resumed run must keep.
        CheckpointError: last.pt or best.pt is damaged or foreign.
    """
    folder = RunFolder(path)
    folder.check_resumable()
    content = load_checkpoint(folder.last, KIND)
    if folder.best.exists():
        load_checkpoint(folder.best, KIND)
    return content, resumed_config(read_config(content), given)


def best_record(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The first record with the lowest validation perplexity."""
    return min(history, key=lambda record: record["valid_perplexity"])


@contextmanager
def _incomplete_checkpoint(path: Path) -> Iterator[None]:
    """Turns what breaks while the content of a checkpoint is put to use into a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"expected the state of a training run in '{path}', got {reason}"
        ) from error


def _on_device(state: State | None, device: torch.device) -> State | None:
    if isinstance(state, tuple):
        return tuple(part.to(device) for part in state)
    return None if state is None else state.to(device)

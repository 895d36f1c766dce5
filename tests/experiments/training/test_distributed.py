"""Data-parallel runs with real processes against one process, and against themselves resumed."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from language_runs import metrics, resume, start
from processes import run_processes

from bayesrnn_cuda.__main__ import main
from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.language import task as language_task
from bayesrnn_cuda.experiments.language.model import LanguageModelConfig, ModelMasks
from bayesrnn_cuda.experiments.language.task import LanguageModelTask
from bayesrnn_cuda.experiments.language.text import lanes, load_corpus
from bayesrnn_cuda.experiments.training.checkpoint import load_checkpoint
from bayesrnn_cuda.experiments.training.distributed import ALONE, Workers, joined_workers
from bayesrnn_cuda.experiments.training.runs import Interrupted
from bayesrnn_cuda.experiments.training.trainer import Trainer, TrainingDiverged

KIND = LanguageModelConfig.kind()

NO_DROPOUT = dict.fromkeys(
    ("embedding_dropout", "input_dropout", "recurrent_dropout", "output_dropout"), 0.0
)


class GlobalMasks(LanguageModelTask):
    """Draws the masks of the whole batch in every process and takes its own lanes of them."""

    def loss(self, model, update):
        generator = torch.Generator().manual_seed(100 + update)
        masks = self.model.sample_masks(self.config.batch_size, generator=generator)
        own = torch.arange(self.config.batch_size)[self.workers.share(self.config.batch_size)]
        masks = ModelMasks(
            masks.embedding[own],
            [layer.index_select(own) for layer in masks.recurrent],
            masks.output[own],
        )
        return super().loss(
            lambda *arguments, **given: model(*arguments, masks=masks, **given), update
        )


def updates_of(config: LanguageModelConfig, path: Path, task_class: type) -> SimpleNamespace:
    """Loss, gradients and parameters after each of three updates, and the state carried on."""
    with joined_workers() as workers:
        task = task_class(config, load_corpus(config.data, None), workers)
        trainer = Trainer.start(task, path)
        trainer.model.train()
        steps = []
        for _ in range(3):
            loss = workers.mean(trainer.step().item())
            gradients = [parameter.grad.clone() for parameter in task.model.parameters()]
            parameters = [parameter.detach().clone() for parameter in task.model.parameters()]
            steps.append((loss, gradients, parameters))
        return SimpleNamespace(steps=steps, carried=task.carried, lanes=task.lanes)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("task_class", [LanguageModelTask, GlobalMasks])
def test_updates_equal_those_of_one_process(tiny, corpus, tmp_path, size, task_class):
    """The same global batch, with masks that are the same: none, or those of the whole batch."""
    changes = NO_DROPOUT if task_class is LanguageModelTask else {}
    config = tiny(batch_size=6, optimizer="sgd", lr=0.5, weight_decay=0.01, clip=2.0, **changes)
    alone = updates_of(config, tmp_path, task_class)
    together = run_processes(size, updates_of, config, tmp_path, task_class)
    for own in together:
        for actual, expected in zip(own.steps, alone.steps, strict=True):
            assert actual[0] == pytest.approx(expected[0], rel=1e-5)
            torch.testing.assert_close(actual[1:], expected[1:], rtol=1e-4, atol=1e-6)
        assert own.lanes.shape[1] == 6 // size
    assert torch.equal(torch.cat([own.lanes for own in together], dim=1), alone.lanes)
    assert torch.equal(alone.lanes, lanes(corpus.train, 6))
    for part in (0, 1):
        carried = torch.cat([own.carried[part] for own in together], dim=1)
        torch.testing.assert_close(carried, alone.carried[part], rtol=1e-4, atol=1e-6)


def logits_of_same_tokens(config: LanguageModelConfig, path: Path) -> torch.Tensor:
    with joined_workers() as workers:
        task = LanguageModelTask(config, load_corpus(config.data, None), workers)
        trainer = Trainer.start(task, path)
        tokens = torch.arange(8).expand(5, 8)
        return trainer.model.train()(tokens)[0].detach()


def test_same_model_and_other_masks_in_every_process(tiny, tmp_path):
    first, second = run_processes(2, logits_of_same_tokens, tiny(**NO_DROPOUT), tmp_path)
    assert torch.equal(first, second)
    first, second = run_processes(2, logits_of_same_tokens, tiny(), tmp_path)
    assert not torch.equal(first, second)
    # The main process draws what a process alone draws: its run does not depend on the others.
    assert torch.equal(first, logits_of_same_tokens(tiny(), tmp_path))


def train(
    config: LanguageModelConfig | None,
    path: Path,
    text: Path,
    stop_rank: int = 0,
    stop_at: int | None = None,
    in_validation: bool = False,
    nan_at: int | None = None,
) -> SimpleNamespace:
    """A run, new or (no `config`) resumed, and what it was stopped by.

    Process `stop_rank` gets a signal after its update `stop_at`, or in the validation after it;
    it has a loss of NaN from update `nan_at` on.
    """
    corpus, losses, stopped = load_corpus(str(text), None), [], None
    with joined_workers() as workers, contextlib.redirect_stdout(io.StringIO()) as printed:
        trainer = (
            resume(path, corpus, workers)
            if config is None
            else start(config, corpus, path, workers)
        )
        step, validate = trainer.step, language_task.validation_perplexity

        def kill() -> None:
            if workers.rank == stop_rank and len(losses) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        def spy() -> torch.Tensor:
            loss = step()
            losses.append(loss.item())
            if not in_validation:
                kill()
            return loss * torch.nan if workers.rank == stop_rank and len(losses) == nan_at else loss

        def validation(*arguments, **settings):
            kill()
            return validate(*arguments, **settings)

        trainer.step = spy
        if in_validation:
            language_task.validation_perplexity = validation
        try:
            final = trainer.run().final
        except (Interrupted, TrainingDiverged) as stop:
            final, stopped = None, str(stop)
    parameters = trainer.task.model.state_dict()
    return SimpleNamespace(
        losses=losses,
        final=final,
        stopped=stopped,
        parameters=parameters,
        history=trainer.progress.history,
        printed=printed.getvalue(),
    )


def test_resumed_run_equals_uninterrupted_run(tiny, text, tmp_path):
    """Three processes, one of which gets the signal: all stop there; each goes on with its own."""
    config = tiny(batch_size=6, seq_len=5)
    whole = run_processes(3, train, config, tmp_path / "whole", text)
    path = tmp_path / "stopped"
    first = run_processes(3, train, config, path, text, 1, 14)
    assert {own.stopped for own in first} == {"stopped by SIGTERM in epoch 2, after update 3 of 11"}
    second = run_processes(3, train, None, path, text)
    for before, after, expected in zip(first, second, whole, strict=True):
        assert before.losses + after.losses == expected.losses
        assert after.final == expected.final and after.final is not None
        assert all(torch.equal(v, expected.parameters[k]) for k, v in after.parameters.items())
        assert after.history == second[0].history
    assert len({tuple(own.losses) for own in whole}) == 3
    assert metrics(path) == metrics(tmp_path / "whole")
    mean = sum(sum(own.losses[:11]) for own in whole) / 3 / 11 / config.seq_len
    assert metrics(path)[0]["train_loss"] == pytest.approx(mean, rel=1e-12)
    # Only the main process prints.
    assert "epoch   1/2" in whole[0].printed
    assert {own.printed for own in whole[1:]} == {""}


def test_signal_in_the_validation_stops_all(tiny, text, tmp_path):
    run = run_processes(2, train, tiny(), tmp_path, text, 0, 17, True)
    assert {own.stopped for own in run} == {"stopped by SIGTERM in epoch 1, after update 17 of 17"}
    assert metrics(tmp_path) == []


def test_divergence_in_one_process_stops_all(tiny, text, tmp_path):
    run = run_processes(2, train, tiny(), tmp_path, text, 1, None, False, 2)
    for own in run:
        assert own.stopped.startswith("the loss is not finite in epoch 1, after update 17 of 17")


def test_resume_with_another_number_of_processes(tiny, corpus, tmp_path):
    start(tiny(), corpus, tmp_path).run()
    content = load_checkpoint(tmp_path / "last.pt", KIND)
    content["training"]["workers"] *= 2
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"--resume: expected 2 processes as in .*, got 1$"):
        resume(tmp_path, corpus)


def test_batch_that_cannot_be_shared(tiny, corpus):
    with pytest.raises(UserError, match=r"--batch-size: expected a multiple of the 3 processes"):
        LanguageModelTask(tiny(batch_size=4), corpus, Workers(1, 3))


@pytest.mark.parametrize("items", [1, 7, 128])
def test_shares_are_consecutive_and_complete(items):
    for size in (1, 2, 5):
        parts = [list(range(items))[Workers(rank, size).share(items)] for rank in range(size)]
        assert list(itertools.chain(*parts)) == list(range(items))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_seeds_differ_and_the_main_one_is_the_run_s_own():
    seeds = [Workers(rank, 8).seed(seed) for seed in (1, 2) for rank in range(8)]
    assert len(set(seeds)) == 16
    assert ALONE.seed(1) == Workers(0, 8).seed(1) == 1


def test_each_process_has_a_cuda_device(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = tiny(device="auto")
    assert Workers(3, 4, local_rank=1).device(config) == torch.device("cuda", 1)
    assert ALONE.device(dataclasses.replace(config, device="cuda:1")) == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"--device: expected a CUDA device for each process"):
        Workers(2, 3, local_rank=2).device(config)
    with pytest.raises(UserError, match=r"--device: expected cuda, one .*, got 'cuda:0'"):
        Workers(0, 2).device(dataclasses.replace(config, device="cuda:0"))
    assert Workers(3, 4, local_rank=3).device(tiny(device="cpu")) == torch.device("cpu")


def command(arguments: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command line."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        status = main(arguments)
    return status, out.getvalue(), errors.getvalue()


def test_command_line(tiny, text, tmp_path):
    """Out of time after one update, resumed as it says, and mistakes."""
    out = str(tmp_path / "run")
    sizes = "--embedding 6 --hidden 7 --seq-len 5 --batch-size 4 --epochs 1 --device cpu"
    limit = ["--max-minutes", "1e-9"]
    arguments = ["train", *sizes.split(), "--data", str(text), "--out", out, *limit]
    first, second = run_processes(2, command, arguments)
    assert first[0] == second[0] == 3
    assert second[1:] == ("", "")
    assert first[2] == (
        "bayesrnn: stopped by --max-minutes in epoch 1, after update 1 of 17; to continue: "
        f"torchrun --nproc-per-node 2 -m bayesrnn_cuda train --resume --out {out}\n"
    )
    arguments = ["train", "--resume", "--out", out, "--max-minutes", "9"]
    first, second = run_processes(2, command, arguments)
    assert first[0] == second[0] == 0, first[2]
    assert "MC dropout with 50 samples" in first[1] and second[1:] == ("", "")
    assert json.loads((Path(out) / "config.json").read_text())["max_minutes"] == 9
    status, _, error = command(arguments)
    assert (status, error) == (
        2,
        "bayesrnn: error: argument --resume: expected 2 processes as in the run to resume, got 1\n",
    )

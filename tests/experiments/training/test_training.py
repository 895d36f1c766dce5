"""Runs: windows, carried state, learning, folder, early stop, interruption and exact resumption."""

import json
import math
import os
import signal

import pytest
import torch
from language_runs import metrics, resume, start

from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.language import task as language_task
from bayesrnn_cuda.experiments.language.evaluation import ValidationPerplexity
from bayesrnn_cuda.experiments.language.model import LanguageModelConfig
from bayesrnn_cuda.experiments.language.task import LanguageModelTask
from bayesrnn_cuda.experiments.language.text import lanes, load_corpus
from bayesrnn_cuda.experiments.training.checkpoint import CheckpointError, load_checkpoint
from bayesrnn_cuda.experiments.training.runs import Interrupted
from bayesrnn_cuda.experiments.training.trainer import TrainingDiverged, read_run

KIND = LanguageModelConfig.kind()


def test_windows_and_carried_state(tiny, corpus, tmp_path):
    """The second window starts from the state after the first, without history, or from zero."""
    for state in ("carry", "zero"):
        trainer = start(tiny(state=state, dropout_kind="none"), corpus, tmp_path)
        calls = []
        trainer.task.model.register_forward_pre_hook(
            lambda module, inputs, calls=calls: calls.append(inputs)
        )
        trainer.step()
        trainer.step()
        (first, initial), (second, carried) = calls
        lanes = trainer.task.lanes
        assert torch.equal(first, lanes[:5]) and torch.equal(second, lanes[5:10])
        assert initial is None
        if state == "carry":
            assert all(part.shape == (2, 4, 7) and not part.requires_grad for part in carried)
            assert all(part.abs().sum() > 0 for part in carried)
        else:
            assert carried is None


@pytest.mark.parametrize("kind", ["bayesian", "naive"])
def test_documents_in_training(tiny, tmp_path, kind):
    """A run with documents learns from windows in which the state is zero at each beginning."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text("a b c\n\nb c a a\n\nc b\n" * 20)
    corpus = load_corpus(str(folder), None)
    config = tiny(state="documents", dropout_kind=kind, data=str(folder))
    task = start(config, corpus, tmp_path / "run").task
    seen = []
    task.model.recurrent.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["resets"]), with_kwargs=True
    )
    for update in range(2):
        task.loss(task.model, update)
    begins = corpus.resets("train", "documents")
    expected = lanes(begins, config.batch_size)[: 2 * config.seq_len]
    assert torch.equal(torch.cat(seen), expected) and expected.sum() > 4
    assert task.carried is not None


def test_state_starts_from_zero_in_every_epoch(tiny, corpus, tmp_path):
    trainer = start(tiny(epochs=2), corpus, tmp_path)
    starts = []
    trainer.task.model.register_forward_pre_hook(
        lambda module, inputs: starts.append(inputs[1] is None) if module.training else None
    )
    trainer.run()
    assert [index for index, zero in enumerate(starts) if zero] == [0, trainer.task.updates]
    assert len(starts) == 2 * trainer.task.updates


def test_run_learns_and_fills_its_folder(tiny, corpus, tmp_path):
    path = tmp_path / "deep" / "run"
    result = start(tiny(epochs=6, lr=0.03), corpus, path).run()
    assert sorted(file.name for file in path.iterdir()) == [
        *["best.pt", "config.json", "curves.png", "last.pt", "metrics.jsonl"]
    ]
    config = json.loads((path / "config.json").read_text())
    assert config["hidden"] == 7
    assert (config["experiment"], config["preset"]) == ("language_model", None)
    *epochs, final = metrics(path)
    assert [record["epoch"] for record in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1]["train_perplexity"] == pytest.approx(math.exp(epochs[-1]["train_loss"]))
    # The text has 8 types and 3 free choices a line of 6 tokens.
    assert epochs[-1]["valid_perplexity"] < 0.6 * epochs[0]["valid_perplexity"]
    assert final == result.final and final["final"] is True
    assert final["valid_perplexity"] == min(record["valid_perplexity"] for record in epochs)
    assert final["test_perplexity"] != final["test_perplexity_mc"] > 1
    assert final["mc_samples"] == 3
    figures = {"mean_entropy", "mean_mutual_information", "mean_standard_deviation"}
    assert all(final[name] > 0 for name in figures)


def test_best_epoch_is_kept_and_tested(tiny, corpus, tmp_path, monkeypatch):
    """Validation perplexities 9, 5, 7: the parameters after epoch 2 are tested, not the last."""
    answers, tested = iter([9.0, 5.0, 7.0]), []

    def test_perplexity(model, tokens, **settings):
        assert tokens is corpus.test
        tested.append(model.decoder.bias.clone())
        return 6.0

    monkeypatch.setattr(language_task, "validation_perplexity", validations(answers, corpus))
    monkeypatch.setattr(language_task, "perplexity", test_perplexity)
    trainer = start(tiny(epochs=3, dropout_kind="none"), corpus, tmp_path)
    final = trainer.run().final
    assert (final["best_epoch"], final["valid_perplexity"]) == (2, 5.0)
    assert (final["test_perplexity"], final["test_perplexity_mc"]) == (6.0, None)
    best = load_checkpoint(tmp_path / "best.pt", KIND)["model"]["decoder.bias"]
    assert torch.equal(tested[0], best)
    # the trainer and last.pt keep the parameters after epoch 3
    last = load_checkpoint(tmp_path / "last.pt", KIND)["model"]["decoder.bias"]
    assert torch.equal(trainer.task.model.decoder.bias, last)
    assert not torch.equal(best, last)


def validations(answers, corpus):
    """Stands for validation_perplexity with known answers; the authors' figure is 1 lower."""

    def answer(model, tokens, **settings):
        assert tokens is corpus.valid
        value = next(answers)
        return ValidationPerplexity(value, value - 1)

    return answer


@pytest.mark.parametrize(
    ("patience", "factor", "epochs", "ended"),
    [(2, None, 5, "patience"), (None, 1.0, 2, "patience"), (2, 0.8, 6, "epochs")],
)
def test_early_stop(tiny, corpus, tmp_path, monkeypatch, patience, factor, epochs, ended):
    """With both rules, 0.8 times the best epoch, the third, are more than two epochs."""
    answers = iter([5.0, 6.0, 4.0, 4.5, 4.0, 9.0])
    monkeypatch.setattr(language_task, "validation_perplexity", validations(answers, corpus))
    config = tiny(epochs=6, patience=patience, patience_factor=factor)
    result = start(config, corpus, tmp_path).run()
    figures = [4, 5, 3, 3.5, 3, 8][:epochs]
    assert [record["valid_perplexity_authors"] for record in result.history] == figures
    assert result.best_epoch == min(epochs, 3) - (epochs == 2)
    assert result.final["ended"] == ended


def test_less_patience_within_an_epoch(tiny, corpus, tmp_path, monkeypatch, losses):
    """Stopped in the third epoch, when the first is the best: the third is trained to its end."""
    answers = iter([4.0, 5.0, 6.0])
    monkeypatch.setattr(language_task, "validation_perplexity", validations(answers, corpus))
    trainer = start(tiny(epochs=6), corpus, tmp_path)
    losses.stop_at = 2 * trainer.task.updates + 2
    with pytest.raises(Interrupted):
        trainer.run()
    result = resume(tmp_path, corpus, patience=1).run()
    assert [record["epoch"] for record in result.history] == [1, 2, 3]
    assert len(losses) == 3 * trainer.task.updates


def test_same_seed_same_run(tiny, corpus, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        start(tiny(seed=seed), corpus, tmp_path / name).run()
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != metrics(tmp_path / "c")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "optimizer": "sgd",
            "lr": 0.3,
            "weight_decay": 1e-3,
            "lr_decay": 2,
            "lr_constant_epochs": 1,
        },
        {"dropout_kind": "naive", "cell": "gru", "state": "zero"},
        {"precision": "bfloat16"},
    ],
    ids=["adam", "sgd", "naive-gru-zero", "bfloat16"],
)
def test_resumed_run_equals_uninterrupted_run(tiny, corpus, tmp_path, losses, changes):
    """Stopped in the middle and at the end of an epoch: same losses, bit for bit, same files."""
    whole = start(tiny(epochs=3, **changes), corpus, tmp_path / "whole")
    result = whole.run()
    expected, windows = list(losses), whole.task.updates
    assert len(expected) == 3 * windows

    losses.clear()
    path = tmp_path / "stopped"
    trainer = start(tiny(epochs=3, **changes), corpus, path)
    for losses.stop_at, epoch, window in ((windows + 4, 2, 4), (2 * windows, 2, windows)):
        with pytest.raises(Interrupted, match=f"SIGINT in epoch {epoch}, after update {window} of"):
            trainer.run()
        assert len(metrics(path)) == 1
        torch.manual_seed(99)
        trainer = resume(path, corpus)
    resumed = trainer.run()
    assert resumed.final == result.final
    assert losses == expected
    assert metrics(path) == metrics(tmp_path / "whole")
    for name in ("best.pt", "last.pt"):
        contents = [load_checkpoint(folder / name, KIND) for folder in (tmp_path / "whole", path)]
        for key, value in contents[0]["model"].items():
            assert torch.equal(contents[1]["model"][key], value)


def test_second_signal_shortly_after_the_first_is_the_same_one(tiny, corpus, tmp_path, losses):
    losses.stop_at = 3
    trainer = start(tiny(), corpus, tmp_path)
    step = trainer.step

    def twice():
        loss = step()
        if len(losses) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    trainer.step = twice
    with pytest.raises(Interrupted):
        trainer.run()
    assert read_run(LanguageModelTask, tmp_path, {})[0]["training"]["progress"]["update"] == 3


def test_interruption_in_the_final_test(tiny, corpus, tmp_path, monkeypatch):
    expected = start(tiny(), corpus, tmp_path / "whole").run()
    mc_evaluate = language_task.mc_evaluate

    def stopped(*arguments, **settings):
        os.kill(os.getpid(), signal.SIGTERM)
        return mc_evaluate(*arguments, **settings)

    monkeypatch.setattr(language_task, "mc_evaluate", stopped)
    with pytest.raises(Interrupted, match="SIGTERM in the final test") as stop:
        start(tiny(), corpus, tmp_path / "run").run()
    assert stop.value.number == signal.SIGTERM
    monkeypatch.undo()
    result = resume(tmp_path / "run", corpus).run()
    assert result.final == expected.final
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_finished_run_goes_on_with_more_epochs(tiny, corpus, tmp_path):
    start(tiny(epochs=3), corpus, tmp_path / "whole").run()
    start(tiny(epochs=1), corpus, tmp_path / "run").run()
    resume(tmp_path / "run", corpus, epochs=3).run()
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 3


def test_resumed_run_tests_with_the_engine_of_now(tiny, corpus, tmp_path, monkeypatch):
    start(tiny(epochs=1), corpus, tmp_path).run()
    engines = []
    monkeypatch.setattr(
        language_task,
        "perplexity",
        lambda model, *a, **s: engines.append(model.recurrent.engine) or 1.0,
    )
    resume(tmp_path, corpus, engine="reference").run()
    assert engines == ["reference"]


def test_resume_keeps_the_options_of_the_run(tiny, corpus, tmp_path):
    start(tiny(epochs=1), corpus, tmp_path).run()
    with pytest.raises(UserError, match="--hidden: expected 7 as in the run to resume, got 9"):
        read_run(LanguageModelTask, tmp_path, {"hidden": 9})
    assert read_run(LanguageModelTask, tmp_path, {"hidden": 7, "epochs": 5})[1].epochs == 5


def test_resume_with_another_text(tiny, text, corpus, tmp_path):
    start(tiny(epochs=1), corpus, tmp_path).run()
    with pytest.raises(UserError, match=r"--data: expected the data that .* was trained on"):
        resume(tmp_path, load_corpus(str(text), 20))


def test_folder_with_files_in_it(tiny, corpus, tmp_path, folder_bytes):
    """It is not offered to resume a run that is not there, and is to one that is."""
    (tmp_path / "thesis.txt").write_text("precious")
    before = folder_bytes(tmp_path)
    with pytest.raises(UserError, match=r"--out: expected a new or empty folder, got .* in it$"):
        start(tiny(), corpus, tmp_path)
    run = tmp_path.parent / f"{tmp_path.name}-run"
    start(tiny(epochs=1), corpus, run).run()
    with pytest.raises(UserError, match=r"new or empty folder, got .*; add --resume to continue"):
        start(tiny(), corpus, run)
    with pytest.raises(UserError, match=r"--resume: expected a run in .*, got no last.pt there"):
        read_run(LanguageModelTask, tmp_path, {})
    with pytest.raises(UserError, match="--out: expected a folder, got the file"):
        start(tiny(), corpus, tmp_path / "thesis.txt")
    assert folder_bytes(tmp_path) == before


@pytest.mark.parametrize(("batch_size", "seq_len", "least"), [(100, 5, 600), (4, 90, 364)])
def test_text_shorter_than_one_window(tiny, corpus, tmp_path, batch_size, seq_len, least):
    config = tiny(batch_size=batch_size, seq_len=seq_len)
    with pytest.raises(UserError, match=rf"{batch_size} x \({seq_len} \+ 1\) .*, got 360"):
        start(config, corpus, tmp_path / "run")
    assert corpus.train.numel() == 360 < least
    assert not (tmp_path / "run").exists()


def test_engine_that_cannot_run_here(tiny, corpus, tmp_path, monkeypatch):
    def broken(model, *arguments):
        raise RuntimeError("no such kernel\nat line 3")

    monkeypatch.setattr(language_task.LanguageModel, "forward", broken)
    with pytest.raises(
        UserError, match=r"--engine: .*'auto', which says: no such kernel at line 3"
    ):
        start(tiny(), corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_keeps_the_last_checkpoint(tiny, corpus, tmp_path):
    trainer = start(tiny(), corpus, tmp_path)
    with torch.no_grad():
        trainer.model.decoder.bias[0] = torch.nan
    with pytest.raises(TrainingDiverged, match=r"not finite in epoch 1.*lower --lr \(now 0.01\)"):
        trainer.run()
    assert metrics(tmp_path) == []


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage", "foreign", "empty"])
def test_damaged_checkpoint_leaves_the_run_as_it_was(
    tiny, corpus, tmp_path, folder_bytes, name, damage
):
    start(tiny(epochs=1), corpus, tmp_path).run()
    file = tmp_path / name
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = content.index(
            load_checkpoint(file, KIND)["model"]["decoder.weight"].numpy().tobytes()
        )
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "garbage":
        file.write_bytes(b"not a checkpoint" * 99)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        torch.save({"model": torch.zeros(3)}, file)
    before = folder_bytes(tmp_path)
    with pytest.raises(CheckpointError, match=f"expected a checkpoint .*{name}") as error:
        resume(tmp_path, corpus)
    assert "\n" not in str(error.value)
    assert folder_bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("training", None),
        ("training", {}),
        ("model", {}),
        ("vocabulary", ["a", "b"]),
        ("config", {"hidden": 3}),
    ],
)
def test_checkpoint_with_parts_missing(tiny, corpus, tmp_path, part, value):
    start(tiny(epochs=1), corpus, tmp_path).run()
    content = load_checkpoint(tmp_path / "last.pt", KIND)
    content[part] = value
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"^expected [^\n]*$"):
        resume(tmp_path, corpus)

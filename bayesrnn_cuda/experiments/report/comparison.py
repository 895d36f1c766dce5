"""The paper's comparison: standard, naive, Bayesian; same architecture, text, schedule."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...cli import UserError
from ..language.model import LanguageModelConfig
from ..language.task import LanguageModelTask
from ..language.text import load_corpus
from ..training.checkpoint import write_text
from ..training.distributed import ALONE, Workers
from ..training.plots import comparison_figure, save_figure
from ..training.runs import RunFolder, deadline_after
from ..training.trainer import RunResult, Trainer, read_run

# dropout_kind: (name in the paper, its folder)
MODELS = {
    "none": ("standard", "standard"),
    "naive": ("naive dropout", "naive"),
    "bayesian": ("Bayesian", "bayesian"),
}


@dataclass(frozen=True)
class Comparison:
    """Results by dropout_kind, and the figure of the learning curves if it could be drawn."""

    results: dict[str, RunResult]
    figure: Path | None

    def table(self) -> str:
        """One row a model: perplexities of its epoch with the best validation."""
        rows = [("perplexity", "valid", "(epoch)", "test", "test, MC dropout")]
        for kind, result in self.results.items():
            final = result.final
            mc = final["test_perplexity_mc"]
            rows.append(
                (
                    MODELS[kind][0],
                    f"{final['valid_perplexity']:.2f}",
                    f"({result.best_epoch})",
                    f"{final['test_perplexity']:.2f}",
                    "-" if mc is None else f"{mc:.2f}",
                )
            )
        return "\n".join(
            f"{name:<14}{valid:>9} {epoch:<8}{test:>9}{mc:>18}".rstrip()
            for name, valid, epoch, test, mc in rows
        )


def compare(
    out: Path, given: Mapping[str, Any], workers: Workers = ALONE, *, resume: bool = False
) -> Comparison:
    """Trains the three models one after another, each in its own folder under `out`.

    Args:
        out: a new or empty folder, or that of the comparison to resume.
        given: options that differ from LanguageModelConfig's defaults; not dropout_kind.
            max_minutes bounds the three together.
        workers: the processes that train together.
        resume: goes on with the runs that are there; finished ones are only tested again.

    Raises:
        UserError, Interrupted, TrainingDiverged: as Trainer.
    """
    runs = {kind: out / folder for kind, (_, folder) in MODELS.items()}
    begun = {}
    if resume:
        begun = {
            kind: read_run(LanguageModelTask, path, given)
            for kind, path in runs.items()
            if RunFolder(path).exists()
        }
        if not begun:
            raise UserError(
                f"argument --resume: expected a comparison in '{out}', got no run there"
            )
        config = next(iter(begun.values()))[1]
    else:
        resumable = any(RunFolder(path).exists() for path in runs.values())
        RunFolder(out).check_new(runs.values(), resumable=resumable)
        config = LanguageModelConfig(**given)
    workers.barrier()  # all have seen the folders as they were
    corpus = load_corpus(config.data, config.min_count)
    if workers.main:
        print(corpus.describe(), flush=True)
    deadline, results = deadline_after(config.max_minutes), {}
    for kind, path in runs.items():
        if kind in begun:
            content, its_config = begun.pop(kind)
            task = LanguageModelTask.restore(content, its_config, corpus, workers)
            trainer = Trainer.resume(content, task, path)
        else:
            task = LanguageModelTask(replace(config, dropout_kind=kind), corpus, workers)
            trainer = Trainer.start(task, path)
        if workers.main:
            print(f"\n{MODELS[kind][0]}: {task.describe_model()}", flush=True)
        results[kind] = trainer.run(deadline)
    if not workers.main:
        return Comparison(results, None)
    finals = {kind: result.final for kind, result in results.items()}
    write_text(out / "comparison.json", json.dumps(finals, indent=2) + "\n")
    figure = out / "curves.png"
    histories = {MODELS[kind][0]: result.history for kind, result in results.items()}
    drawn = save_figure(figure, comparison_figure, histories)
    return Comparison(results, figure if drawn else None)

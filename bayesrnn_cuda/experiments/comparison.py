"""The paper's comparison: standard, naive, Bayesian; same architecture, text, schedule."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoint import write_text
from .configuration import UserError
from .language_model import LanguageModelConfig
from .plots import comparison_figure, save_figure
from .runs import RunFolder
from .text import load_corpus
from .training import RunResult, Trainer, read_run

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
            mc = "-" if result.test_mc is None else f"{result.test_mc:.2f}"
            valid, epoch = f"{result.valid:.2f}", f"({result.best_epoch})"
            rows.append((MODELS[kind][0], valid, epoch, f"{result.test:.2f}", mc))
        return "\n".join(
            f"{name:<14}{valid:>9} {epoch:<8}{test:>9}{mc:>18}".rstrip()
            for name, valid, epoch, test, mc in rows
        )


def compare(out: Path, given: Mapping[str, Any], *, resume: bool = False) -> Comparison:
    """Trains the three models one after another, each in its own folder under `out`.

    Args:
        out: a new or empty folder, or that of the comparison to resume.
        given: options that differ from LanguageModelConfig's defaults; not dropout_kind.
        resume: goes on with the runs that are there; finished ones are only tested again.

    Raises:
        UserError, Interrupted, TrainingDiverged: as Trainer.
    """
    runs = {kind: out / folder for kind, (_, folder) in MODELS.items()}
    begun = {}
    if resume:
        begun = {k: read_run(path, given) for k, path in runs.items() if RunFolder(path).exists()}
        if not begun:
            raise UserError(
                f"argument --resume: expected a comparison in '{out}', got no run there"
            )
        config = next(iter(begun.values()))[1]
    else:
        RunFolder(out).check_new()
        config = LanguageModelConfig(**given)
    corpus = load_corpus(config.data, config.min_count)
    print(corpus.describe(), flush=True)
    results = {}
    for kind, path in runs.items():
        if kind in begun:
            trainer = Trainer.resume(*begun.pop(kind), corpus, path)
        else:
            trainer = Trainer.start(replace(config, dropout_kind=kind), corpus, path)
        print(f"\n{MODELS[kind][0]}: {trainer.describe()}", flush=True)
        results[kind] = trainer.run()
    write_text(out / "comparison.json", json.dumps(_summary(results), indent=2) + "\n")
    figure = out / "curves.png"
    histories = {MODELS[kind][0]: result.history for kind, result in results.items()}
    drawn = save_figure(figure, comparison_figure, histories)
    return Comparison(results, figure if drawn else None)


def _summary(results: Mapping[str, RunResult]) -> dict[str, Any]:
    """The figures of the table, by dropout_kind."""
    figures = {kind: asdict(result) for kind, result in results.items()}
    for values in figures.values():
        del values["history"]
    return figures

"""Small runs of the language model: started, resumed, read back."""

import json
from pathlib import Path

from bayesrnn_cuda.experiments.language.model import LanguageModelConfig
from bayesrnn_cuda.experiments.language.task import LanguageModelTask
from bayesrnn_cuda.experiments.language.text import Corpus
from bayesrnn_cuda.experiments.training.distributed import ALONE, Workers
from bayesrnn_cuda.experiments.training.trainer import Trainer, read_run

TIMES = ("seconds", "tokens_per_second")


def start(
    config: LanguageModelConfig, corpus: Corpus, path: Path, workers: Workers = ALONE
) -> Trainer:
    """A new run."""
    return Trainer.start(LanguageModelTask(config, corpus, workers), path)


def resume(path: Path, corpus: Corpus, workers: Workers = ALONE, **given) -> Trainer:
    """The run in `path`, with some options given anew."""
    content, config = read_run(LanguageModelTask, path, given)
    task = LanguageModelTask.restore(content, config, corpus, workers)
    return Trainer.resume(content, task, path)


def metrics(path: Path) -> list[dict]:
    """Lines of metrics.jsonl without what depends on the clock."""
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]

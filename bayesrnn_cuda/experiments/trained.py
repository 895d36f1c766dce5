"""Trained models of runs, for the actions that predict with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli import UserError
from .training.checkpoint import load_checkpoint
from .training.command_line import about
from .training.runs import RunFolder, json_objects
from .training.task import Task


def load_trained(path: Path, tasks: Sequence[type[Task]]) -> tuple[type[Task], dict[str, Any]]:
    """Which of the tasks the run or checkpoint at `path` is of, and the content of its checkpoint.

    Args:
        path: run folder (the epoch that its test is of) or checkpoint.
        tasks: those that the action can take.

    Raises:
        UserError: about RUN: no run there, a damaged one, or one of another experiment.
    """
    kinds = {task.config_class.kind(): task for task in tasks}
    with about("RUN"):
        if not path.is_dir():
            content = load_checkpoint(path, *kinds)
            return kinds[content["kind"]], content
        folder = RunFolder(path)
        if not folder.config.is_file():
            raise UserError(f"argument RUN: expected the folder of a run, got '{path}'")
        text = folder.config.read_text(errors="replace")
        (config,) = json_objects("RUN", folder.config, [text])
        names = {task.config_class.experiment: task for task in tasks}
        experiment = config.get("experiment")
        if experiment not in names:
            raise UserError(
                f"argument RUN: expected a run of {' or '.join(names)}, got '{path}' of "
                f"{experiment}"
            )
        task = names[experiment]
        file = folder.best if task.tests_best else folder.last
        return task, load_checkpoint(file, task.config_class.kind())

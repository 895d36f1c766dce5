"""What the verbs that train share: how a run begins, how the program was called."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...cli import UserError
from .checkpoint import CheckpointError
from .configuration import RunConfig
from .distributed import Workers
from .runs import RunFolder
from .task import Task
from .trainer import Trainer, read_run

DIVERGED = 1


@contextmanager
def about(name: str) -> Iterator[None]:
    """Names the option that a CheckpointError is about."""
    try:
        yield
    except CheckpointError as error:
        raise UserError(f"argument {name}: {error}") from error


def open_run(
    task_class: type[Task],
    make_config: Callable[[], RunConfig],
    out: Path,
    workers: Workers,
    *,
    resumed: Mapping[str, Any] | None,
) -> Trainer:
    """The run that a verb is to train; says what it is.

    Args:
        task_class: of the experiment.
        make_config: configuration of a new run.
        out: its folder.
        workers: the processes that train together.
        resumed: the options given anew to the run in `out`, which is to be continued; None: a new
            run.

    Raises:
        UserError: a mistake in the options, the folder or the data.
    """
    if resumed is None:
        config = make_config()
        RunFolder(out).check_new()
        trainer = Trainer.start(task_class.load(config, workers), out)
    else:
        with about("--resume"):
            content, config = read_run(task_class, out, resumed)
            data = task_class.load_data(config)
            task = task_class.restore(content, config, data, workers)
            trainer = Trainer.resume(content, task, out)
    if workers.main:
        print(trainer.task.describe(), flush=True)
    return trainer


def command(*arguments: str) -> str:
    """The command line that calls this program as it was called, with other arguments."""
    name = Path(sys.argv[0]).name
    program = [sys.executable, "-m", "bayesrnn_cuda"] if name == "__main__.py" else [name]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        processes = os.environ["LOCAL_WORLD_SIZE"]
        program = ["torchrun", "--nproc-per-node", processes, "-m", "bayesrnn_cuda"]
    return shlex.join([*program, *arguments])

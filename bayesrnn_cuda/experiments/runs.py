"""What every kind of run shares: its folder, its progress bar, and how it is interrupted."""

import functools
import json
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .checkpoint import write_text
from .configuration import UserError

_GRACE = 1.0  # seconds; a repeated signal within is the same one, from terminal and make both


class RunFolder:
    """Names of the files of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.curves = path / "curves.png"

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.last.is_file()

    def check_new(self) -> None:
        """Raises UserError unless the folder is missing or empty."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"argument --out: expected a folder, got the file '{self.path}'")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"argument --out: expected a new or empty folder, got '{self.path}' with files in "
                "it; "
                "add --resume to continue its run"
            )

    def check_resumable(self) -> None:
        """Raises UserError unless the folder holds a run that can go on."""
        if not self.exists():
            raise UserError(
                f"argument --resume: expected a run in '{self.path}', got no {self.last.name} there"
            )

    def create(self) -> None:
        """Makes the folder if it is missing. Raises UserError if that cannot be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"argument --out: expected a folder that can be made, got '{self.path}' "
                f"({error.strerror})"
            ) from error

    def write_config(self, config: dict[str, Any]) -> None:
        """Replaces config.json."""
        write_text(self.config, json.dumps(config, indent=2) + "\n")

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        """Replaces metrics.jsonl by one line a record."""
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in records))


def named_device(name: str) -> torch.device:
    """The CPU or CUDA device of that name, present or not. Raises UserError for another name."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"argument --device: expected cpu, cuda or cuda:N, got '{name}'")
    return device


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the work stopped at a clean point.

    Args:
        number: the signal.
        where: what was under way.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}".rstrip())
        self.number = number


class Interruption:
    """Makes SIGINT and SIGTERM wait for the next `check()`; a second one later on does not."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._number: int | None = None
        self._time = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        # Python allows signal handlers in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        if self._number is not None:
            raise Interrupted(self._number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None and time.monotonic() - self._time > _GRACE:
            raise KeyboardInterrupt
        self._number, self._time = number, time.monotonic()


class _NoBar:
    """Stands for the progress bar where there is none."""

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, n: int) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass


def progress_bar(description: str, *, total: int, initial: int = 0) -> Any:
    """A tqdm bar over tokens on a terminal; without tqdm none, and a note once."""
    try:
        from tqdm import tqdm
    except ImportError:
        note_once("no progress bar: tqdm is missing, pip install 'bayesrnn_cuda[train]' brings it")
        return _NoBar()
    # disable=None: only where stderr is a terminal.
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit="tok",
        unit_scale=True,
        leave=False,
        disable=None,
    )


@functools.cache
def note_once(text: str) -> None:
    """Prints a note to stderr, the first time only."""
    print(f"bayesrnn: note: {text}", file=sys.stderr)

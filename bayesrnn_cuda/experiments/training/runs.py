"""What every kind of run shares: its folder, how it shows its progress, how it is interrupted."""

import fcntl
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ...cli import UserError
from .checkpoint import write_text

OUT_OF_TIME = 1000  # above every signal
OUT_OF_TIME_STATUS = 3
# May differ from those of a finished run, which is finished all the same.
_HOW = {"data", "device", "engine", "max_minutes", "tensorboard"}
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

    def finished(self, options: Mapping[str, Any]) -> bool:
        """Whether the run is at its end and the options ask for no more."""
        if not self.exists():
            return False
        records, config = self.records(), self._config()
        same = all(config.get(name) == value for name, value in options.items() if name not in _HOW)
        return same and bool(config and records) and bool(records[-1].get("final"))

    def records(self) -> list[dict[str, Any]]:
        """Those in metrics.jsonl, without what cannot be read: a resumed run writes them anew."""
        return [record for record in map(_json_object, _text(self.metrics).splitlines()) if record]

    def _config(self) -> dict[str, Any]:
        """config.json, or {} where there is none that can be read."""
        return _json_object(_text(self.config))

    def check_new(self, members: Iterable[Path] = (), *, resumable: bool | None = None) -> None:
        """Raises UserError unless the folder is missing or empty, but for what a run that ended
        before its first checkpoint has left there or in the folders of `members`.

        Args:
            members: folders of runs directly below.
            resumable: whether the message is to offer --resume; None: where there is a checkpoint.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"argument --out: expected a folder, got the file '{self.path}'")
        files = set(self.path.iterdir()) if self.path.is_dir() else set()
        if files - self._beginning() - set(members):
            offer = self.exists() if resumable is None else resumable
            hint = "; add --resume to continue its run" if offer else ""
            raise UserError(
                f"argument --out: expected a new or empty folder, got '{self.path}' with files in "
                f"it{hint}"
            )
        for path in files & set(members):
            RunFolder(path).check_new()

    def _beginning(self) -> set[Path]:
        """The files of a run that has no checkpoint yet: config.json, and no record."""
        files = (self.config, self.metrics, self.last)
        found = {path.with_name(f"{path.name}.tmp") for path in files}
        if "experiment" in self._config():
            found.add(self.config)
        if self.metrics.is_file() and self.metrics.stat().st_size == 0:
            found.add(self.metrics)
        return found

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Holds the folder, which must be there, against other processes; gives its descriptor.

        The lock ends with the last process that has the descriptor open, however that ends, and
        leaves no file behind.

        Raises:
            UserError: another process has it.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    "argument --out: expected a folder that no other process is at work in, got "
                    f"'{self.path}'"
                ) from None
            yield descriptor
        finally:
            os.close(descriptor)

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


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _json_object(text: str) -> dict[str, Any]:
    """The object, or {} where it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def json_objects(argument: str, path: Path, texts: Iterable[str]) -> list[dict[str, Any]]:
    """The JSON object of each of the texts, which are lines of `path` or all of it.

    Raises:
        UserError: about that argument, naming the line, if one is none.
    """
    values = []
    for number, text in enumerate(texts, start=1):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"argument {argument}: expected JSON in '{path}', got {error.msg} in line "
                f"{number + error.lineno - 1}"
            ) from error
        if not isinstance(value, dict):
            raise UserError(
                f"argument {argument}: expected a JSON object in '{path}', got another value in "
                f"line {number}"
            )
        values.append(value)
    return values


class Interrupted(Exception):
    """A signal arrived or the time was up, and the work stopped at a clean point.

    Args:
        number: the signal, or OUT_OF_TIME.
        where: what was under way.
    """

    def __init__(self, number: int, where: str = "") -> None:
        cause = "--max-minutes" if number == OUT_OF_TIME else signal.Signals(number).name
        super().__init__(f"stopped by {cause} {where}".rstrip())
        self.number = number

    @property
    def status(self) -> int:
        """Exit status of the program: 3 out of time, 128 + signal as shells have it."""
        return OUT_OF_TIME_STATUS if self.number == OUT_OF_TIME else 128 + self.number


class Interruption:
    """Makes SIGINT, SIGTERM and SIGHUP wait for the next `check()`; a second one does not.

    SIGHUP says that the terminal was closed. Under nohup it is ignored, and stays so.

    Attributes:
        deadline: when the time is up, by time.monotonic(); None: never.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.deadline: float | None = None
        self._number = 0
        self._time = 0.0
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> "Interruption":
        # Python allows signal handlers in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._terminals = [number for number in (1, 2) if os.isatty(number)]
            self._previous = {
                number: signal.signal(number, self._note)
                for number in self.signals
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
            }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def number(self) -> int:
        """The signal that has arrived, OUT_OF_TIME, or 0: nothing speaks against going on."""
        if not self._number and self.deadline is not None and time.monotonic() >= self.deadline:
            return OUT_OF_TIME
        return self._number

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived or the time is up."""
        if number := self.number:
            raise Interrupted(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._number and time.monotonic() - self._time > _GRACE:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            self._leave_terminal()
        self._number, self._time = number, time.monotonic()

    def _leave_terminal(self) -> None:
        """Lets what is printed go nowhere where the terminal is gone: an error of the progress bar
        would end the run before it is saved."""
        for number in self._terminals:
            if not os.isatty(number):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)


def deadline_after(minutes: float | None) -> float | None:
    """Deadline of an Interruption, `minutes` from now; None: no limit."""
    return None if minutes is None else time.monotonic() + 60 * minutes


class _NoBar:
    """Stands for the progress bar where there is none."""

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, *arguments: Any, **settings: Any) -> None:
        pass

    set_postfix_str = update


def progress_bar(
    description: str, *, total: int, unit: str, initial: int = 0, show: bool = True
) -> Any:
    """A tqdm bar over `unit`s on a terminal; without tqdm none, and a note once."""
    if not show:
        return _NoBar()
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
        unit=f" {unit}",
        unit_scale=True,
        leave=False,
        disable=None,
    )


def summary_writer() -> type:
    """TensorBoard's SummaryWriter. Raises UserError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "argument --tensorboard: expected the package tensorboard, got none; "
            "pip install 'bayesrnn_cuda[tensorboard]' brings it"
        ) from None
    return SummaryWriter


@functools.cache
def note_once(text: str) -> None:
    """Prints a note to stderr, the first time only."""
    print(f"bayesrnn: note: {text}", file=sys.stderr)

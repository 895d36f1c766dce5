"""Members of sweeps as processes side by side, each at one thread and the lowest priority."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .experiments import find
from .training.configuration import option_arguments
from .training.preset import Preset, Sweep
from .training.runs import Interrupted, Interruption, RunFolder, deadline_after

FAILED = 1
_POLL = 0.3  # seconds; below the second within which a repeated signal counts as one
_REFRESH = {True: 2, False: 300}  # seconds between lines on progress: on a terminal, in a file
_PROGRAM = [sys.executable, "-m", "bayesrnn_cuda"]
_NICENESS = 19
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_PR_SET_PDEATHSIG = 1


@dataclass
class Member:
    """One run of the queue."""

    name: str  # as it is shown, and its folder below OUT
    preset: Preset
    path: Path  # its folder
    epochs: int  # that it is to have
    process: subprocess.Popen | None = None
    began: float = 0.0  # time.time() of the process's start
    epochs_before: int = 0  # when it started

    def records(self) -> list[dict[str, Any]]:
        """Those of its epochs so far."""
        return [record for record in RunFolder(self.path).records() if not record.get("final")]

    def seconds_an_epoch(self) -> float | None:
        """As this process has it, evaluation included, or else an earlier one; None: unknown."""
        records = self.records()
        trained = len(records) - self.epochs_before
        if self.process is not None and trained > 0:
            return (RunFolder(self.path).metrics.stat().st_mtime - self.began) / trained
        seconds = [record["seconds"] for record in records if "seconds" in record]
        return sum(seconds) / len(seconds) if seconds else None


def run_queue(names: Sequence[str], out: Path, options: Mapping[str, Any], jobs: int) -> int:
    """Runs the members of these sweeps and presets, in order, each in its folder below `out`.

    What `out` has of them already is continued, or skipped where it is finished.

    Args:
        names: of presets, sweeps and SWEEP/MEMBERs.
        out: one queue at a time has it.
        options: given instead of the presets' values.
        jobs: processes side by side.

    Returns:
        0, or FAILED if some member failed, after the others have finished.

    Raises:
        UserError: a mistake in the options, or another process is at work in the folder.
        Interrupted: by a signal or max_minutes; the members have been saved.
    """
    options = dict(options)
    deadline = deadline_after(options.pop("max_minutes", None))
    members = _members(names, out, options)
    RunFolder(out).create()
    with RunFolder(out).locked() as lock, Interruption() as interruption:
        interruption.deadline = deadline
        return _Queue(members, options, jobs, lock).run(interruption)


def _members(names: Sequence[str], out: Path, options: Mapping[str, Any]) -> list[Member]:
    """In the order of `names` and of their sweeps; of those with the same values the first."""
    members: list[Member] = []
    for name in names:
        found = find(name)
        presets = {name: found}
        if isinstance(found, Sweep):
            found.check_free(options)
            presets = {f"{name}/{label}": preset for label, preset in found.members.items()}
        for path, preset in presets.items():
            same = [m.name for m in members if m.preset.values == preset.values]
            if same:
                print(f"{path}: the same run as {same[0]}")
            else:
                epochs = preset.config(options).epochs
                members.append(Member(path, preset, out / path, epochs))
    return members


class _Queue:
    """The members that wait, run, and have ended."""

    def __init__(
        self, members: Sequence[Member], options: Mapping[str, Any], jobs: int, lock: int
    ) -> None:
        self.members, self.options, self.jobs, self.lock = members, options, jobs, lock
        finished = {m.name for m in members if RunFolder(m.path).finished(options)}
        self.waiting = [m for m in members if m.name not in finished]
        self.running: list[Member] = []
        self.failed: list[str] = []
        self.shown = 0.0  # time.monotonic() of the last line on progress
        print(
            f"{len(members)} members, {len(finished)} finished before; {self.jobs} at a time; to "
            f"pause: kill -STOP -- -{os.getpgrp()}, to go on: kill -CONT -- -{os.getpgrp()}, to "
            f"stop: kill {os.getpid()}",
            flush=True,
        )

    def run(self, interruption: Interruption) -> int:
        """Until all have ended."""
        try:
            while self.waiting or self.running:
                if number := interruption.number:
                    raise Interrupted(number, f"with {self._progress()}")
                while self.waiting and len(self.running) < self.jobs:
                    self._begin(self.waiting.pop(0))
                self._show()
                time.sleep(_POLL)
                for member in [m for m in self.running if m.process.poll() is not None]:
                    self._end(member)
        finally:
            self._line("")
            for member in self.running:
                member.process.terminate()  # saves the run
            for member in self.running:
                member.process.wait()
        print(f"{len(self.members) - len(self.failed)} of {len(self.members)} members finished")
        for text in self.failed:
            print(f"bayesrnn: {text}", file=sys.stderr)
        return FAILED if self.failed else 0

    def _begin(self, member: Member) -> None:
        folder = RunFolder(member.path)
        resumed = folder.exists()
        command = [*_PROGRAM, "experiment", "run", member.preset.name]
        command += ["--out", str(member.path), *(["--resume"] if resumed else [])]
        log = _log(member)
        log.parent.mkdir(parents=True, exist_ok=True)
        member.epochs_before, member.began = len(member.records()), time.time()
        with log.open("a") as output:
            member.process = subprocess.Popen(
                [*command, *option_arguments(self.options)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | _THREADS,
                pass_fds=[self.lock],  # so that it lasts as long as they do
                preexec_fn=_Preparation(),
            )
        self.running.append(member)
        self._say(f"{member.name}: {'goes on' if resumed else 'begins'} (log: {log})")

    def _end(self, member: Member) -> None:
        self.running.remove(member)
        status, epochs = _status(member.process), f"{len(member.records())} of {member.epochs}"
        if status == 0:
            final = (RunFolder(member.path).records() or [{}])[-1]
            words = " by patience" if final.get("ended") == "patience" else ""
            self._say(f"{member.name}: finished{words}, {epochs} epochs")
            return
        text = f"{member.name}: failed with status {status} after {epochs} epochs: {_log(member)}"
        self.failed.append(text)
        self._say(text)

    def _say(self, text: str) -> None:
        self._line("")
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def _show(self) -> None:
        """The line on progress, where it is due."""
        if time.monotonic() - self.shown >= _REFRESH[sys.stdout.isatty()]:
            self.shown = time.monotonic()
            self._line(self._progress())

    def _line(self, text: str) -> None:
        """On a terminal in place of the one before; an empty one only there."""
        if sys.stdout.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[2K{text}", end="", flush=True)
        elif text:
            print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def _progress(self) -> str:
        done = len(self.members) - len(self.waiting) - len(self.running)
        running = [f"{m.name} {len(m.records())}/{m.epochs}" for m in self.running]
        seconds = self._seconds_left()
        left = "time left unknown" if seconds is None else f"{_clock(seconds)} left at most"
        parts = [f"{done} of {len(self.members)} ended", ", ".join(running), left]
        return "; ".join(filter(None, parts))

    def _seconds_left(self) -> float | None:
        """Until the last member ends if none ends early; None: no epoch has been timed."""
        rates = {m.name: m.seconds_an_epoch() for m in self.members}
        known = [rate for rate in rates.values() if rate is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        ends = [0.0] * self.jobs  # of the processes, from now
        for member in (*self.running, *self.waiting):
            rate = rates[member.name]
            left = max(0, member.epochs - len(member.records()))
            first = ends.index(min(ends))
            ends[first] += left * (mean if rate is None else rate)
        return max(ends)


class _Preparation:
    """What a member's process does before it becomes one: it ends with the queue, and lets others
    go first.
    """

    def __init__(self) -> None:
        self.parent = os.getpid()
        # Loaded before the fork: afterwards another thread's lock may be held for ever.
        self.prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def __call__(self) -> None:
        os.nice(_NICENESS)
        if self.prctl is not None:  # on Linux
            self.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != self.parent:
                os._exit(FAILED)


def _status(process: subprocess.Popen) -> int:
    """Of an ended process, 128 + signal as shells have it."""
    code = process.returncode
    return code if code >= 0 else 128 - code


def _log(member: Member) -> Path:
    """Beside the folder, which must be empty when the run begins."""
    return member.path.with_name(f"{member.path.name}.log")


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"

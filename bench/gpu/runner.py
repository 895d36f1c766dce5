"""Runs the stages of a part: each within its time, every row saved when it is known, the summary
printed last, however the part ends."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO

from . import pool, summary
from .pool import Pool, Row
from .stages import ROOT, Stage, environment
from .summary import Outcome

RESERVE = 5.0  # seconds of the part for what comes after the last stage


class Stopped(Exception):
    """The part is to end now: a signal."""


class Runner:
    """One part. `out` gets name.jsonl, name.log and name.txt."""

    def __init__(self, out: Path, name: str, seconds: float):
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.name = out, name
        self.end = time.monotonic() + seconds - RESERVE
        self.rows: list[Row] = []
        self.outcomes: list[Outcome] = []
        (out / f"{name}.jsonl").write_text("")
        (out / f"{name}.log").write_text("")

    def run(self, stages: list[Stage]) -> int:
        """Status 0 where every stage passed."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.stop)
        stopped = ""
        try:
            for stage in stages:
                self.stage(stage)
                if stage.essential and self.outcomes[-1].all_skipped:
                    stopped = f"stopped after {stage.name}"
                    break
        except Stopped as error:
            stopped = str(error)
        text = self.save_summary(stopped)
        print("\n" + text, flush=True)
        return int(bool(stopped) or any(outcome.bad for outcome in self.outcomes))

    def stop(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut the summary off
        raise Stopped(f"stopped by {signal.Signals(number).name}")

    def stage(self, stage: Stage) -> None:
        began, first = time.monotonic(), len(self.rows)
        seconds = min(stage.seconds, self.end - began)
        self.outcomes.append(outcome := Outcome(stage.name))
        if seconds < 1:
            outcome.verdict, outcome.note = "unfinished", "not begun"
        else:
            print(f"---- {stage.name}, at most {seconds:.0f} s", flush=True)
            try:
                self.work(stage, seconds, outcome)
            except OSError as error:  # a program that is not there, a disk that is full
                outcome.verdict, outcome.note = "failed", str(error)
            finally:
                outcome.seconds = time.monotonic() - began
                outcome.count(self.rows[first:])
                self.save_summary("")
        print(outcome, flush=True)

    def work(self, stage: Stage, seconds: float, outcome: Outcome) -> None:
        first = len(self.rows)
        report = self.reporter(stage.name)
        settings = environment() | dict(stage.environment)
        if stage.settings:
            settings |= stage.settings(self.rows)
        with open(self.out / f"{self.name}.log", "ab") as log:
            log.write(f"==== {stage.name}\n".encode())
            log.flush()
            if isinstance(stage.work, Pool):
                left = pool.run(stage.work, settings, report, log, seconds)
                for job in left:
                    report({"job": job, "outcome": "unfinished"})
            else:
                self.command(stage, seconds, settings, report, log, outcome)
        for text in stage.lacks(self.rows[first:]) if stage.lacks else ():
            report({"job": "", "error": text})

    def reporter(self, stage: str) -> Callable[[Row], None]:
        """Saves a row, and prints it where it is an error, of a stage the first ones."""
        printed = 0

        def report(row: Row) -> None:
            nonlocal printed
            row = {"stage": stage, **row}
            self.rows.append(row)
            with open(self.out / f"{self.name}.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            printed += "error" in row
            if "error" in row and printed <= summary.MOST_ERRORS:
                print(f"  {summary.error_line(row)}", flush=True)

        return report

    def command(
        self, stage: Stage, seconds: float, settings: dict[str, str],
        report: Callable[[Row], None], log: IO[bytes], outcome: Outcome,
    ) -> None:  # fmt: skip
        """A program to its end or its limit, its last lines as a row."""
        assert not isinstance(stage.work, Pool)
        command = [part.format(out=self.out) for part in stage.work]
        if shutil.which(command[0], path=settings["PATH"]) is None:
            outcome.verdict, outcome.note = "skipped", f"{command[0]} is not there"
            return
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=settings, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            how = ""
            try:
                if status := process.wait(seconds):
                    how = pool.ending(status)
            except subprocess.TimeoutExpired:
                how = f"not finished in {seconds:.0f} s"
                if pool.stop(process) == pool.STUCK:
                    how += f", {pool.STUCK}"
            except Stopped:
                pool.stop(process)
                raise
            finally:
                output.seek(0)
                text = output.read()
                log.write(text)
                log.flush()
        report(tail(text.decode(errors="replace").splitlines(), how))

    def save_summary(self, stopped: str) -> str:
        """Written whole or not at all."""
        title = f"{self.name}{', ' + stopped if stopped else ''}, results in {self.out}"
        text = summary.text(title, self.outcomes, self.rows)
        temporary = self.out / f".{self.name}.txt"
        temporary.write_text(text + "\n")
        os.replace(temporary, self.out / f"{self.name}.txt")
        return text


def tail(lines: list[str], how: str) -> Row:
    """The last lines of a program, and the first that compute-sanitizer marks as its own."""
    row: Row = {"job": "", "lines": len(lines), "tail": [line[:200] for line in lines[-8:]]}
    marked = [line.strip("= ") for line in lines if line.startswith("=========")]
    if marked:
        row["findings"] = [line[:200] for line in (*marked[1:6], *marked[-1:])]
    return row | ({"error": how} if how else {})

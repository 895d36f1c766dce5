"""Worker processes that do jobs and may hang, crash, or lose their CUDA context while they do.

A job that a worker does not answer for is told in a row of its own, the worker is replaced, and the
job comes again without the part that was under way. worker.py is the other side of the pipe.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from .worker import PIPE

Row = dict[str, Any]
MOST_FAILED_STARTS = 3
REAP_SECONDS = 3.0  # a process in the driver's hands may not die; what follows must not wait
STUCK = "does not die"


@dataclass(frozen=True)
class Pool:
    """How jobs are done: `command` starts a worker."""

    command: tuple[str, ...]
    workers: int = 1
    silence: float = 20.0  # seconds without a message, after which a job hangs
    start: float = 90.0  # seconds until a worker is ready: torch may come from a cold disk
    fresh: bool = False  # a worker of its own for each job
    only: tuple[str, ...] | None = None  # of all jobs


@dataclass
class Job:
    name: str
    skip: list[str] = field(default_factory=list)
    rows: int = 0


@dataclass
class Worker:
    process: subprocess.Popen
    pipe: int
    output: IO[bytes]  # what it prints
    deadline: float
    ready: bool = False
    job: Job | None = None
    doing: str | None = None
    pending: bytes = b""
    job_output: int = 0  # where what it prints for its job begins

    def printed(self) -> int:
        """Bytes so far."""
        return os.fstat(self.output.fileno()).st_size

    def last_line(self) -> str:
        """Of what it has printed for its job, or ""."""
        # At a place of its own: to seek would move where the worker writes.
        begin = max(self.job_output, self.printed() - 4000)
        text = os.pread(self.output.fileno(), 4000, begin)
        lines = text.decode(errors="replace").split("\n")
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return next((line.strip()[:200] for line in (*fatal, *reversed(lines)) if line.strip()), "")


def stop(process: subprocess.Popen) -> str:
    """Kills a process with all its children; how it ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(REAP_SECONDS)
    except subprocess.TimeoutExpired:
        return STUCK
    return ending(process.returncode)


def ending(code: int) -> str:
    """ "died of SIGSEGV", "ended with status 1"."""
    if code >= 0:
        return f"ended with status {code}"
    with contextlib.suppress(ValueError):
        return f"died of {signal.Signals(-code).name}"
    return f"died of signal {-code}"


class Run:
    """One pool at work. `report` gets every row as it comes, `log` what the workers print."""

    def __init__(
        self, pool: Pool, environment: Mapping[str, str], report: Callable[[Row], None],
        log: IO[bytes], deadline: float,
    ):  # fmt: skip
        self.pool, self.environment, self.report, self.log = pool, environment, report, log
        self.deadline = deadline
        self.waiting: deque[Job] | None = None  # unknown until a worker tells
        self.workers: dict[int, Worker] = {}
        self.failed_starts = 0
        self.selector = selectors.DefaultSelector()

    def all(self) -> list[str]:
        """Does the jobs; the names of those that there was no time to begin."""
        try:
            while self.work_left() and time.monotonic() < self.deadline:
                self.start_workers()
                self.listen()
            if self.waiting is None and not self.failed_starts:
                self.report({"job": "start", "error": "no worker was ready in all the time"})
        finally:
            for worker in list(self.workers.values()):
                if worker.job:
                    under_way = {"doing": worker.doing} if worker.doing else {}
                    self.tell(worker.job, outcome="unfinished", **under_way)
                self.remove(worker)
            self.selector.close()
        return [job.name for job in self.waiting or ()]

    def work_left(self) -> bool:
        if self.failed_starts >= MOST_FAILED_STARTS:
            return any(worker.job for worker in self.workers.values())
        unknown = self.waiting is None
        return unknown or bool(self.waiting) or any(w.job for w in self.workers.values())

    # ---- workers

    def start_workers(self) -> None:
        wanted = self.pool.workers if self.waiting is None else len(self.waiting)
        idle = sum(worker.job is None for worker in self.workers.values())
        room = self.pool.workers - len(self.workers)
        if self.failed_starts < MOST_FAILED_STARTS:
            for _ in range(min(room, wanted - idle)):
                self.start_worker()

    def start_worker(self) -> None:
        reader, writer = os.pipe()
        output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the worker
        process = subprocess.Popen(
            self.pool.command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**self.environment, PIPE: str(writer)},
            pass_fds=[writer],
            start_new_session=True,
        )
        os.close(writer)
        deadline = time.monotonic() + self.pool.start
        worker = self.workers[reader] = Worker(process, reader, output, deadline)
        self.selector.register(reader, selectors.EVENT_READ, worker)

    def remove(self, worker: Worker) -> str:
        """Ends a worker and keeps what it printed; how it ended."""
        del self.workers[worker.pipe]
        self.selector.unregister(worker.pipe)
        os.close(worker.pipe)
        if worker.process.stdin:
            with contextlib.suppress(OSError):
                worker.process.stdin.close()
        how = stop(worker.process)
        worker.output.seek(0)
        self.log.write(worker.output.read())
        self.log.flush()
        worker.output.close()
        return how

    def give(self, worker: Worker) -> None:
        """The next job, or the end where there is none for this worker."""
        if not self.waiting:
            self.remove(worker)
            return
        job = worker.job = self.waiting.popleft()
        worker.job_output = worker.printed()
        worker.deadline = time.monotonic() + self.pool.silence
        request = json.dumps({"job": job.name, "skip": job.skip}) + "\n"
        with contextlib.suppress(BrokenPipeError):  # then the pipe ends too, which is seen
            assert worker.process.stdin
            worker.process.stdin.write(request.encode())
            worker.process.stdin.flush()

    # ---- what they say

    def listen(self) -> None:
        """Waits for messages, no longer than a worker may be silent."""
        deadlines = [self.deadline, *(worker.deadline for worker in self.workers.values())]
        timeout = max(0.0, min(deadlines) - time.monotonic())
        for key, _ in self.selector.select(timeout):
            self.read(key.data)
        now = time.monotonic()
        for worker in list(self.workers.values()):
            if now >= worker.deadline:
                self.lose(worker, hangs=True)

    def read(self, worker: Worker) -> None:
        data = os.read(worker.pipe, 1 << 16)
        if not data:
            self.lose(worker)
            return
        *lines, worker.pending = (worker.pending + data).split(b"\n")
        for line in lines:
            self.hear(worker, json.loads(line))
            if worker.pipe not in self.workers:
                break

    def hear(self, worker: Worker, message: Row) -> None:
        worker.deadline = time.monotonic() + self.pool.silence
        if "jobs" in message:
            worker.ready, self.failed_starts = True, 0
            if self.waiting is None:
                only = self.pool.only
                self.waiting = deque(
                    Job(name) for name in message["jobs"] if only is None or name in only
                )
            self.give(worker)
        elif "doing" in message:
            worker.doing = message["doing"]
        elif "row" in message and worker.job:
            self.tell(worker.job, **message["row"])
        elif "done" in message and worker.job:
            self.finish(worker, message.get("sticky"))

    def finish(self, worker: Worker, sticky: str | None) -> None:
        job, worker.job, worker.doing = worker.job, None, None
        assert job
        if sticky:
            self.tell(job, error=f"lost its CUDA context: {sticky}")
        elif not job.rows:
            self.tell(job, error="said nothing")
        if sticky or self.pool.fresh:
            self.remove(worker)
        else:
            self.give(worker)

    def lose(self, worker: Worker, hangs: bool = False) -> None:
        """A worker has ended or is silent: another takes the rest of its job."""
        if not hangs:  # it closed its pipe: let it say how
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(REAP_SECONDS)
        last, job, ready = worker.last_line(), worker.job, worker.ready
        seconds = self.pool.silence if ready else self.pool.start
        how = self.remove(worker)
        if hangs:
            how = f"no answer in {seconds:g} s" + (f", {how}" if how == STUCK else "")
        how += f": {last}" if last else ""
        if not ready:
            self.failed_starts += 1
            self.report({"job": "start", "error": how})
        elif job:
            self.tell(job, error=how, **({"doing": worker.doing} if worker.doing else {}))
            if worker.doing and worker.doing not in job.skip and self.waiting is not None:
                self.waiting.appendleft(Job(job.name, [*job.skip, worker.doing], job.rows))

    def tell(self, job: Job, **row: Any) -> None:
        job.rows += 1
        self.report({"job": job.name, **row})


def python(*arguments: str) -> tuple[str, ...]:
    """The command of a worker or stage in this Python."""
    return (sys.executable, *arguments)


def run(
    pool: Pool, environment: Mapping[str, str], report: Callable[[Row], None], log: IO[bytes],
    seconds: float,
) -> list[str]:  # fmt: skip
    """Does the jobs of a pool within `seconds`; the names of those not begun."""
    return Run(pool, environment, report, log, time.monotonic() + seconds).all()

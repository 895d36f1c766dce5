"""A worker's side of pool.py: it takes jobs by name from stdin and sends messages to a pipe.

    serve(["a", "b"], run)     run("a", skip, send) does a job and sends what it finds, row by row

Messages are lines of JSON: {"jobs": [...]} once, when it is ready; {"doing": "part of a job"}
before what might not return; {"row": {...}} for what is found; {"done": true}, with "sticky" where
the process is of no more use, because every later call of CUDA would repeat an earlier error.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

PIPE = "BENCH_GPU_PIPE"  # the descriptor that messages go to

PR_SET_PDEATHSIG = 1  # sys/prctl.h

Send = Callable[..., None]
Run = Callable[[str, Collection[str], Send], None]


def send(**message: Any) -> None:
    """One message; in one write, which a reader sees whole or not at all."""
    os.write(int(os.environ[PIPE]), (json.dumps(message) + "\n").encode())


def sticky_error() -> str | None:
    """What CUDA says once all work is done, if this process has used it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    """The type of an error, and the first line of what it says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:300]


def end_with_parent() -> None:
    """Else a job that hangs would outlive a harness that was killed, and keep the GPU."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def asked() -> Iterator[tuple[str, list[str]]]:
    """Jobs as they are asked for: (name, what to leave out of it)."""
    for line in sys.stdin:
        request = json.loads(line)
        yield request["job"], request["skip"]


def serve(jobs: Sequence[str], run: Run) -> None:
    """Does what it is asked for until stdin ends or CUDA is beyond use."""
    end_with_parent()
    send(jobs=list(jobs))
    for job, skip in asked():
        try:
            run(job, skip, send)
        except Exception as error:
            traceback.print_exc()
            send(row={"error": one_line(error)})
        if error := sticky_error():
            send(done=True, sticky=error)
            return
        send(done=True)

"""A worker of bench/gpu whose jobs end in every way that jobs on a GPU may.

gpu_stand_ins.py HOW JOB ...     HOW: well, or the worker itself is "broken" or "late"
"""

import os
import signal
import sys
import time
import types

from bench.gpu.worker import serve


def lose_context():
    """From now on CUDA repeats one error, as after an access outside of memory."""

    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)


def run(job, skip, send):
    kind = job.split()[0]
    if kind == "fail":
        raise ValueError("expected 1, got 2")
    if kind == "crash":
        print("Segmentation fault soon", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(3)
    if kind == "hang":
        time.sleep(1000)
    if kind == "half":  # a row, then no end
        send(row={"known": 1, "pid": os.getpid()})
        time.sleep(1000)
    if kind == "parts":  # b never returns
        for part in ("a", "b", "c"):
            if part not in skip:
                send(doing=part)
                if part == "b":
                    time.sleep(1000)
                send(row={"variant": part})
    if kind == "sticky":
        send(row={"known": 1})
        lose_context()
    if kind in ("pass", "sleep"):
        time.sleep(0.3 if kind == "sleep" else 0)
        send(row={"pid": os.getpid()})
    if kind == "skip":
        send(row={"outcome": "skipped", "reason": "needs a GPU"})
    # "nothing" says nothing


how, jobs = sys.argv[1], sys.argv[2:]
if how == "broken":
    raise ImportError("libcudart.so.13: cannot open shared object file")
if how == "late":
    time.sleep(1000)
serve(jobs, run)

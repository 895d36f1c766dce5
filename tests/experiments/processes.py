"""Processes as torchrun starts them, without the seconds that every start of torch takes."""

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing import connection, forkserver
from typing import Any
from unittest import mock

import torch

# What a run imports; torch's optimizers and matplotlib's figures import these late.
_PRELOADED = ["bayesrnn_cuda.__main__", "torch._dynamo", "matplotlib.backends.backend_agg"]
_TIMEOUT = 60  # seconds; a process that waits for another would wait for days


def run_processes(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in `size` processes, by rank.

    The function must be importable; `joined_workers` inside it finds the other processes. What one
    of them raises fails the test; the others are ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    # torch.set_num_threads in a process forked after torch's import may wait for ever.
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, receivers, results = [], [], {}
    try:
        for rank in range(size):
            receiver, sender = context.Pipe(duplex=False)
            call = (sender, rank, size, port, function, arguments)
            processes.append(context.Process(target=_as_rank, args=call))
            processes[-1].start()
            sender.close()
            receivers.append(receiver)
        while len(results) < size:
            waiting = [r for rank, r in enumerate(receivers) if rank not in results]
            ready = connection.wait(waiting, _TIMEOUT)
            assert ready, f"processes without an answer: {len(waiting)} of {size}"
            for receiver in ready:
                failure, content = torch.load(io.BytesIO(receiver.recv_bytes()), weights_only=False)
                assert failure is None, failure
                results[receivers.index(receiver)] = content
    finally:
        for process in processes:
            process.join(5 if len(results) == size else 0)
            process.kill()
    return [results[rank] for rank in range(size)]


def _as_rank(
    sender: connection.Connection,
    rank: int,
    size: int,
    port: int,
    function: Callable[..., Any],
    arguments: tuple,
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    failure = content = None
    try:
        content = function(*arguments)
    except BaseException:
        failure = f"in process {rank}:\n{traceback.format_exc()}"
    # As bytes: tensors would be sent as shared memory, which goes with this process.
    buffer = io.BytesIO()
    torch.save((failure, content), buffer)
    sender.send_bytes(buffer.getvalue())

"""Ctrl-C while the command line still loads torch ends it as it does later: in one line.

The package imports this before torch, which takes seconds. Other processes that import the package
keep the handler that they have.
"""

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT


def _is_command() -> bool:
    """Whether this process was started as `bayesrnn` or as `python -m bayesrnn_cuda`."""
    if sys.argv[:1] == ["-m"]:  # as it reads while the module is being found
        started = sys.orig_argv
        return started[started.index("-m") + 1 :][:1] == ["bayesrnn_cuda"]
    return os.path.basename(sys.argv[0] if sys.argv else "") == "bayesrnn"


def _end(*_: object) -> NoReturn:
    os.write(2, b"bayesrnn: interrupted\n")
    os._exit(INTERRUPTED)  # nothing is open yet, and an exception would show where torch was


def take_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again: the command has begun."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)

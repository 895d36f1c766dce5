"""Standard output and error that a program can rely on, whatever its caller has made of them."""

import contextlib
import io
import os
import sys


def open_streams() -> None:
    """Opens what the caller has closed, as `>&-` does, and lets every text be printed.

    A closed descriptor would go to the next file that is opened, a checkpoint perhaps, which then
    receives what libraries print. What the encoding does not have is printed as an escape: the
    name of a folder is no reason to lose a result.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _nowhere(number))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Lets what stdout could not take go nowhere, so that the interpreter's end does not fail."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nowhere(number: int) -> io.TextIOWrapper:
    """The null device as stream `number`, and as its descriptor unless another file has that."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(null, number)
    return open(null, "r" if number == 0 else "w", encoding="utf-8")

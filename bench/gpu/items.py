"""A worker whose jobs are tests: python -m bench.gpu.items PYTEST-ARGUMENTS

Collects once, then runs single tests as they are asked for. Nothing of pytest-xdist: a worker that
a test leaves without a CUDA context or without an end is replaced by pool.py.
"""

import os
import sys
from collections.abc import Collection

import pytest

from .worker import Send, serve


class Items:
    """In place of pytest's loop over all tests, one test a job."""

    def __init__(self) -> None:
        self.row: dict[str, object] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}

        def run(job: str, skip: Collection[str], send: Send) -> None:
            self.row = {}
            item = items[job]
            # No next test: every fixture ends with its test, so that the order does not matter.
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            send(row=self.row)

        serve(list(items), run)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for setup, call and teardown; the first that did not pass is what is told."""
        if report.when == "call":
            self.row |= {"outcome": report.outcome, "seconds": round(report.duration, 3)}
            self.row |= dict(report.user_properties)
        if report.failed:
            self.row.setdefault("error", message(report))
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self.row |= {"outcome": "skipped", "reason": reason}


def message(report: pytest.TestReport) -> str:
    """In one line what failed, and where if not in the test itself."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    when = "" if report.when == "call" else f"in {report.when}: "
    return when + " ".join(lines)[:400]


def main() -> None:
    # Not captured, because jobs come through stdin.
    options = ["-s", "-p", "no:cacheprovider", "-p", "no:terminal", "-o", "addopts="]
    arguments = [*options, *sys.argv[1:]]
    status = pytest.main(arguments, plugins=[Items()])
    sys.stdout.flush()
    os._exit(int(status))  # no handler at exit waits for a GPU that does not answer


if __name__ == "__main__":
    main()

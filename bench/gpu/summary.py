"""What a part found, in at most LENGTH bytes: verdicts first, then what failed, then figures.

The figures of a part stand whole in its rows; here each kind has its table until there is no room.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .pool import Row

LENGTH = 11_500  # of a long log often the tail alone is kept: it shall hold the whole summary
MOST_ERRORS = 25
WIDTH = 150


@dataclass
class Outcome:
    """How a stage ended. `verdict` is made of its rows unless it never had any."""

    stage: str
    verdict: str = ""
    note: str = ""
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    unfinished: int = 0

    @property
    def bad(self) -> bool:
        return self.verdict in ("failed", "unfinished")

    @property
    def all_skipped(self) -> bool:
        return bool(self.skipped) and not (self.passed or self.failed or self.unfinished)

    def count(self, rows: Sequence[Row]) -> None:
        """A job failed if one of its rows is an error, else it was skipped if one says so."""
        jobs: dict[str, str] = {}
        for row in rows:
            state = "failed" if "error" in row else row.get("outcome", "passed")
            worst = max(state, jobs.get(row["job"], "passed"), key=_ORDER.index)
            jobs[row["job"]] = worst
        states = list(jobs.values())
        self.passed, self.failed = states.count("passed"), states.count("failed")
        self.skipped, self.unfinished = states.count("skipped"), states.count("unfinished")
        if not self.verdict:
            self.verdict = "failed" if self.failed or not self.passed else "passed"
            if self.unfinished and not self.failed:
                self.verdict = "unfinished"
            if not self.passed and not self.failed:
                reasons = [row["reason"] for row in rows if row.get("reason")]
                self.note = f"nothing passed{': ' + reasons[0] if reasons else ''}"

    def __str__(self) -> str:
        counts = {
            "passed": self.passed, "failed": self.failed, "skipped": self.skipped,
            "unfinished": self.unfinished,
        }  # fmt: skip
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        note = f"{told}{', ' if told and self.note else ''}{self.note}"
        return f"{self.stage:14} {self.verdict:10} {self.seconds:5.0f} s  {note}".rstrip()


_ORDER = ("passed", "skipped", "unfinished", "failed")


def error_line(row: Row) -> str:
    """A row that is an error, in one line."""
    parts = [row["stage"], row["job"].split("::")[-1], row.get("variant", ""), row.get("doing", "")]
    where = " ".join(dict.fromkeys(part for part in parts if part))
    return f"{where}: {row['error']}"[:WIDTH]


def errors(rows: Sequence[Row]) -> Iterator[str]:
    """Those that say the same in one line."""
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "error" in row:
            alike.setdefault((row["stage"], row["error"]), []).append(row)
    for first, *others in list(alike.values())[:MOST_ERRORS]:
        yield error_line(first) + (f" (and {len(others)} more)" if others else "")
    if len(alike) > MOST_ERRORS:
        yield f"and {len(alike) - MOST_ERRORS} other errors"


def told(rows: Sequence[Row]) -> Iterator[str]:
    """The last lines of commands."""
    for row in rows:
        if row.get("tail"):
            shown = row.get("findings") or row["tail"][-2:]
            yield f"{row['stage']}, {row['lines']} lines: " + " / ".join(shown)[:500]


def rates(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each probe: its name and its numbers."""
    for row in rows:
        if row["stage"].startswith("probes") and "error" not in row:
            figures = {k: v for k, v in row.items() if k not in ("stage", "job")}
            text = ", ".join(f"{k.replace('_', ' ')} {_number(v)}" for k, v in figures.items())
            yield f"{row['job']}: {text}"[:WIDTH]


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- speed

BASELINES = ("torch", "torch float16")
_WHAT = ("forward", "forward_backward")
_HEAD = (
    "T/B/I/H, engine (=: by name): us a step forward, with backward | of a CUDA graph | wall time "
    "by torch's layer's, by its float16's | error"
)
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def speed(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each of our variants; a later row of a variant adds to the earlier."""
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["stage"].startswith("speed") and "variant" in row and "error" not in row:
            variants = cases.setdefault(row["job"], {})
            variants[row["variant"]] = {**variants.get(row["variant"], {}), **row}
    if cases:
        yield _HEAD
    for case, variants in cases.items():
        for name, row in variants.items():
            if name not in BASELINES:
                yield _figures(case, row, [variants.get(b, {}) for b in BASELINES])


def _figures(case: str, row: Row, baselines: Sequence[Row]) -> str:
    for long, short in _SHORT.items():
        case = case.replace(long, short)
    wall, graph = (
        "".join(_us(row.get(f"{kind}{what}_ms"), row["T"]) for what in _WHAT)
        for kind in ("", "graph_")
    )
    ratios = "|".join(
        "".join(_ratio(row.get(f"{what}_ms"), base.get(f"{what}_ms")) for what in _WHAT)
        for base in baselines
    )
    off = f"{row['norm_error']:.0e}" if "norm_error" in row else "-"
    engine = ("" if row["variant"] == "auto" else "=") + row.get("engine", row["variant"])
    return f"{case:26} {engine:10} {wall}|{graph}|{ratios}|{off}"


def _ratio(ours: float | None, theirs: float | None) -> str:
    return "    -" if not ours or not theirs else f"{ours / theirs:5.2f}"


def _us(milliseconds: float | None, steps: int) -> str:
    return "      -" if milliseconds is None else f"{milliseconds * 1e3 / steps:7.2f}"


def text(title: str, outcomes: Sequence[Outcome], rows: Sequence[Row]) -> str:
    """At most LENGTH bytes; what had no room is said."""
    lines = [title, *map(str, outcomes)]
    parts = [("errors", errors(rows)), ("programs", told(rows)), ("rates", rates(rows)),
             ("speed", speed(rows))]  # fmt: skip
    for heading, part in parts:
        found = list(part)
        if found:
            lines += ["", heading, *found]
    return shortened(lines)


def shortened(lines: list[str]) -> str:
    """As many whole lines as there is room for."""
    kept, room = [], LENGTH - 60
    for i, line in enumerate(lines):
        room -= len(line.encode()) + 1
        if room < 0:
            kept.append(f"and {len(lines) - i} more lines: see the rows")
            break
        kept.append(line)
    return "\n".join(kept)

"""What a benchmark shows: rows, their table, and a figure.

python -m bench.report FILE.json ...     draws a PNG beside each file, as --out does
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .options import OneLineParser

TITLES = {"forward": "forward", "forward_backward": "forward + backward", "peak": "peak memory"}


@dataclass
class Row:
    """Milliseconds of one variant in one case: medians, and the quartile range beside them.

    What was not measured is None. `ratio` is to the case's first variant, and has a key for
    whatever has been compared: forward, forward_backward, peak. `of_peak` is the part of the rate
    that the processor had at most in the same run: bench/ceiling.py.
    """

    variant: str
    forward_ms: float | None = None
    forward_backward_ms: float | None = None
    forward_spread: float | None = None
    forward_backward_spread: float | None = None
    ratio: dict[str, float] = field(default_factory=dict)
    gflops: dict[str, float] = field(default_factory=dict)
    of_peak: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None  # of forward and backward
    skipped: str | None = None


_COLUMNS: dict[str, Callable[[Row], tuple[float, str]]] = {
    "forward": lambda row: (row.forward_ms, "ms"),
    "forward_backward": lambda row: (row.forward_backward_ms, "ms"),
    "peak": lambda row: (row.peak_bytes / 2**20, "MiB"),
}


def table(results: Sequence[tuple[Any, Sequence[Row]]], head: bool = True) -> str:
    """A line per case and variant: ratio and figure of what was measured; time a step on a GPU."""
    rows = [row for _, rows in results for row in rows]
    columns = [what for what in _COLUMNS if any(what in row.ratio for row in rows)]
    steps = [what for what in columns if what != "peak" and "peak" in columns]
    lines = []
    if head:
        above = {what for row in rows for what in row.of_peak}
        titles = [
            f"{what.replace('_', '+'):>21}" + ("   of peak" if what in above else "")
            for what in columns
        ]
        lines.append(f"{'':30}{''.join(titles)}" + (f"{'us a step':>18}" if steps else ""))
    for case, rows in results:
        lines.append(str(case) + _peaks(rows))
        for row in rows:
            text = f"  {row.variant:28}" + (f"    {row.skipped}" if row.skipped else "")
            for what in row.ratio:
                value, unit = _COLUMNS[what](row)
                text += f"{row.ratio[what]:8.2f} {value:8.2f} {unit:3}"
                text += f"{row.of_peak[what]:10.2f}" if what in row.of_peak else ""
                text += " " * 10 if rows[0].of_peak and not row.of_peak else ""
            for what in steps if row.ratio else ():
                text += f"{_COLUMNS[what](row)[0] * 1e3 / case.T:9.2f}"
            lines.append(text.rstrip())
    return "\n".join(lines)


def _peaks(rows: Sequence[Row]) -> str:
    """The rates that parts of a peak are of; the clock of a processor has no fixed one."""
    rates = [rows[0].gflops[what] / part for what, part in rows[0].of_peak.items()] if rows else []
    return f"    peak {' and '.join(f'{rate:.0f}' for rate in rates)} GFLOP/s" if rates else ""


def draw(path: Path) -> None:
    """FILE.png from FILE.json: one picture for each thing compared, the line at 1 the first."""
    from matplotlib.figure import Figure

    document = json.loads(path.read_text())
    records = [record for record in document["results"] if "rows" in record]
    if not records:
        raise ValueError("no measured case")
    rows = [row for record in records for row in record["rows"]]
    panels = [
        (figure_of, what)
        for figure_of in ("ratio", "of_peak")
        for what in TITLES
        if any(what in row.get(figure_of, {}) for row in rows)
    ]
    first = dict.fromkeys(record["rows"][0]["variant"] for record in records)
    others = dict.fromkeys(row["variant"] for record in records for row in record["rows"][1:])

    figure = Figure(
        figsize=(max(7, 2 + 0.6 * len(records)), 1.5 + 2.8 * len(panels)), layout="constrained"
    )
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (figure_of, what) in zip(all_axes, panels, strict=True):
        colors = {name: f"C{i}" for i, name in enumerate(others)}
        if figure_of == "of_peak":  # the first variant has a part of it as well
            colors |= dict.fromkeys(first.keys() - others.keys(), "0.6")
        for i, (name, color) in enumerate(colors.items()):
            offset, width = (i - (len(colors) - 1) / 2) * 0.8 / len(colors), 0.8 / len(colors)
            bars = _bars(records, name, figure_of, what)
            axes.bar(
                [at + offset for at in bars], list(bars.values()), width, label=name, color=color
            )
        axes.axhline(1, color="black", linewidth=1)
        axes.set_title(TITLES[what], fontsize=10)
        unit = "bytes" if what == "peak" else "time"
        label = f"{unit} / {' or '.join(first)}" if figure_of == "ratio" else "part of the peak"
        axes.set_ylabel(label, fontsize=9)
        highest = 1.05 * max(row.get(figure_of, {}).get(what, 0) for row in rows)
        axes.set_ylim(0, max(2 if figure_of == "ratio" else 1.1, highest))
    all_axes[-1].set_xticks(
        range(len(records)), _labels(records), rotation=40, ha="right", rotation_mode="anchor"
    )
    all_axes[-1].tick_params(axis="x", labelsize=8)
    handles = all_axes[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", frameon=False, ncols=len(handles[1]))
    figure.suptitle(_title(document["machine"], records))
    figure.savefig(path.with_suffix(".png"), dpi=150)
    print(f"figure: {path.with_suffix('.png')}")


def _bars(records: list[dict[str, Any]], name: str, figure_of: str, what: str) -> dict[int, float]:
    """Figure of a variant by the case's place; a case may lack it, as older files do."""
    return {
        at: row[figure_of][what]
        for at, record in enumerate(records)
        for row in record["rows"]
        if row["variant"] == name and what in row.get(figure_of, {})
    }


def _labels(records: list[dict[str, Any]]) -> list[str]:
    """Cell and T/B/I/H, with the dtype where it differs between the cases."""
    mixed = len({record["dtype"] for record in records}) > 1
    return [
        "{cell} {T}/{B}/{I}/{H}".format(**record) + (f" {record['dtype']}" if mixed else "")
        for record in records
    ]


def _title(machine: dict[str, Any], records: list[dict[str, Any]]) -> str:
    where = machine.get("gpu", f"{machine['processor']}, {machine['threads']} threads")
    dtypes = dict.fromkeys(record["dtype"] for record in records)
    return f"{where}, {', '.join(dtypes)}; cases are T/B/I/H"


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    for path in parser.parse_args().files:
        try:
            draw(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(
                f"expected results of a benchmark in '{path}', got {type(error).__name__}: {error}"
            )


if __name__ == "__main__":
    main()

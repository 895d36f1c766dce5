"""The report's sections on forecasts: every method on every row, averaged over seeds."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from ..training.plots import save_figure
from .model import ForecastingConfig
from .presets import SWEEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..report.records import Run

# What the comparison shows: words, label of the preset, rule of its intervals.
SHOWN = (
    ("variational, max score, sure", "variational", "max, sure"),
    ("variational, max score", "variational", "max"),
    ("variational, Bonferroni", "variational", "bonferroni"),
    ("variational, noise, no calibration", "variational", "normal"),
    ("variational, masks alone", "variational", "doubt"),
    ("variational early, max score, sure", "variational-early", "max, sure"),
    ("variational early, max score", "variational-early", "max"),
    ("variational early, Bonferroni", "variational-early", "bonferroni"),
    ("variational early, masks alone", "variational-early", "doubt"),
    ("CF-RNN", "cf-rnn", "published"),
    ("CF-RNN, max score, sure", "cf-rnn", "max, sure"),
    ("CF-RNN early", "cf-rnn-early", "published"),
    ("CF-RNN early, max score, sure", "cf-rnn-early", "max, sure"),
    ("naive, max score, sure", "naive", "max, sure"),
    ("naive early, max score, sure", "naive-early", "max, sure"),
    ("adaptive CF-RNN", "adaptive", "published"),
    ("MQ-RNN", "mq-rnn", "quantiles"),
    ("DP-RNN", "dp-rnn", "doubt"),
)
# Those of the figure.
_DRAWN = (
    "variational, max score, sure",
    "variational early, max score, sure",
    "variational early, masks alone",
    "CF-RNN",
    "CF-RNN early, max score, sure",
    "naive, max score, sure",
    "MQ-RNN",
)
_COLOURS = ("#0072B2", "#56B4E9", "#000000", "#D55E00", "#E69F00", "#009E73", "#CC79A7")
_MARKERS = "oos^^Dv"


def sections(runs: Sequence["Run"], out: Path) -> list[str]:
    """Markdown of the finished runs; draws OUT/forecasting.png and OUT/forecasting-curves.png."""
    runs = [
        run
        for run in runs
        if run.final and run.preset and run.experiment == ForecastingConfig.experiment
    ]
    found = {sweep.name: _by_method(sweep, runs) for sweep in SWEEPS}
    found = {name: methods for name, methods in found.items() if any(methods.values())}
    if not found:
        return []
    chosen = [run for methods in found.values() for runs in methods.values() for run in runs]
    lines = ["## Forecasts of synthetic series", "", _words(runs, chosen), ""]
    for heading, key in (("Joint coverage, %", "joint"), ("Mean width", "width")):
        lines += [f"### {heading}", "", *_table(found, key), ""]
    figures = [("forecasting.png", "Joint coverage and width", coverage_figure)]
    if _with_curves(found):
        figures.append(("forecasting-curves.png", "Error by passes", curves_figure))
    for name, caption, draw in figures:
        if save_figure(out / name, draw, found):
            lines += [f"![{caption}]({name})", ""]
    return lines


def _words(runs: Sequence["Run"], chosen: Sequence["Run"]) -> str:
    reduced = sorted({run.status() for run in chosen if run.status()})
    left_out = [run.name for run in runs if run not in chosen]
    return (
        "Mean over seeds (standard deviation; number of seeds). In brackets CF-RNN, adaptive, "
        "MQ-RNN and DP-RNN as stored by Stankeviciute et al. (2021). A dash: too few held-out "
        "series for a finite interval."
        + (f" Not as the preset: {'; '.join(reduced)}." * bool(reduced))
        + (
            " Left out, since another run has the seed or more runs have other options: "
            f"{', '.join(left_out)}." * bool(left_out)
        )
    )


def _by_method(sweep: Any, runs: Sequence["Run"]) -> dict[str, list["Run"]]:
    """Label -> those of its runs that have the same options, one a seed."""
    return {
        label: _comparable([run for run in runs if run.preset.name == preset.name])
        for label, preset in sweep.members.items()
    }


def _comparable(runs: Sequence["Run"]) -> list["Run"]:
    """Those as the preset, or if there are none the most that have the same options; of a seed the
    first.
    """
    by_options: dict[str, dict[int, Run]] = {}
    for run in runs:
        options = str(run.preset.differences(run.config))
        by_options.setdefault(options, {}).setdefault(run.config["seed"], run)
    if not by_options:
        return []
    own = by_options.get(str({}))
    return list((own or max(by_options.values(), key=len)).values())


def _with_rule(runs: Sequence["Run"], rule: str) -> list["Run"]:
    """Those with intervals of that rule: without dropout there are none by the masks."""
    return [run for run in runs if rule in run.final["intervals"]]


def _values(runs: Sequence["Run"], rule: str, key: str) -> list[float | None]:
    return [run.final["intervals"][rule][key] for run in _with_rule(runs, rule)]


def _of_seeds(methods: dict[str, list["Run"]]) -> list["Run"]:
    """One run a seed, of whichever method: the oracle's figures are of the series alone."""
    return list({run.config["seed"]: run for runs in methods.values() for run in runs}.values())


def _table(found: dict[str, dict[str, list["Run"]]], key: str) -> list[str]:
    names = list(found)
    rows = [
        ["", *(name.removeprefix("forecasting-") for name in names)],
        ["---"] * (1 + len(names)),
    ]
    form = ".1f" if key == "joint" else ".2f"
    oracle = [_cell(_values(_of_seeds(found[name]), "oracle", key), form) for name in names]
    rows.append(["oracle (Kalman filter)", *oracle])
    for words, label, rule in SHOWN:
        cells = [_cell(_values(found[name][label], rule, key), form) for name in names]
        if any(cells):
            published = [_published(name, label, rule, key) for name in names]
            rows.append([words, *(f"{a}{b}" for a, b in zip(cells, published, strict=True))])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cell(values: Sequence[float | None], form: str) -> str:
    if not values:
        return ""
    if None in values:
        return "-"
    spread = f" ({stdev(values):{form}}; {len(values)})" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}"


def _published(name: str, label: str, rule: str, key: str) -> str:
    if rule not in ("published", "quantiles", "doubt") or label == "variational":
        return ""
    value = _expected(name, label, key)
    return "" if value is None else f" [{value}]"


def _expected(name: str, label: str, key: str) -> float | None:
    sweep = next(sweep for sweep in SWEEPS if sweep.name == name)
    return sweep.members[label].expected.get(key)


def coverage_figure(found: dict[str, dict[str, list["Run"]]]) -> "Figure":
    """Joint coverage, and width over the oracle's, of each row: one point a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    names = list(found)
    for axes, key in ((top, "joint"), (bottom, "width")):
        axes.plot(
            *zip(*_published_points(found, key), strict=True),
            linestyle="", label="CF-RNN, published", color=_COLOURS[3], marker="^", markersize=7,
            markerfacecolor="none",
        )  # fmt: skip
    drawn = [entry for entry in SHOWN if entry[0] in _DRAWN]
    for index, (words, label, rule) in enumerate(drawn):
        shift = 0.12 * (index - (len(drawn) - 1) / 2)
        for axes, key in ((top, "joint"), (bottom, "width")):
            points = [
                (at + shift, value if key == "joint" else value / run.final["oracle_width"])
                for at, name in enumerate(names)
                for run in _with_rule(found[name][label], rule)
                if (value := run.final["intervals"][rule][key]) is not None
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True), linestyle="", label=words, alpha=0.8,
                    color=_COLOURS[index], marker=_MARKERS[index], markersize=5,
                )  # fmt: skip
    top.axhline(90, color="#666666", linestyle=":", label="what is asked for")
    top.set(ylabel="joint coverage, %", ylim=(-3, 103))
    bottom.axhline(1, color="#666666", linestyle=":")
    bottom.set(ylabel="width / oracle's", ylim=(0, None))
    bottom.set_xticks(range(len(names)), [name.removeprefix("forecasting-") for name in names])
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    figure.legend(*top.get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def _with_curves(found: dict[str, dict[str, list["Run"]]]) -> list[str]:
    return [name for name in found if found[name]["cf-rnn"] and found[name]["variational"]]


def _published_points(
    found: dict[str, dict[str, list["Run"]]], key: str
) -> list[tuple[float, float]]:
    """Place and figure of the published CF-RNN, widths over the oracle's of these runs."""
    points = []
    for at, (name, methods) in enumerate(found.items()):
        published = _expected(name, "cf-rnn", key)
        if published is not None:
            width = mean(run.final["oracle_width"] for run in _of_seeds(methods))
            points.append((at, published / (width if key == "width" else 1)))
    return points


def curves_figure(found: dict[str, dict[str, list["Run"]]]) -> "Figure":
    """RMSE over the oracle's by passes, test solid and training dashed, mean over seeds."""
    from matplotlib.figure import Figure

    names = _with_curves(found)
    names = names[:: max(1, len(names) // 2)][:2]
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    colours = {"variational": _COLOURS[0], "cf-rnn": _COLOURS[3], "naive": _COLOURS[5]}
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for label, colour in colours.items():
            runs = found[name][label]
            for key, style in (("test_rmse", "-"), ("train_rmse", "--")):
                if not runs:
                    continue
                histories = zip(*(run.history for run in runs), strict=False)
                points = [
                    (
                        records[0]["epoch"] * runs[0].config["passes"],
                        mean(r[key] for r in records) / mean(r.final["oracle_rmse"] for r in runs),
                    )
                    for records in histories
                ]
                words = f"{label}, {'test' if style == '-' else 'training'}"
                axes.plot(*zip(*points, strict=True), style, color=colour, label=words)
        axes.axhline(1, color="#666666", linestyle=":", label="oracle, test")
        axes.set(xlabel="passes over the training series", title=name, ylabel="RMSE / oracle's")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure

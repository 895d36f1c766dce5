"""Learning curves as PNG files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import write_atomically
from .runs import note_once

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One record an epoch, as in metrics.jsonl.
History = Sequence[Mapping[str, Any]]


def run_figure(history: History, curves: Mapping[str, str], quantity: str) -> "Figure":
    """Learning curves of one run, by epoch; those of training are dashed.

    Args:
        history: one record an epoch.
        curves: key of the records -> legend.
        quantity: what the curves show, with its unit if it has one.
    """
    figure, axes = make_axes("epoch", quantity)
    for key, label in curves.items():
        style = {"linestyle": "--"} if key.startswith("train") else {}
        _draw(axes, [record for record in history if key in record], key, label=label, **style)
    axes.legend(frameon=False)
    return figure


def comparison_figure(histories: Mapping[str, History]) -> "Figure":
    """Validation perplexity of several runs by epoch, one curve each, the best epoch marked."""
    figure, axes = make_axes("epoch", "validation perplexity")
    for label, history in histories.items():
        (line,) = _draw(axes, history, "valid_perplexity", label=label)
        if history:
            best = min(history, key=lambda record: record["valid_perplexity"])
            axes.scatter(best["epoch"], best["valid_perplexity"], color=line.get_color(), zorder=3)
    axes.legend(frameon=False, title="dot: best epoch")
    return figure


def save_figure(path: Path, draw: Any, *arguments: Any) -> bool:
    """Writes `draw(*arguments)` as PNG and returns True; where that fails, prints a note.

    A plot costs no result: whatever goes wrong, the work that it shows is done and goes on.
    """
    try:
        canvas = _canvas_class()(draw(*arguments))
        # "tight" lets the picture grow with its legend and its title, which else cut into the axes.
        style = {"format": "png", "dpi": 150, "bbox_inches": "tight"}
        write_atomically(path, lambda file: canvas.print_figure(file, **style))
    except ImportError:
        note_once(
            f"{path} was not drawn: matplotlib is missing, pip install 'bayesrnn_cuda[train]' "
            "brings it"
        )
        return False
    except Exception as error:
        reason = (
            error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        )
        note_once(f"{path} was not drawn: {' '.join(str(reason).split())[:200]}")
        return False
    return True


def _canvas_class() -> type:
    """The canvas that draws into memory and needs no display."""
    # matplotlib reads the backend's name where it is imported, and refuses one that is not there:
    # every Jupyter sets its own for all programs that are started from it.
    named = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    return FigureCanvasAgg


def make_axes(
    x: str, y: str, *, title: str = "", size: tuple[float, float] = (6.4, 4.2)
) -> tuple[Any, Any]:
    """Figure and axes with these labels; epochs are whole, and a perplexity's axis logarithmic."""
    # Figure without pyplot: no display, no global state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=size)
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, title=title)
    if "perplexity" in y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if x == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    return figure, axes


def _draw(axes: Any, history: History, key: str, **style: Any) -> Any:
    return axes.plot(
        [record["epoch"] for record in history], [record[key] for record in history], **style
    )

"""The series of the published comparison, and every method on each of them."""

from typing import Any, NamedTuple

from ..training.preset import Preset, Sweep
from .model import ForecastingConfig

_SOURCE = "Stankeviciute et al., 2021, their repository's synthetic.ipynb"
_DRAWN = {"epochs": 10, "drawn_batches": 500}
_EARLY = {"epochs": 2}
# Method -> what it is, its values.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "variational": ("held masks, max score", {"method": "variational", "dropout": 0.25}),
    "cf-rnn": ("no dropout, conformal by Bonferroni's rule", {"method": "cf-rnn"}),
    "cf-rnn-early": ("cf-rnn stopped after 100 of 1,000 passes", {"method": "cf-rnn", **_EARLY}),
    "naive": ("dropout of the last state, max score", {"method": "naive", "dropout": 0.5}),
    "naive-early": (
        "naive stopped after 100 passes", {"method": "naive", "dropout": 0.5, **_EARLY},
    ),
    "variational-early": (
        "variational stopped after 100 passes",
        {"method": "variational", "dropout": 0.25, **_EARLY},
    ),
    "mq-rnn": ("two quantiles", {"method": "mq-rnn", **_DRAWN}),
    "dp-rnn": (
        "dropout of the last state, its deviation alone",
        {"method": "dp-rnn", "dropout": 0.5, **_DRAWN},
    ),
    "adaptive": ("cf-rnn with a learnt scale", {"method": "adaptive", "epochs": 40}),
}  # fmt: skip


class Published(NamedTuple):
    """Joint coverage in per cent and mean width, as stored in the published notebook."""

    joint: float
    width: float | None  # None: not a number there


def _pairs(joint: list[float], width: list[float | None]) -> list[Published]:
    return [Published(*pair) for pair in zip(joint, width, strict=True)]


# Setting -> method -> the level from 1 on, or for "n" the number of series.
_STATIC = {
    "cf-rnn": _pairs([92.8, 94.0, 94.6, 94.3, 94.3], [16.4, 17.0, 17.1, 17.3, 17.0]),
    "adaptive": _pairs([93.6, 94.7, 93.6, 94.2, 93.7], [21.1, 21.9, 20.8, 23.3, 21.6]),
    "mq-rnn": _pairs([65.0, 65.6, 66.4, 65.2, 67.2], [9.5, 9.6, 9.7, 9.7, 9.8]),
    "dp-rnn": _pairs([5.4, 5.6, 5.0, 4.7, 4.2], [2.8, 2.9, 2.8, 2.9, 2.9]),
}
_TIME = {
    "cf-rnn": _pairs([92.7, 92.6, 91.1, 90.6, 91.3], [19.8, 26.0, 32.8, 40.7, 49.2]),
    "adaptive": _pairs([93.2, 92.5, 91.3, 91.4, 67.5], [25.2, 31.0, None, None, 53.9]),
    "mq-rnn": _pairs([63.0, 60.8, 57.3, 57.4, 58.2], [11.5, 15.5, 20.0, 24.9, 30.6]),
    "dp-rnn": _pairs([2.8, 0.4, 0.3, 0.1, 0.1], [3.0, 3.2, 3.6, 3.9, 4.3]),
}
_COUNTS = {
    "cf-rnn": _pairs([60.0, 94.4, 93.2, 92.6], [16.3, 23.7, 21.0, 17.4]),
    "mq-rnn": _pairs([0.0, 4.2, 54.7, 67.6], [0.8, 4.7, 10.8, 11.9]),
    "dp-rnn": _pairs([6.0, 5.8, 3.6, 1.1], [4.9, 4.9, 3.7, 2.3]),
}
# Sweep -> values of its series, and what was published of them.
_ROWS: dict[str, tuple[dict[str, Any], dict[str, Published]]] = {}
for _noise, _table in (("static", _STATIC), ("time", _TIME)):
    for _level in range(1, 6):
        _ROWS[f"forecasting-{_noise}-{_level}"] = (
            {"noise": _noise, "level": _level, "series": 2000},
            {method: row[_level - 1] for method, row in _table.items()},
        )
for _index, _count in enumerate((10, 100, 1000, 10000)):
    _ROWS[f"forecasting-n-{_count}"] = (
        {"noise": "time", "level": 1, "series": _count},
        {method: row[_index] for method, row in _COUNTS.items()},
    )


def _sweep(name: str, values: dict[str, Any], published: dict[str, Published]) -> Sweep:
    series = f"{values['series']} series, {values['noise']} noise of level {values['level']}"
    members = {}
    for label, (summary, own) in METHODS.items():
        known = published.get(label)
        expected = {} if known is None else {"joint": known.joint, "width": known.width}
        members[label] = Preset(
            f"{name}/{label}",
            ForecastingConfig,
            f"{summary}; {series}",
            _SOURCE if known else "ours, on those series",
            {**values, **own},
            expected={key: value for key, value in expected.items() if value is not None},
        )
    return Sweep(
        name,
        f"forecasts of {series}",
        _SOURCE,
        members,
        # `--series` makes another row of the sweeps over it, and smaller runs of the others.
        fixed=("noise", "level", "series")
        if name.startswith("forecasting-n-")
        else ("noise", "level"),
        outcome="cf-rnn covers, mq-rnn and dp-rnn do not",
        note="Seeds are runs of their own: --seed.",
    )


SWEEPS = tuple(_sweep(name, *row) for name, row in _ROWS.items())

"""The paper's sentiment analysis: presets and sweeps, LSTM and GRU."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..training.preset import Preset, Sweep, dropout, member, models, short
from .model import SentimentConfig

_VALUES = {
    "split": "authors",
    "vocabulary": 20000,
    "seq_len": 200,
    "embedding": 128,
    "hidden": 128,
    "tie_gates": False,
    "batch_size": 128,
    "lr": 1e-3,
    "weight_decay": 1e-6,
    "mc_samples": 50,
    "mc_samples_epoch": 10,
}
# The authors' scripts: (Bayesian, naive).
_EPOCHS = {"lstm": (250, 1250), "gru": (1250, 1250)}
_SECTION = {"lstm": "section 4.1, fig. 2, 14", "gru": "section 4.4, fig. 10, 16"}
_APPENDIX = {"lstm": "app. A, fig. 13", "gru": "as app. A, fig. 13"}
_SAME_PICTURE = "the same picture as with LSTM"
_APPROXIMATION = {"lstm": "section 4.3, fig. 8", "gru": "section 4.3, fig. 17"}
_NO_SCRIPT = "No script of its own: the Bayesian one with these probabilities at 0."
_VALUES_OURS = "The paper's values are not recorded: these are ours."
P_U, P_E = "recurrent_dropout", "embedding_dropout"


def _models(cell: str) -> tuple[Preset, ...]:
    """Standard, naive, dropout LSTM (or GRU) and Bayesian; the last is the base of the sweeps."""
    name, script = cell.upper(), f"sentiment_{cell}_regression"
    bayesian_epochs, naive_epochs = _EPOCHS[cell]
    shared = {**_VALUES, "cell": cell, "epochs": bayesian_epochs}

    def model(
        kind: str,
        summary: str,
        source: str,
        values: dict[str, Any],
        outcome: str,
        note: str = "",
    ) -> Preset:
        return Preset(
            f"sentiment-{cell}-{kind}",
            SentimentConfig,
            summary,
            source,
            {**shared, **values},
            outcome=outcome if cell == "lstm" else _SAME_PICTURE,
            note=note,
        )

    return (
        model(
            "standard",
            f"{name} without dropout",
            _SECTION[cell],
            dropout("none"),
            outcome="overfits",
            note=_NO_SCRIPT,
        ),
        model(
            "naive",
            f"{name}, new masks every step",
            f"{_SECTION[cell]}; {_APPENDIX[cell]}; {script}_naive.py",
            {**dropout("naive", i=0.5, o=0.5), "epochs": naive_epochs},
            outcome="overfits",
        ),
        model(
            "naive-0.25",
            f"{name}, new masks every step, p = 0.25",
            f"{_SECTION[cell]}; {script}_naive.py",
            {**dropout("naive", i=0.25, o=0.25), "epochs": naive_epochs},
            outcome="overfits",
            note="The authors' script has 0.5.",
        ),
        model(
            f"dropout-{cell}",
            f"{name}, held masks, p_U = p_E = 0",
            _APPENDIX[cell],
            dropout("bayesian", i=0.5, o=0.5),
            outcome="the same as naive dropout",
            note=_NO_SCRIPT,
        ),
        model(
            "bayesian-0.25",
            f"{name}, Bayesian, p = 0.25 and more weight decay",
            f"{_SECTION[cell]}; the authors' Example folder",
            {**dropout("bayesian", 0.25, 0.25, 0.25, 0.25), "weight_decay": 1e-4},
            outcome="does not overfit",
            note="" if cell == "lstm" else "The authors' example has an LSTM alone.",
        ),
        model(
            "bayesian",
            f"{name}, Bayesian",
            f"{_SECTION[cell]}; {_APPROXIMATION[cell]}; {script}.py",
            dropout("bayesian", 0.5, 0.5, 0.5, 0.5),
            outcome="does not overfit, lowest error; the dropout approximation is close to MC",
        ),
    )


LSTM, GRU = _models("lstm"), _models("gru")


def _sweep(
    cell: str,
    name: str,
    summary: str,
    source: str,
    field: str,
    values: Sequence[float],
    *,
    at_p_e: Sequence[float] = (),
    fixed: Mapping[str, Any] | None = None,
    outcome: str,
    note: str = "",
) -> Sweep:
    """The Bayesian model of `cell` with `field` at each of `values`, for each p_E of `at_p_e`."""
    name = f"sentiment-{cell}-{name}"
    base = (LSTM if cell == "lstm" else GRU)[-1]
    points = [(short(value), {field: value, **(fixed or {})}) for value in values]
    if at_p_e:
        points = [
            (f"u{short(value)}-e{short(p_e)}", {field: value, P_E: p_e})
            for p_e in at_p_e
            for value in values
        ]
    return Sweep(
        name,
        summary,
        source if cell == "lstm" else f"section 4.4; as {source}",
        {label: member(name, label, base, changed) for label, changed in points},
        field=field,
        series=P_E if at_p_e else None,
        outcome=outcome if cell == "lstm" else _SAME_PICTURE,
        note=note,
    )


def _sweeps(cell: str) -> tuple[Sweep, ...]:
    return (
        _sweep(
            cell,
            "dropout",
            "p_U and p_E at 0 and 0.5",
            "section 4.2, fig. 3",
            P_U,
            (0.0, 0.5),
            at_p_e=(0.0, 0.5),
            outcome="overfits without both; p_U = 0, p_E = 0.5 is erratic",
        ),
        _sweep(
            cell,
            "weight-decay",
            "weight decays",
            "section 4.2, fig. 4",
            "weight_decay",
            (1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
            outcome="higher decay, lower error, up to about 1e-3",
            note=_VALUES_OURS,
        ),
        _sweep(
            cell,
            "lengths",
            "sequence lengths",
            "section 4.2, fig. 5",
            "seq_len",
            (20, 50, 200, 400),
            outcome="longer is better and slower",
        ),
        _sweep(
            cell,
            "p-e-50",
            "p_E at length 50",
            "section 4.2, fig. 6",
            P_E,
            (0.0, 0.25, 0.5),
            fixed={"seq_len": 50},
            outcome="lower p_E is worse",
            note=_VALUES_OURS,
        ),
        _sweep(
            cell,
            "p-e-200",
            "p_E at length 200",
            "section 4.2, fig. 7",
            P_E,
            (0.0, 0.25, 0.5),
            outcome="lower p_E is worse",
            note=_VALUES_OURS,
        ),
        _sweep(
            cell,
            "p-u",
            "p_U at p_E 0 and 0.5",
            "section 4.2, fig. 9",
            P_U,
            (0.0, 0.25, 0.5),
            at_p_e=(0.0, 0.5),
            outcome="recurrent dropout helps only once embeddings are regularised",
            note=_VALUES_OURS,
        ),
    )


PRESETS = (*LSTM, *GRU)
SWEEPS = (
    models(
        "sentiment-lstm",
        "the LSTM models",
        f"{_SECTION['lstm']}; {_APPROXIMATION['lstm']}; app. A, fig. 13",
        LSTM,
        "only the Bayesian LSTM does not overfit, and it has the lowest error",
    ),
    *_sweeps("lstm"),
    models(
        "sentiment-gru",
        "the GRU models",
        f"{_SECTION['gru']}; {_APPROXIMATION['gru']}",
        GRU,
        _SAME_PICTURE,
    ),
    *_sweeps("gru"),
)

"""The paper's experiments by name: numbers, settings, coverage, and that each one trains."""

import dataclasses
import math
import re

import pytest
import torch
from review_files import write_review_folder

from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.experiments import EXPERIMENTS, PRESETS, SWEEPS, find
from bayesrnn_cuda.experiments.forecasting.task import ForecastingTask
from bayesrnn_cuda.experiments.language.task import LanguageModelTask, learning_rate
from bayesrnn_cuda.experiments.sentiment.task import SentimentTask
from bayesrnn_cuda.experiments.training.preset import Preset, Sweep, differences_line
from bayesrnn_cuda.experiments.training.trainer import Trainer

MEMBERS = {
    preset.name: preset
    for sweep in SWEEPS.values()
    for preset in sweep.members.values()
    if preset.name not in PRESETS
}
EVERY = {**PRESETS, **MEMBERS}

# The paper: valid (as the authors count), test, MC test.
NUMBERS = {
    "ptb-small-standard": (290, 273, None),
    "ptb-small-naive": (148, 131, None),
    "ptb-small-bayesian": (126, 115, None),
    "ptb-medium-tied": (81.8, 79.7, 79.0),
    "ptb-medium-untied": (81.9, 79.7, 78.6),
    "ptb-medium-naive": (86.2, 82.7, None),
    "ptb-large-tied": (77.3, 75.0, 74.1),
    "ptb-large-untied": (77.9, 75.2, 73.4),
    "ptb-large-naive": (82.2, 78.4, None),
    "ptb-1250-untied": (79.145, 76.508, 75.06),
}
DROPOUTS = ("embedding_dropout", "input_dropout", "recurrent_dropout", "output_dropout")


def dropouts(config) -> tuple[float, ...]:
    """x, i, h, o."""
    return tuple(getattr(config, name) for name in DROPOUTS)


def differing(values: dict, other: dict) -> dict:
    return {name: values[name] for name in values if values[name] != other[name]}


def test_numbers_of_the_tables():
    for preset in PRESETS.values():
        valid, test, mc = NUMBERS.get(preset.name, (None, None, None))
        assert preset.expected.get("valid_perplexity_authors") == valid
        assert preset.expected.get("test_perplexity") == test
        assert preset.expected.get("test_perplexity_mc") == mc
    tables = EXPERIMENTS["language_model"].tables
    rows = [preset.name for rows in tables.values() for preset in rows]
    assert sorted(rows) == sorted(NUMBERS)


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18])
def test_every_figure_has_an_experiment(number):
    sources = [entry.source for entry in (*PRESETS.values(), *SWEEPS.values())]
    figures = [found for source in sources for found in re.findall(r"fig\. ([\d, ]+)", source)]
    assert any(str(number) in figure.replace(" ", "").split(",") for figure in figures)


def test_names_are_unique_and_found():
    assert not set(PRESETS) & set(SWEEPS)
    for name, preset in EVERY.items():
        assert find(name) is preset and preset.name == name
    for name, sweep in SWEEPS.items():
        assert find(name) is sweep
        for label, preset in sweep.members.items():
            assert find(f"{name}/{label}") is preset


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ptb-large-untide", r"\(closest: ptb-large-untied, .*\), got 'ptb-large-untide'"),
        ("xyzzy", r"\('bayesrnn experiment list' shows them\), got 'xyzzy'"),
        ("sentiment-lstm-lengths/51", "expected one of 20, 50, 200, 400 in .*, got '51'"),
        ("sentiment-lstm-lengths/", "expected one of 20, 50, 200, 400 in .*, got ''"),
        ("ptb-large-untied/x", "expected a preset or a sweep"),
    ],
)
def test_unknown_names(name, expected):
    with pytest.raises(UserError, match=f"^argument NAME: .*{expected}"):
        find(name)


def test_large_model_is_the_authors():
    config = PRESETS["ptb-large-untied"].config()
    shape = (config.cell, config.layers, config.hidden, config.embedding)
    assert shape == ("lstm", 2, 1500, 1500)
    assert (config.batch_size, config.seq_len, config.state) == (20, 35, "carry")
    assert dropouts(config) == (0.3, 0.5, 0.3, 0.5) and not config.tie_gates
    assert (config.init_range, config.clip, config.weight_decay) == (0.04, 10, 1e-7)
    assert (config.optimizer, config.epochs) == ("sgd", 55)
    rates = [learning_rate(config, epoch) for epoch in (1, 11, 12, 55)]
    assert rates == pytest.approx([1, 1, 1 / 1.15, 1.15**-44])
    assert (config.mc_samples, config.mc_masks) == (2000, "pass")
    assert not config.mc_embedding_dropout


def test_other_language_models_differ_from_it_as_they_should():
    large = vars(PRESETS["ptb-large-untied"].config())

    def differences(name: str) -> dict:
        found = differing(vars(PRESETS[name].config()), large)
        return {key: value for key, value in found.items() if key != "preset"}

    naive = {"dropout_kind": "naive", "embedding_dropout": 0, "recurrent_dropout": 0}
    assert differences("ptb-large-tied") == {"tie_gates": True}
    assert differences("ptb-1250-untied") == {"hidden": 1250, "embedding": 1250}
    assert differences("ptb-large-naive") == {
        **naive,
        "input_dropout": 0.65,
        "output_dropout": 0.65,
        "weight_decay": 0,
        "lr_constant_epochs": 15,
    }
    medium = {
        "hidden": 650,
        "embedding": 650,
        "init_range": 0.05,
        "clip": 5,
        "epochs": 39,
        "lr_decay": 1.25,
        "lr_constant_epochs": 6,
    }
    probabilities = dict(zip(DROPOUTS, (0.2, 0.35, 0.2, 0.35), strict=True))
    assert differences("ptb-medium-untied") == {**medium, **probabilities}
    assert differences("ptb-medium-tied") == {**medium, **probabilities, "tie_gates": True}
    # its input and output probabilities are the large model's, 0.5
    assert differences("ptb-medium-naive") == {**medium, **naive, "weight_decay": 0}
    assert "unverified" in PRESETS["ptb-medium-untied"].note


def test_small_models_are_the_authors():
    config = PRESETS["ptb-small-bayesian"].config()
    assert (config.layers, config.hidden, config.embedding, config.cell) == (2, 200, 200, "lstm")
    assert (config.batch_size, config.seq_len, config.state) == (20, 20, "zero")
    assert dropouts(config) == (0.25,) * 4 and config.dropout_kind == "bayesian"
    assert (config.init_range, config.clip, config.weight_decay) == (0.1, 5, 1e-5)
    assert [learning_rate(config, epoch) for epoch in (1, 180)] == [1, 1]
    assert (config.optimizer, config.epochs) == ("sgd", 180)
    assert (config.mc_samples, config.mc_masks, config.mc_embedding_dropout) == (10, "window", True)

    standard, naive, half, lstm, tied = (
        PRESETS[f"ptb-small-{name}"].config()
        for name in ("standard", "naive", "naive-0.5", "dropout-lstm", "bayesian-tied")
    )
    assert (standard.dropout_kind, dropouts(standard)) == ("none", (0,) * 4)
    assert (naive.dropout_kind, dropouts(naive)) == ("naive", (0, 0.25, 0, 0.25))
    assert (half.dropout_kind, dropouts(half)) == ("naive", (0, 0.5, 0, 0.5))
    assert (lstm.dropout_kind, dropouts(lstm)) == ("bayesian", (0, 0.25, 0, 0.25))
    assert tied.tie_gates and dropouts(tied) == (0.25,) * 4
    decays = [each.weight_decay for each in (standard, naive, half, lstm, tied)]
    assert decays == [0, 0, 0, 1e-5, 1e-5]


def test_recorded_settings_of_the_small_model():
    settings = {
        label: (dropouts(preset.config()), preset.config().weight_decay)
        for label, preset in SWEEPS["ptb-small-settings"].members.items()
    }
    assert settings == {
        "p12": ((0, 0.5, 0, 0.5), 0),
        "p13": ((0.1, 0.5, 0.1, 0.5), 0),
        "p14": ((0.25, 0.25, 0.25, 0.25), 0),
        "p15": ((0.4, 0.4, 0.4, 0.4), 0),
        "p16": ((0.2, 0.5, 0.2, 0.5), 0),
        "p17": ((0.25, 0.25, 0.25, 0.25), 1e-6),
        "p18": ((0.25, 0.25, 0.25, 0.25), 1e-4),
        "p19": ((0.25, 0.25, 0.25, 0.25), 1e-5),
        "p20": ((0.5, 0.5, 0.5, 0.5), 1e-5),
    }


@pytest.mark.parametrize(("cell", "epochs"), [("lstm", (250, 1250)), ("gru", (1250, 1250))])
def test_sentiment_models_are_the_authors(cell, epochs):
    bayesian = PRESETS[f"sentiment-{cell}-bayesian"].config()
    assert bayesian.cell == cell and bayesian.split == "authors"
    assert (bayesian.seq_len, bayesian.vocabulary) == (200, 20000)
    assert (bayesian.embedding, bayesian.hidden, bayesian.batch_size) == (128, 128, 128)
    assert (bayesian.lr, bayesian.weight_decay) == (1e-3, 1e-6)
    assert (bayesian.mc_samples_epoch, bayesian.mc_samples) == (10, 50)
    assert (bayesian.dropout_kind, dropouts(bayesian)) == ("bayesian", (0.5,) * 4)

    standard, naive, lstm = (
        PRESETS[f"sentiment-{cell}-{name}"].config()
        for name in ("standard", "naive", f"dropout-{cell}")
    )
    assert (standard.dropout_kind, dropouts(standard)) == ("none", (0,) * 4)
    assert (naive.dropout_kind, dropouts(naive)) == ("naive", (0, 0.5, 0, 0.5))
    assert (lstm.dropout_kind, dropouts(lstm)) == ("bayesian", (0, 0.5, 0, 0.5))
    assert (bayesian.epochs, naive.epochs) == epochs


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(
    ("name", "fields", "values"),
    [
        ("dropout", ("recurrent_dropout", "embedding_dropout"), {(0, 0), (0.5, 0), (0, 0.5)}),
        ("weight-decay", ("weight_decay",), {(1e-5,), (1e-4,), (1e-3,), (1e-2,)}),
        ("lengths", ("seq_len",), {(20,), (50,), (400,)}),
        ("p-e-50", ("embedding_dropout", "seq_len"), {(0, 50), (0.25, 50), (0.5, 50)}),
        ("p-e-200", ("embedding_dropout",), {(0,), (0.25,)}),
        (
            "p-u",
            ("recurrent_dropout", "embedding_dropout"),
            {(0, 0), (0.25, 0), (0.5, 0), (0, 0.5), (0.25, 0.5)},
        ),
    ],
)
def test_sweeps_vary_the_bayesian_model(cell, name, fields, values):
    sweep = SWEEPS[f"sentiment-{cell}-{name}"]
    base = PRESETS[f"sentiment-{cell}-bayesian"].values
    found, unchanged = set(), 0
    for preset in sweep.members.values():
        changed = differing(preset.values, base)
        assert set(changed) <= set(fields)
        unchanged += not changed
        if changed:
            found.add(tuple(preset.values[field] for field in fields))
    assert found == values
    assert unchanged == (name != "p-e-50")
    assert {sweep.field, sweep.series} - {None} <= set(fields)


def test_differences_from_the_preset():
    preset = PRESETS["ptb-small-bayesian"]
    config = preset.config({"epochs": 5, "data": "x", "seed": 3, "device": "cpu", "clip": 5.0})
    assert config.preset == "ptb-small-bayesian" and config.epochs == 5
    differences = preset.differences(dataclasses.asdict(config))
    assert differences == {"epochs": (5, 180)}
    assert differences_line(differences) == "epochs 5 (preset 180)"
    exact = preset.config({"precision": "bfloat16"})
    assert preset.differences(vars(exact)) == {"precision": ("bfloat16", "float32")}


def test_every_entry_says_what_it_is():
    for entry in (*EVERY.values(), *SWEEPS.values()):
        assert entry.summary and entry.source
        assert isinstance(entry, Preset | Sweep)
    for sweep in SWEEPS.values():
        assert sweep.outcome and len(sweep.members) > 1
        assert {preset.experiment for preset in sweep.members.values()} == {sweep.experiment}
        values = [tuple(sorted(preset.values.items())) for preset in sweep.members.values()]
        assert len(set(values)) == len(values)


@pytest.fixture(scope="module")
def data(corpus, tmp_path_factory):
    """Experiment -> its task, tiny data, options that make a preset tiny."""
    folder = write_review_folder(tmp_path_factory.mktemp("reviews"))
    sizes = {"embedding": 5, "hidden": 6, "device": "cpu"}
    reviews = SentimentTask.load_data(
        PRESETS["sentiment-lstm-bayesian"].config({"data": str(folder), "seq_len": 6})
    )
    forecasts = {"hidden": 6, "device": "cpu", "series": 40, "test_series": 8}
    series = ForecastingTask.load_data(EVERY["forecasting-time-1/cf-rnn"].config(forecasts))
    return {
        "language_model": (LanguageModelTask, corpus, {**sizes, "batch_size": 4, "seq_len": 5}),
        "sentiment": (SentimentTask, reviews, {**sizes, "batch_size": 8, "seq_len": 6}),
        "forecasting": (ForecastingTask, series, forecasts),
    }


@pytest.mark.parametrize("name", EVERY)
def test_two_updates(data, tmp_path, name):
    preset = EVERY[name]
    task_class, loaded, tiny = data[preset.experiment]
    trainer = Trainer.start(task_class(preset.config(tiny), loaded), tmp_path)
    before = {key: value.clone() for key, value in trainer.task.model.state_dict().items()}
    trainer.task.start_epoch(1)
    trainer.task.model.train()
    losses = [trainer.step().item() for _ in range(2)]
    assert all(math.isfinite(loss) for loss in losses)
    fixed = ("moments", "scale.")  # of forecasts; the scale is learnt later
    for key, value in trainer.task.model.state_dict().items():
        assert torch.isfinite(value).all(), key
        assert key.startswith(fixed) or not torch.equal(value, before[key]), key

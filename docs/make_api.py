"""Writes docs/api.md from the docstrings, the schemas and the parser: `make docs`."""

import argparse
import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bayesrnn_cuda as brnn
from bayesrnn_cuda import masks
from bayesrnn_cuda.__main__ import _make_parser
from bayesrnn_cuda.experiments import experiments
from bayesrnn_cuda.experiments.language import evaluation, generation, text
from bayesrnn_cuda.experiments.language import model as language_model
from bayesrnn_cuda.experiments.report import report
from bayesrnn_cuda.experiments.sentiment import model as sentiment
from bayesrnn_cuda.experiments.sentiment import reviews
from bayesrnn_cuda.experiments.training import trainer as training

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100
_SECTIONS = {"Args": "Arguments", "Returns": "Returns", "Raises": "Raises"}

INTRODUCTION = """\
# API reference

Made from the docstrings by `make docs`; a test holds the two together. Letters are those of the
[README](../README.md#shapes-and-letters): T time steps, B sequences, I input size, H hidden size,
G gates (LSTM 4, GRU 3), D directions, S Monte Carlo samples. `p` is always the probability of
dropping, a mask is bool and True is kept. `brnn` stands for `bayesrnn_cuda`. What is refused, and
with which error, is in [limits.md](limits.md).
"""

# Heading, what stands under it, and its entries: (name as a user writes it, object).
SECTIONS: list[tuple[str, str, list[tuple[str, Any]]]] = [
    (
        "Layers",
        "Modules with the parameter names, arguments and results of torch's own.",
        [
            ("brnn.BayesianLSTM", brnn.BayesianLSTM),
            ("brnn.BayesianGRU", brnn.BayesianGRU),
            ("brnn.BayesianEmbedding", brnn.BayesianEmbedding),
            ("brnn.LockedDropout", brnn.LockedDropout),
        ],
    ),
    (
        "Prediction with uncertainty",
        "",
        [
            ("brnn.mc_dropout", brnn.mc_dropout),
            ("brnn.mc_predict", brnn.mc_predict),
            ("brnn.MCPrediction", brnn.MCPrediction),
        ],
    ),
    (
        "Prior",
        "",
        [
            ("brnn.kl_penalty", brnn.kl_penalty),
            ("brnn.weight_decay_groups", brnn.weight_decay_groups),
        ],
    ),
    (
        "Stateless layers",
        "`brnn.reference` is the same mathematics in plain PyTorch.",
        [
            ("brnn.functional.lstm", brnn.functional.lstm),
            ("brnn.functional.gru", brnn.functional.gru),
            ("brnn.reference.lstm", brnn.reference.lstm),
            ("brnn.reference.gru", brnn.reference.gru),
            ("brnn.LayerWeights", brnn.LayerWeights),
        ],
    ),
    (
        "Masks",
        "`bayesrnn_cuda.masks` serves layers of your own.",
        [
            ("brnn.LayerMasks", brnn.LayerMasks),
            ("masks.sample_layer_masks", masks.sample_layer_masks),
            ("masks.sample_keep", masks.sample_keep),
            ("masks.apply_mask", masks.apply_mask),
            ("masks.dropout_scale", masks.dropout_scale),
            ("masks.DropoutModule", masks.DropoutModule),
        ],
    ),
    (
        "Engines",
        "",
        [("brnn.plan", brnn.plan), ("brnn.Plan", brnn.Plan), ("brnn.info", brnn.info)],
    ),
]

OPS = """\
`torch.ops.bayesrnn.*`, for layers of your own: one layer and direction, functional, with fake
kernels and autograd. Shapes are those of `brnn.functional`; scales are 1 / (1 - p); `engine` is
one that runs on the device, never "reference". `save` keeps what backward needs: gates
`[T, B, G*H]` and cells or hidden_n `[T, B, H]`, which are empty without it. Wrong arguments raise
RuntimeError, which names argument, expected and actual.
"""

EXPERIMENTS = """\
`bayesrnn_cuda.experiments` has the paper's experiments. The command line is the way in; these are
what a script of your own may want. A mistake in options or data raises `configuration.UserError`.
"""
EXPERIMENT_ENTRIES: list[tuple[str, Any]] = [
    ("experiments.language.text.load_corpus", text.load_corpus),
    ("experiments.language.text.Vocabulary", text.Vocabulary),
    ("experiments.language.text.lanes", text.lanes),
    ("experiments.language.text.windows", text.windows),
    ("experiments.language.model.LanguageModel", language_model.LanguageModel),
    ("experiments.language.evaluation.mc_evaluate", evaluation.mc_evaluate),
    ("experiments.language.generation.load_model", generation.load_model),
    ("experiments.language.generation.generate", generation.generate),
    ("experiments.sentiment.reviews.load_reviews", reviews.load_reviews),
    ("experiments.sentiment.model.SentimentModel", sentiment.SentimentModel),
    ("experiments.experiments.find", experiments.find),
    ("experiments.training.trainer.Trainer", training.Trainer),
    ("experiments.report.report.write_report", report.write_report),
]

COMMAND_LINE = """\
`bayesrnn`, or `python -m bayesrnn_cuda`. A mistake is one line on stderr and exit status 2.
"""
VERBS = (
    ("train",),
    ("experiment", "list"),
    ("experiment", "run"),
    ("experiment", "report"),
    ("sample",),
    ("plan",),
    ("info",),
)


def page() -> str:
    """The whole of docs/api.md."""
    parts = [INTRODUCTION]
    documented: dict[Any, str] = {}
    for heading, introduction, entries in SECTIONS:
        parts += [f"## {heading}\n", f"{introduction}\n" if introduction else ""]
        for name, item in entries:
            parts += _entry(name, item, documented)
    parts += ["## Ops\n", OPS, _code("\n".join(schemas()))]
    parts += ["## Experiments\n", EXPERIMENTS]
    for name, item in EXPERIMENT_ENTRIES:
        parts += _entry(name, item, documented)
    parts += ["## Command line\n", COMMAND_LINE]
    for verb in VERBS:
        parts += _verb(verb)
    return "\n".join(part for part in parts if part).rstrip("\n") + "\n"


def _entry(name: str, item: Any, documented: dict[Any, str]) -> Iterator[str]:
    """Heading, signature and docstring of a function, or of a class and then its methods."""
    heading = name.removeprefix("brnn.")
    yield f"### {heading}\n"
    if not inspect.isclass(item):
        yield _code(signature(name, item))
        yield markdown(inspect.getdoc(item) or "")
        return
    yield _code(fields(item) or constructor(name, item))
    yield markdown(inspect.getdoc(item) or "")
    short = name.split(".")[-1]
    inherited: dict[str, list[str]] = {}
    for method, function in methods(item):
        raw = inspect.unwrap(getattr(function, "__func__", getattr(function, "fget", function)))
        if raw in documented:
            inherited.setdefault(documented[raw], []).append(f"`{method}`")
            continue
        documented[raw] = short
        yield f"#### {heading}.{method}\n"
        yield _code(signature(f"{short}.{method}", function))
        yield markdown(inspect.getdoc(raw) or "")
    for owner, names in inherited.items():
        yield f"As `{owner}`: {', '.join(names)}.\n"


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """(name, attribute) of the public methods and properties that this package gives the class."""
    seen = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("bayesrnn_cuda"):
            continue
        for name, value in vars(base).items():
            kinds = (Callable, property, classmethod, staticmethod)
            if name.startswith("_") or name in seen or name == "extra_repr":
                continue
            raw = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(value, kinds) and inspect.getdoc(raw):
                seen.add(name)
                yield name, value


def constructor(name: str, cls: type) -> str:
    """`name(arguments)`."""
    ours = cls.__init__.__module__.startswith("bayesrnn_cuda")
    return signature(name, cls.__init__) if ours else f"{name}()"


def signature(name: str, function: Any) -> str:
    """`name(arguments) -> result` as the source has it, in lines that fit."""
    is_property = isinstance(function, property)
    raw = inspect.unwrap(getattr(function, "__func__", getattr(function, "fget", function)))
    tree = ast.parse(textwrap.dedent(inspect.getsource(raw)))
    node = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    result = "" if raw.__name__ == "__init__" else result.replace("'", "")
    if isinstance(function, classmethod) and "." in name:
        result = re.sub(r"\b_\w+$", name.split(".")[-2], result)  # the class's own type variable
    if is_property:
        return f"{name}{result}  # property"
    managed = any("contextmanager" in ast.unparse(d) for d in node.decorator_list)
    arguments = [a for a in _arguments(node.args) if a.split(":")[0] not in ("self", "cls")]
    start = f"with {name}" if managed else name
    result = " as module" if managed else result
    line = f"{start}({', '.join(arguments)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{start}(\n" + "".join(f"    {a},\n" for a in arguments) + f"){result}"


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    yield from (_argument(*pair) for pair in zip(plain, defaults, strict=True))
    if arguments.vararg:
        yield "*" + _argument(arguments.vararg, None)
    elif arguments.kwonlyargs:
        yield "*"
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    yield from (_argument(*pair) for pair in pairs)
    if arguments.kwarg:
        yield "**" + _argument(arguments.kwarg, None)


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg
    if argument.annotation:
        text += f": {ast.unparse(argument.annotation)}"
    if default is None:
        return text
    value = ast.unparse(default).replace("'", '"')
    return f"{text} = {value}" if argument.annotation else f"{text}={value}"


def fields(cls: type) -> str:
    """The fields of a NamedTuple or a dataclass, as the source has them; "" for another class."""
    if not (hasattr(cls, "_fields") or hasattr(cls, "__dataclass_fields__")):
        return ""
    source = textwrap.dedent(inspect.getsource(cls))
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    lines = source.splitlines()
    shown = [lines[n.lineno - 1] for n in node.body if isinstance(n, ast.AnnAssign)]
    kind = "NamedTuple" if hasattr(cls, "_fields") else "frozen dataclass"
    shown = [re.sub(r"  # noqa.*", "", line) for line in shown]
    return "\n".join([f"{cls.__name__}  # {kind}", *shown])


def schemas() -> Iterator[str]:
    """What csrc/ops.cpp defines, but for the ops that serve this package alone."""
    source = (ROOT / "csrc/ops.cpp").read_text()
    for call in re.findall(r"m\.def\(\s*((?:\"(?:[^\"\\]|\\.)*\"\s*)+)\)", source):
        pieces = re.findall(r"\"((?:[^\"\\]|\\.)*)\"", call)
        schema = "".join(pieces).replace('\\"', '"')
        if re.match(r"(lstm|gru)(_backward)?\(", schema):
            whole = re.sub(r"(?<!,) ", "\0", schema)  # breaks after commas only
            yield textwrap.fill(whole, WIDTH, subsequent_indent="    ").replace("\0", " ")


def markdown(docstring: str) -> str:
    """A docstring with its sections (Args, Returns, Raises) as lists."""
    lines = []
    for line in docstring.splitlines():
        section = re.fullmatch(r"(Args|Returns|Raises):", line)
        item = re.fullmatch(r"    (\S.*?): (.*)|    (\S.*)", line)
        if section:
            lines += [f"{_SECTIONS[section[1]]}:", ""]
        elif item and item[1]:
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append(f"- {item[3]}" if item else re.sub(r"^ {6,}", "  ", line))
    return "\n".join(lines) + "\n"


def _verb(words: tuple[str, ...]) -> Iterator[str]:
    """Heading, description and options of a verb."""
    parser: argparse.ArgumentParser = _make_parser([])
    for word in words:
        (choices,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        summary = next(a.help for a in choices._choices_actions if a.dest == word)
        parser = choices.choices[word]
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    usage = [*words, *(_positional(a) for a in actions if not a.option_strings)]
    usage += ["[OPTION ...]"] if any(a.option_strings for a in actions) else []
    yield f"### bayesrnn {' '.join(words)}\n"
    yield _code(f"bayesrnn {' '.join(usage)}", "")
    yield f"{parser.description or f'{summary}.'.capitalize()}\n".replace("%%", "%")
    if actions:
        yield "| argument | |\n|---|---|"
        yield "\n".join(_option(a) for a in actions) + "\n"


def _positional(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return {"?": f"[{name}]", "+": f"{name} [{name} ...]"}.get(str(action.nargs), name)


def _option(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or action.metavar or action.dest
    value = f" {action.metavar}" if action.option_strings and action.metavar else ""
    help_text = (action.help or "") % vars(action)
    cells = (f"`{name}{value}`", re.sub(r"[<>]", r"\\\g<0>", help_text))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}\n```\n"


if __name__ == "__main__":
    (ROOT / "docs/api.md").write_text(page())

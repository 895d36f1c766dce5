"""The command line: `bayesrnn`, or `python -m bayesrnn_cuda`."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import bayesrnn_cuda as brnn

from .experiments.checkpoint import CheckpointError
from .experiments.comparison import compare
from .experiments.configuration import (
    COUNT,
    NATURAL,
    Range,
    UserError,
    add_options,
    given_options,
    number,
    resumable_flags,
    whole_number,
)
from .experiments.generation import encode_prompt, generate, load_model
from .experiments.language_model import LanguageModelConfig
from .experiments.runs import Interrupted, RunFolder
from .experiments.text import load_corpus, readable
from .experiments.training import Trainer, TrainingDiverged, read_run

USER_ERROR = 2
DIVERGED = 1
_TEMPERATURE = Range("a number in [0.01, 100]", 0.01, 100)
_DTYPES = ("float32", "float64", "bfloat16", "float16")


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line and takes no shortened options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> None:
        self.exit(USER_ERROR, f"bayesrnn: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns 0, 1 diverged, 2 mistake of the user, or 128 + signal."""
    parser = _make_parser()
    parsed = parser.parse_args(arguments)
    if not hasattr(parsed, "run"):
        parser.print_help()
        return 0
    try:
        return parsed.run(parsed)
    except (UserError, OSError) as error:
        print(f"bayesrnn: error: {error}", file=sys.stderr)
        return USER_ERROR
    except TrainingDiverged as error:
        print(f"bayesrnn: error: {error}", file=sys.stderr)
        return DIVERGED
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        print(f"bayesrnn: error: out of memory, lower the sizes: {reason}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("bayesrnn: interrupted", file=sys.stderr)
        return 130


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="bayesrnn",
        description="Variational dropout for LSTM and GRU (Gal and Ghahramani, 2016).",
        epilog="'bayesrnn VERB --help' lists the options of a verb.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=_Parser)
    _add_train(verbs)
    _add_sample(verbs)
    _add_plan(verbs)
    info = verbs.add_parser("info", help="versions, compiled architectures, engines usable here")
    info.set_defaults(run=_info)
    return parser


def _add_train(verbs: argparse._SubParsersAction) -> None:
    train = verbs.add_parser(
        "train",
        help="train a language model, or compare the three kinds of dropout",
        description=(
            "Trains a word-level language model as in the paper and reports its perplexity. The "
            "run folder holds config.json, metrics.jsonl, curves.png, best.pt and last.pt. Ctrl-C "
            "saves the run; --resume continues it exactly. Without --data it reads CPython's own "
            "documentation."
        ),
    )
    run = train.add_argument_group("run")
    run.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="run folder, new or empty (default: runs/<date>-<time>)",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out with its own options; only "
        f"{', '.join(resumable_flags(LanguageModelConfig))} may change",
    )
    run.add_argument(
        "--compare",
        action="store_true",
        help="train standard, naive and Bayesian; prints one table and draws one figure",
    )
    add_options(train, LanguageModelConfig)
    train.set_defaults(run=_train)


def _add_sample(verbs: argparse._SubParsersAction) -> None:
    sample = verbs.add_parser(
        "sample",
        help="generate text from a checkpoint",
        description="Writes text from a trained language model.",
    )
    sample.add_argument(
        "--checkpoint",
        metavar="RUN_OR_FILE",
        type=Path,
        required=True,
        help="run folder (its best epoch) or file",
    )
    sample.add_argument(
        "--length",
        metavar="N",
        type=whole_number,
        default=200,
        help="words to write (default: 200)",
    )
    sample.add_argument("--prompt", metavar="TEXT", default="", help="text to go on from")
    sample.add_argument(
        "--temperature",
        metavar="X",
        type=number,
        default=1.0,
        help="below 1: likelier text (default: 1.0)",
    )
    sample.add_argument(
        "--top-k", metavar="K", type=whole_number, help="draw among the K likeliest words only"
    )
    sample.add_argument(
        "--seed", metavar="N", type=whole_number, default=1, help="of words and masks (default: 1)"
    )
    sample.add_argument(
        "--mc", action="store_true", help="dropout on: one set of masks for the whole text"
    )
    sample.set_defaults(run=_sample)


def _add_plan(verbs: argparse._SubParsersAction) -> None:
    plan = verbs.add_parser(
        "plan",
        help="which engine runs a layer of given sizes, and why",
        description="Says which engine runs one layer of these sizes, and why. Needs no GPU.",
    )
    plan.add_argument("cell", metavar="lstm|gru", help="cell")
    for name, text in (
        ("T", "time steps"),
        ("B", "batch"),
        ("I", "input size"),
        ("H", "hidden size"),
    ):
        plan.add_argument(name, type=whole_number, help=text)
    plan.add_argument(
        "--dtype", metavar="|".join(_DTYPES), default="float32", help="(default: float32)"
    )
    plan.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:N or a GPU's name (default: cpu)"
    )
    plan.set_defaults(run=_plan)


def _train(arguments: argparse.Namespace) -> int:
    given = given_options(arguments, LanguageModelConfig)
    if "data" in given:
        given["data"] = str(Path(given["data"]).resolve())
    if arguments.resume and arguments.out is None:
        raise UserError(
            "argument --resume: expected --out DIR with the run to continue, got no --out"
        )
    if arguments.compare and "dropout_kind" in given:
        raise UserError(
            "argument --compare: expected no --dropout-kind beside it, it trains all three"
        )
    out = arguments.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    try:
        if arguments.compare:
            _compare(out, given, arguments.resume)
        else:
            _train_one(out, given, arguments.resume)
    except Interrupted as stop:
        compare_option = " --compare" if arguments.compare else ""
        print(
            f"bayesrnn: {stop}; to continue: {_command()} train{compare_option} --resume --out "
            f"{out}",
            file=sys.stderr,
        )
        return 128 + stop.number
    return 0


def _train_one(out: Path, given: dict[str, Any], resume: bool) -> None:
    if resume:
        with _about("--resume"):
            content, config = read_run(out, given)
    else:
        config = LanguageModelConfig(**given)
        RunFolder(out).check_new()
    corpus = load_corpus(config.data, config.min_count)
    if resume:
        trainer = Trainer.resume(content, config, corpus, out)
    else:
        trainer = Trainer.start(config, corpus, out)
    print(f"{corpus.describe()}\nmodel: {trainer.describe()}", flush=True)
    result = trainer.run()
    print(f"best validation perplexity {result.valid:.2f} (epoch {result.best_epoch})")
    print(f"test perplexity {result.test:.2f}, dropout approximation")
    if result.test_mc is not None:
        print(f"test perplexity {result.test_mc:.2f}, MC dropout with {config.mc_samples} samples")
    print(f"run folder: {out}")


def _compare(out: Path, given: dict[str, Any], resume: bool) -> None:
    with _about("--resume"):
        comparison = compare(out, given, resume=resume)
    print(f"\n{comparison.table()}")
    if comparison.figure is not None:
        print(f"\nlearning curves: {comparison.figure}")


def _sample(arguments: argparse.Namespace) -> int:
    _check("--length", arguments.length, COUNT)
    _check("--temperature", arguments.temperature, _TEMPERATURE)
    _check("--top-k", arguments.top_k, COUNT)
    _check("--seed", arguments.seed, NATURAL)
    with _about("--checkpoint"):
        model, vocabulary, config = load_model(arguments.checkpoint)
    if arguments.mc and not model.bayesian:
        raise UserError(
            "argument --mc: expected a model with Bayesian dropout, got one with dropout kind "
            f"{config.dropout_kind}"
        )
    tokens = generate(
        model,
        vocabulary,
        encode_prompt(arguments.prompt, vocabulary, config),
        arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        mc=arguments.mc,
        seed=arguments.seed,
    )
    print(readable(vocabulary.decode(tokens)))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.dtype not in _DTYPES:
        raise UserError(
            f"argument --dtype: expected one of {', '.join(_DTYPES)}, got '{arguments.dtype}'"
        )
    sizes = (arguments.T, arguments.B, arguments.I, arguments.H)
    try:
        plan = brnn.plan(arguments.cell, *sizes, getattr(torch, arguments.dtype), arguments.device)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error).splitlines()[0]) from error
    print(plan)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    for name, value in brnn.info().items():
        print(f"{name}: {value}")
    return 0


def _check(name: str, value: float | None, within: Range) -> None:
    if value is not None and value not in within:
        raise UserError(f"argument {name}: expected {within.words}, got {value}")


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Names the option that a CheckpointError is about."""
    try:
        yield
    except CheckpointError as error:
        raise UserError(f"argument {name}: {error}") from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch has a class of its own for devices, not for the CPU.
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text


def _command() -> str:
    """How this program was called."""
    name = Path(sys.argv[0])
    return f"{sys.executable} -m bayesrnn_cuda" if name.name == "__main__.py" else name.name


if __name__ == "__main__":
    sys.exit(main())

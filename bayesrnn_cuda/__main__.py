"""The command line: `bayesrnn`, or `python -m bayesrnn_cuda`."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .cli import USER_ERROR, Parser, UserError, add_info, add_plan, number, whole_number
from .experiments.commands import add_experiment
from .experiments.language.generation import encode_prompt, generate, load_model
from .experiments.language.model import LanguageModelConfig
from .experiments.language.task import LanguageModelTask
from .experiments.language.text import readable
from .experiments.report.comparison import compare
from .experiments.training.command_line import (
    DIVERGED,
    about,
    command,
    open_run,
)
from .experiments.training.configuration import (
    COUNT,
    NATURAL,
    Range,
    add_options,
    given_options,
    resumable_flags,
)
from .experiments.training.distributed import Workers, run_stoppable
from .experiments.training.trainer import TrainingDiverged
from .startup import INTERRUPTED, take_interrupts
from .streams import drop_output, open_streams

_TEMPERATURE = Range("a number in [0.01, 100]", 0.01, 100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Returns:
        The exit status: 0; 1, training diverged; 2, a mistake of the user; 3, stopped by
        --max-minutes, to be continued with --resume; 128 + signal, likewise; 141, nobody reads
        the output any more.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    open_streams()
    try:
        take_interrupts()
        parser = _make_parser(arguments)
        parsed = parser.parse_args(arguments)
        if not hasattr(parsed, "run"):
            parser.print_help()
            return 0
        status = parsed.run(parsed)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `bayesrnn experiment list | head`
        drop_output()
        return 128 + signal.SIGPIPE
    except (UserError, OSError) as error:
        _print_error(str(error))
        drop_output()
        return USER_ERROR
    except TrainingDiverged as error:
        _print_error(str(error))
        return DIVERGED
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        _print_error(f"out of memory, lower the sizes: {str(error).splitlines()[0]}")
        return USER_ERROR
    except KeyboardInterrupt:
        print("bayesrnn: interrupted", file=sys.stderr)
        return INTERRUPTED


def _make_parser(arguments: Sequence[str]) -> Parser:
    parser = Parser(
        prog="bayesrnn",
        description="Variational dropout for LSTM, GRU and RNN (Gal and Ghahramani, 2016).",
        epilog="'bayesrnn VERB --help' lists the options of a verb.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=Parser)
    _add_train(verbs)
    add_experiment(verbs, arguments)
    _add_sample(verbs)
    add_plan(verbs)
    add_info(verbs)
    return parser


def _add_train(verbs: argparse._SubParsersAction) -> None:
    train = verbs.add_parser(
        "train",
        help="train a language model, or compare the three kinds of dropout",
        description=(
            "Trains a word-level language model as in the paper and reports its perplexity. The "
            "run folder holds config.json, metrics.jsonl, curves.png, best.pt and last.pt. Ctrl-C "
            "saves the run; --resume continues it exactly. Without --data it reads CPython's own "
            "documentation. Under torchrun the processes share every batch. Exit status: 0 "
            "finished, 1 diverged, 2 mistake, 3 stopped by --max-minutes, 128 + number stopped by "
            "a signal; after the last two --resume goes on."
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


def _train(arguments: argparse.Namespace) -> int:
    given = given_options(arguments, LanguageModelConfig)
    if arguments.resume and arguments.out is None:
        raise UserError(
            "argument --resume: expected --out DIR with the run to continue, got no --out"
        )
    if arguments.compare and "dropout_kind" in given:
        raise UserError(
            "argument --compare: expected no --dropout-kind beside it, it trains all three"
        )
    out = arguments.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    work = _compare if arguments.compare else _train_one
    again = ["train", *(["--compare"] if arguments.compare else []), "--resume", "--out", str(out)]
    return run_stoppable(
        lambda workers: work(out, given, arguments.resume, workers), command(*again)
    )


def _train_one(out: Path, given: dict[str, Any], resume: bool, workers: Workers) -> None:
    trainer = open_run(
        LanguageModelTask,
        lambda: LanguageModelConfig(**given),
        out,
        workers,
        resumed=given if resume else None,
    )
    final = trainer.run().final
    if not workers.main:
        return
    best = f"{final['valid_perplexity']:.2f} (epoch {final['best_epoch']})"
    print(f"best validation perplexity {best}")
    print(f"test perplexity {final['test_perplexity']:.2f}, dropout approximation")
    if final["mc_samples"]:
        sampled = f"MC dropout with {final['mc_samples']} samples"
        print(f"test perplexity {final['test_perplexity_mc']:.2f}, {sampled}")
    print(f"run folder: {out}")


def _compare(out: Path, given: dict[str, Any], resume: bool, workers: Workers) -> None:
    with about("--resume"):
        comparison = compare(out, given, workers, resume=resume)
    if not workers.main:
        return
    print(f"\n{comparison.table()}")
    if comparison.figure is not None:
        print(f"\nlearning curves: {comparison.figure}")


def _sample(arguments: argparse.Namespace) -> int:
    _check("--length", arguments.length, COUNT)
    _check("--temperature", arguments.temperature, _TEMPERATURE)
    _check("--top-k", arguments.top_k, COUNT)
    _check("--seed", arguments.seed, NATURAL)
    with about("--checkpoint"):
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


def _check(name: str, value: float | None, within: Range) -> None:
    if value is not None and value not in within:
        raise UserError(f"argument {name}: expected {within.words}, got {value}")


def _print_error(text: str) -> None:
    """One line on stderr; of several processes, all but the first say which they are."""
    rank = os.environ.get("RANK", "0")
    print(f"bayesrnn: error: {'' if rank == '0' else f'process {rank}: '}{text}", file=sys.stderr)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch has a class of its own for devices, not for the CPU.
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text


if __name__ == "__main__":
    sys.exit(main())

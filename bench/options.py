"""The command line that the benchmarks share. A mistake ends in one line and exit status 2."""

import argparse
from pathlib import Path
from typing import NoReturn

import torch

from bayesrnn_cuda.checks import dtype_name
from bayesrnn_cuda.engines import CUDA_DTYPES

from .layers import LAYERS

DTYPES = tuple(map(dtype_name, CUDA_DTYPES))


class OneLineParser(argparse.ArgumentParser):
    """A parser that says what is wrong without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def options(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark of layers has."""
    parser = OneLineParser(description=description)
    parser.add_argument("--device", default="cpu", type=_device)
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--cell", action="append", choices=tuple(LAYERS))
    parser.add_argument("--shape", action="append", type=shape, metavar="T,B,I,H")
    parser.add_argument(
        "--loss", default="all", choices=("all", "last"), help="steps that have a gradient"
    )
    parser.add_argument("--runs", type=count, default=7, help="rounds of the interleaved timing")
    parser.add_argument("--seconds", type=float, help="begin no case after so many")
    parser.add_argument("--threads", type=count, default=torch.get_num_threads())
    parser.add_argument("--default-heap", action="store_true", help="malloc as it is")
    parser.add_argument("--out", type=_file, metavar="FILE", help="also write JSON there")
    parser.add_argument("--no-figure", action="store_true", help="no picture beside the JSON")
    return parser


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _counts(text, 1, "a whole number of at least 1")[0]


def shape(text: str) -> tuple[int, ...]:
    """T, B, I, H."""
    return _counts(text, 4, "T,B,I,H, each at least 1")


def _counts(text: str, length: int, expected: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != length or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected {expected}, got '{text}'")
    return tuple(map(int, parts))


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got '{text}'")
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise argparse.ArgumentTypeError(f"expected one of {gpus} CUDA devices, got '{text}'")
    return device


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, got the folder '{text}'")
    return path

"""Checkpoints: written whole or not at all, read back without running code from the file."""

import contextlib
import dataclasses
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ...cli import UserError
from .configuration import Config

FORMAT = "bayesrnn_cuda checkpoint"
VERSION = 2


class CheckpointError(UserError):
    """The file is not a checkpoint that this package can read. The message is one line."""


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replaces `path` by what `write` writes; a crash leaves the old content or the new.

    Raises:
        OSError: the disk is full, or whatever else speaks against it. It names `path`.
    """
    content = io.BytesIO()  # of the disk's errors torch.save makes some that do not say what it was
    write(content)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            rest = content.getbuffer()
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the error that led here is the one to tell
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` of UTF-8 text."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save_checkpoint(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Writes `content` atomically.

    Args:
        path: the file.
        kind: what it is of, such as "language model"; `load_checkpoint` demands the same.
        content: tensors and plain Python values in dicts, lists and tuples.
    """
    document = {"format": FORMAT, "version": VERSION, "kind": kind, **content}
    write_atomically(path, lambda file: torch.save(document, file))


def load_checkpoint(path: Path, *kinds: str) -> dict[str, Any]:
    """Content of the checkpoint at `path`, which is of one of the kinds, its tensors on the CPU.

    Raises:
        CheckpointError: no such file, damaged, not a checkpoint of this package, of another version
            or kind.
    """
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint at '{path}', got no such file")
    document = _read(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(
            f"expected a checkpoint of this package in '{path}', got another program's file"
        )
    if document.get("version") != VERSION:
        raise CheckpointError(
            f"expected checkpoint version {VERSION} in '{path}', got {document.get('version')}"
        )
    if document.get("kind") not in kinds:
        raise CheckpointError(
            f"expected the checkpoint of a {' or '.join(kinds)} in '{path}', got that of a "
            f"{document.get('kind')}"
        )
    return document


def read_config(content: Mapping[str, Any], config_class: type[Config]) -> Config:
    """The configuration in the content of a checkpoint. Raises CheckpointError if there is none."""
    values, names = content.get("config"), {f.name for f in dataclasses.fields(config_class)}
    if not isinstance(values, dict) or set(values) != names:
        raise CheckpointError(
            f"expected a checkpoint with the fields of {config_class.__name__}, got other fields"
        )
    return config_class(**values)


def checksum(words: Iterable[str], *parts: torch.Tensor) -> int:
    """Of data: tells whether a resumed run is on those that it began with."""
    value = zlib.crc32("\n".join(words).encode())
    for part in parts:
        value = zlib.crc32(part.contiguous().numpy().tobytes(), value)
    return value


@contextlib.contextmanager
def expecting(content: str) -> Iterator[None]:
    """Turns what breaks while the content of a checkpoint is put to use into a CheckpointError.

    Args:
        content: what was expected, in words.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"expected {content}, got {reason}") from error


def _read(path: Path) -> Any:
    try:
        # torch.load does not verify the archive's checksums, zipfile does.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file may break the decoders in any way
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"expected a checkpoint in '{path}', got a damaged or foreign file "
            f"({type(error).__name__}: {reason})"
        ) from error
    raise CheckpointError(
        f"expected a checkpoint in '{path}', got a damaged file (checksum of {damaged})"
    )


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

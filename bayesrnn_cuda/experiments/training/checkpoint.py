"""Checkpoints: written whole or not at all, read back without running code from the file."""

import contextlib
import dataclasses
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ...cli import UserError
from .configuration import (
    Config,
)

FORMAT = "bayesrnn_cuda checkpoint"
VERSION = 2


class CheckpointError(UserError):
    """The file is not a checkpoint that this package can read. The message is one line."""


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Replaces `path` by what `write` writes; a crash leaves the old content or the new.

    Raises:
        OSError: the disk is full, or whatever else speaks against it. It names `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb", buffering=0) as raw:
            watched = _WatchedFile(raw)
            try:
                with io.BufferedWriter(watched) as file:
                    write(file)
            except Exception:
                if watched.error is None:
                    raise
            # The error itself, of which torch.save makes one that does not say what was wrong.
            if watched.error is not None:
                raise watched.error
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        _remove(temporary)
        raise
    _sync_folder(path.parent)


class _WatchedFile(io.RawIOBase):
    """A file to write that keeps the error by which a write failed; from then on it takes all."""

    def __init__(self, file: io.RawIOBase) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def write(self, data: Any) -> int | None:
        if self.error is not None:
            return len(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            return len(data)


def _remove(temporary: Path) -> None:
    """Removes it; where even that cannot be, the error that led here is the one to tell."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` of UTF-8 text."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save_checkpoint(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Writes `content` atomically.

    Args:
        path: the file.
        kind: what the checkpoint is of, such as "language model"; `load_checkpoint` demands the
            same.
        content: tensors and plain Python values in dicts, lists and tuples.
    """
    document = {"format": FORMAT, "version": VERSION, "kind": kind, **content}
    write_atomically(path, lambda file: torch.save(document, file))


def load_checkpoint(path: Path, kind: str, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Content of the checkpoint at `path`, its tensors on `device`.

    Raises:
        CheckpointError: no such file, damaged, not a checkpoint of this package, of another version
            or kind.
    """
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint at '{path}', got no such file")
    document = _read(path, device)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(
            f"expected a checkpoint of this package in '{path}', got another program's file"
        )
    if document.get("version") != VERSION:
        raise CheckpointError(
            f"expected checkpoint version {VERSION} in '{path}', got {document.get('version')}"
        )
    if document.get("kind") != kind:
        raise CheckpointError(
            f"expected the checkpoint of a {kind} in '{path}', got that of a {document.get('kind')}"
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


def _read(path: Path, device: torch.device | str) -> Any:
    try:
        # torch.load does not verify the archive's checksums, zipfile does.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location=device, weights_only=True)
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
    """Makes a rename durable; only POSIX opens folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Atomic files and strict reading."""

import os
import zipfile

import pytest
import torch

from bayesrnn_cuda.experiments.training.checkpoint import (
    VERSION,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)


class Crash(BaseException):
    """Stands for the end of the process."""


def test_round_trip(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, "thing", {"x": torch.arange(3), "words": ["a"], "pair": (1, None)})
    content = load_checkpoint(path, "thing")
    assert torch.equal(content["x"], torch.arange(3))
    assert content["words"] == ["a"] and content["pair"] == (1, None)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_crash_leaves_the_old_content(tmp_path, monkeypatch, moment):
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")

    def crash(*arguments):
        raise Crash

    def write(file):
        file.write(b"half of the n")
        if moment == "write":
            raise Crash

    if moment != "write":
        monkeypatch.setattr(os, moment, crash)
    with pytest.raises(Crash):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_content_is_on_disk_before_it_is_named(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "a", lambda file: file.write(b"new"))
    assert order[:2] == ["fsync", "replace"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_reading_runs_no_code_of_the_file(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save(
        {"format": "bayesrnn_cuda checkpoint", "version": VERSION, "trap": Trap()}, tmp_path / "a"
    )
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        load_checkpoint(tmp_path / "a", "thing")
    assert not (tmp_path / "trapped").exists()


def test_checkpoints_of_something_else(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(CheckpointError, match="got no such file"):
        load_checkpoint(path, "thing")
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="got another program's file"):
        load_checkpoint(path, "thing")
    torch.save({"format": "bayesrnn_cuda checkpoint", "version": 1, "kind": "thing"}, path)
    with pytest.raises(CheckpointError, match=r"expected checkpoint version 2 in .*, got 1"):
        load_checkpoint(path, "thing")
    save_checkpoint(path, "other", {})
    with pytest.raises(CheckpointError, match=r"of a thing in .*, got that of a other"):
        load_checkpoint(path, "thing")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "hello")
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        load_checkpoint(path, "thing")

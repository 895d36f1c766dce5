"""A small text and a small model, so that a run takes a fraction of a second."""

import os
import random
import signal
from pathlib import Path

import pytest
import torch

from bayesrnn_cuda.experiments.language.model import LanguageModelConfig
from bayesrnn_cuda.experiments.language.text import Corpus, load_corpus
from bayesrnn_cuda.experiments.training.trainer import Trainer

TINY = {
    "embedding": 6,
    "hidden": 7,
    "layers": 2,
    "seq_len": 5,
    "batch_size": 4,
    "epochs": 2,
    "optimizer": "adam",
    "lr": 0.01,
    "mc_samples": 3,
    "device": "cpu",
}


def write_text_folder(folder: Path) -> Path:
    """Sentences of a made-up language in train.txt, valid.txt and test.txt."""
    draw = random.Random(3)
    folder.mkdir(parents=True)
    for name, lines in (("train", 60), ("valid", 15), ("test", 12)):
        sentences = [
            f"the {draw.choice(['dog', 'cat'])} {draw.choice(['sees', 'hears'])} the "
            f"{draw.choice(['bird', 'cat', 'tree'])}"
            for _ in range(lines)
        ]
        (folder / f"{name}.txt").write_text("\n".join(sentences) + "\n")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small models gain nothing from threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_folder(tmp_path_factory.mktemp("text") / "data")


@pytest.fixture(scope="session")
def corpus(text: Path) -> Corpus:
    return load_corpus(str(text), None)


@pytest.fixture(scope="session")
def stored_data():
    """Folders of the paper's data, which are not part of this package: skips where they are not."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    data = Path(os.environ.get("BAYESRNN_DATA", beside))

    def find(name: str) -> Path:
        if not (data / name).is_dir():
            pytest.skip(f"no {name}/ in {data}; BAYESRNN_DATA names another folder")
        return data / name

    return find


@pytest.fixture
def tiny(text: Path):
    """Makes the small configuration with some fields changed."""

    def make(**changes) -> LanguageModelConfig:
        return LanguageModelConfig(**{**TINY, "data": str(text), **changes})

    return make


@pytest.fixture
def folder_bytes():
    """Every file below a folder with its content."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read


@pytest.fixture
def losses(monkeypatch):
    """Collects the loss of every update; `stop_at` sends this process a signal after that many."""

    class Losses(list):
        stop_at: int | None = None
        number = signal.SIGINT

    collected, step = Losses(), Trainer.step

    def spy(trainer: Trainer):
        loss = step(trainer)
        collected.append(loss.item())
        if len(collected) == collected.stop_at:
            os.kill(os.getpid(), collected.number)
        return loss

    monkeypatch.setattr(Trainer, "step", spy)
    return collected

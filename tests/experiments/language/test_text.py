"""Words, vocabulary, corpora, lanes and windows."""

import sys
from itertools import chain

import pytest
import torch

from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.language import text as module
from bayesrnn_cuda.experiments.language.text import (
    END,
    UNKNOWN,
    Corpus,
    Vocabulary,
    documentation,
    lanes,
    load_corpus,
    prose_words,
    readable,
    sentence_words,
    windows,
)


def test_vocabulary_numbers_words_by_frequency_then_alphabet():
    vocabulary = Vocabulary.of(["b", "a", "c", "c", END], min_count=1)
    assert vocabulary.words == ["c", END, "a", "b"]
    assert vocabulary.encode(["c", "b", END]).tolist() == [0, 3, 1]
    assert vocabulary.decode([3, 0]) == ["b", "c"]


def test_rare_words_become_unknown():
    vocabulary = Vocabulary.of(["a", "a", "b", "c", END, END], min_count=2)
    assert set(vocabulary.words) == {"a", END, UNKNOWN}
    assert vocabulary.encode(["b", "zebra"]).tolist() == [vocabulary.unknown] * 2


def test_unknown_is_a_type_only_where_it_is_needed():
    tokens = ["a", END]
    assert Vocabulary.of(tokens, min_count=1).unknown is None
    assert Vocabulary.of(tokens, min_count=1, others=["a"]).unknown is None
    assert Vocabulary.of(tokens, min_count=1, others=["b"]).unknown is not None


def test_word_outside_a_vocabulary_without_unknown():
    with pytest.raises(UserError, match="outside the vocabulary"):
        Vocabulary.of(["a", END], min_count=1).encode(["b"])


def test_text_folder_ends_every_line(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"my.{split}.txt").write_text(f" one  two \n\nthree {split}\n")
    words = module.text_folder(tmp_path)
    assert words["valid"] == [["one", "two", END], ["three", "valid", END]]


def test_exact_file_name_wins(tmp_path):
    for name in ("train.txt", "valid.txt", "test.txt", "old.train.txt"):
        (tmp_path / name).write_text(name)
    assert module.text_folder(tmp_path)["train"] == [["train.txt", END]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "expected one file train.txt or .*train.*.txt in .*, got none"),
        ({"a.train.txt": b"x", "b.train.txt": b"x"}, "got a.train.txt, b.train.txt"),
        ({"train.txt": b"x", "valid.txt": b""}, "valid.txt', got an empty file"),
        ({"train.txt": b"caf\xe9"}, "expected UTF-8 text in .*train.txt', got byte 3 that is not"),
    ],
)
def test_malformed_text_folder(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_corpus(str(tmp_path), None)


def test_missing_text_folder(tmp_path):
    with pytest.raises(UserError, match=r"argument --data: expected a folder .*, got '.*nowhere'"):
        load_corpus(str(tmp_path / "nowhere"), None)


def test_penn_treebank_counts(stored_data):
    corpus = load_corpus(str(stored_data("ptb")), None)
    assert corpus.train.numel() == 929_589
    assert corpus.valid.numel() == 73_760
    assert corpus.test.numel() == 82_430
    assert len(corpus.vocabulary) == 10_000


def test_prose_words():
    assert prose_words("It's a Test: x[10] != __init__(self), **kwargs!") == [
        *["it's", "a", "test", ":", "x", "[", "N", "]", "!=", "__init__"],
        *["(", "self", ")", ",", "**", "kwargs", "!"],
    ]


def test_sentences_end():
    words = sentence_words('It is (see below). Then "x" is 3.5 now.')
    assert words.count(END) == 2
    assert words[words.index(END) - 1] == "."
    assert words[-1] == END


def test_documentation_split_shares_no_paragraph(monkeypatch):
    """A paragraph quoted by several topics must not be in both training and test text."""
    text = {f"topic{i}": f"Common words here.\n\nOwn number {'x' * i} is." for i in range(60)}
    fake = type(sys)("pydoc_data.topics")
    fake.topics = text
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", fake)
    parts = {split: [*chain(*texts)] for split, texts in documentation().items()}
    assert sum(words.count("common") for words in parts.values()) == 1
    own = [{word for word in words if set(word) == {"x"}} for words in parts.values()]
    assert all(own) and not (own[0] & own[1] | own[0] & own[2] | own[1] & own[2])


def test_documentation_of_this_python():
    corpus = load_corpus(None, None)
    total = sum(part.numel() for part in (corpus.train, corpus.valid, corpus.test))
    assert 50_000 < total < 200_000
    assert corpus.train.numel() > 0.75 * total
    assert min(corpus.valid.numel(), corpus.test.numel()) > 0.05 * total
    assert corpus.vocabulary.unknown is not None
    assert load_corpus(None, None).fingerprint() == corpus.fingerprint()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the counts are those of CPython 3.11")
def test_documentation_counts_of_python_3_11():
    corpus = load_corpus(None, None)
    sizes = [part.numel() for part in (corpus.train, corpus.valid, corpus.test)]
    # Releases of one version differ by a few paragraphs.
    assert sizes == pytest.approx([64_745, 7_239, 7_750], rel=0.03)


def test_python_without_documentation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match="carries no pydoc_data"):
        load_corpus(None, None)


def test_documents_of_a_folder_end_at_blank_lines(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("\na b\nc\n\n \na\n\nb c\n")
    corpus = load_corpus(str(tmp_path), None)
    assert corpus.documents["valid"].tolist() == [0, 5, 7]
    begins = corpus.resets("valid", "documents")
    assert begins.nonzero().flatten().tolist() == [0, 5, 7]
    assert begins.shape == corpus.valid.shape
    assert corpus.resets("valid", "carry") is None


def test_topics_of_the_documentation_are_documents():
    corpus = load_corpus(None, None)
    begins = corpus.resets("train", "documents")
    assert begins[0] and 20 < begins.sum() < 100
    after = corpus.train[begins.nonzero().flatten()[1:] - 1]
    assert (after == corpus.vocabulary.end).all()


def test_fingerprint_sees_one_changed_token(corpus):
    changed = corpus.valid.clone()
    changed[3] = (changed[3] + 1) % len(corpus.vocabulary)
    other = Corpus(corpus.name, corpus.vocabulary, corpus.train, changed, corpus.test)
    assert other.fingerprint() != corpus.fingerprint()


def test_readable_text():
    words = ["the", '"', "with", '"', "statement", "(", "see", "it", ")", ".", END, "it", "'s", END]
    assert readable(words) == 'the "with" statement (see it).\nit\'s'


def test_lanes_are_consecutive_and_windows_give_every_target_once():
    stream = torch.arange(23)
    columns = lanes(stream, 3)
    assert columns.shape == (7, 3)
    assert columns[:, 1].tolist() == list(range(7, 14))
    parts = list(windows(columns, 4))
    assert [inputs.shape[0] for inputs, _ in parts] == [4, 2]
    inputs = torch.cat([inputs for inputs, _ in parts])
    targets = torch.cat([targets for _, targets in parts])
    assert torch.equal(targets, inputs + 1)
    assert targets.t().flatten().tolist() == [*range(1, 7), *range(8, 14), *range(15, 21)]

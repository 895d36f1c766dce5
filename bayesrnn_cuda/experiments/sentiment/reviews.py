"""The Cornell "scale" movie reviews (Pang and Lee, 2005): reading, tokens, split, pieces.

As the authors' sentiment code prepares them, so that figures can be compared: 13,275 pieces of at
most 200 tokens, 10,620 for training and 2,655 for the test.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...cli import UserError
from ..training.checkpoint import checksum

FILE = "reviews.tsv"
HEADER = ("author", "id", "rating", "label3", "label4", "text")
SPLITS = ("authors", "deduplicated")

PAD, START, UNKNOWN = 0, 1, 2
RESERVED = 3  # the word of rank r, counted from 1, has number r + RESERVED; 3 itself is unused
TRAIN_SHARE = 0.8


class Review(NamedTuple):
    """One line of the file."""

    author: str
    rating: float  # in [0, 1]
    text: str


@dataclass(frozen=True)
class Pieces:
    """Pieces of reviews, each with the rating of its review."""

    tokens: Tensor  # int64 [pieces, T], padded on the left
    ratings: Tensor  # float64 [pieces], in [0, 1]

    def __len__(self) -> int:
        return len(self.ratings)

    def first(self, count: int) -> "Pieces":
        """The first `count` pieces, or all if there are fewer."""
        return Pieces(self.tokens[:count], self.ratings[:count])


@dataclass(frozen=True)
class Reviews:
    """Training and test pieces, and the vocabulary: the words by rank, the most frequent first."""

    name: str
    words: list[str]
    train: Pieces
    test: Pieces

    @property
    def mean(self) -> float:
        """Mean rating of the training pieces."""
        return self.train.ratings.mean().item()

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of the ratings of the training pieces, 1/N under the root."""
        return self.train.ratings.std(correction=0).item()

    def describe(self) -> str:
        """One line of counts."""
        return (
            f"reviews: {self.name}: {len(self.train):,} training, {len(self.test):,} test pieces "
            f"of {self.train.tokens.shape[1]} tokens, {len(self.words):,} words"
        )

    def fingerprint(self) -> int:
        """Of words, tokens and ratings."""
        pieces = (self.train.tokens, self.train.ratings, self.test.tokens, self.test.ratings)
        return checksum(self.words, *pieces)


def load_reviews(
    data: str | None,
    *,
    split: str = "authors",
    seq_len: int = 200,
    vocabulary: int = 20_000,
    pieces: int | None = None,
) -> Reviews:
    """The reviews in the folder `data`, shuffled, cut into pieces and split.

    Args:
        data: folder with reviews.tsv, or such a file.
        split: "authors": by piece, after the shuffle of the authors' code, with the vocabulary of
            all reviews; of 200-token pieces one review and copies of 14 texts are on both sides.
            "deduplicated": every text once, by review, with the vocabulary of the training reviews.
        seq_len: T, tokens of a piece.
        vocabulary: token numbers in use: the words of rank up to vocabulary - 4 are kept.
        pieces: use only the first N training and N // 4 test pieces; None: all.

    Raises:
        UserError: missing or malformed file, or too few reviews or pieces.
    """
    if data is None:
        raise UserError(f"argument --data: expected the folder that holds {FILE}, got none")
    path = Path(data)
    reviews = authors_order(read_reviews(path / FILE if path.is_dir() else path))
    if split == "deduplicated":
        reviews = _unique(reviews)
    texts = [review_words(review.text) for review in reviews]
    train_texts = texts[: _train_count(len(texts))]  # of the split by review
    ranked = ranked_words(texts if split == "authors" else train_texts)
    words = ranked[: vocabulary - RESERVED - 1]
    pieces_of = _encode(texts, words, seq_len)
    counts = [len(cut) for cut in pieces_of]
    ratings = torch.tensor([review.rating for review in reviews], dtype=torch.float64)
    ratings = ratings.repeat_interleave(torch.tensor(counts))
    tokens = _padded([piece for cut in pieces_of for piece in cut], seq_len)
    by_piece, by_review = _train_count(len(tokens)), sum(counts[: len(train_texts)])
    boundary = by_piece if split == "authors" else by_review
    train = Pieces(tokens[:boundary], ratings[:boundary])
    test = Pieces(tokens[boundary:], ratings[boundary:])
    return Reviews(f"{data}, {split} split", words, *_reduced(train, test, pieces))


def _reduced(train: Pieces, test: Pieces, pieces: int | None) -> tuple[Pieces, Pieces]:
    """The first `pieces` training pieces and a quarter as many test pieces, checked for use."""
    if pieces is not None:
        if pieces > len(train):
            raise UserError(
                f"argument --pieces: expected at most the {len(train)} training pieces there are, "
                f"got {pieces}"
            )
        train, test = train.first(pieces), test.first(pieces // 4)
    ratings = len(train.ratings.unique())
    if len(test) == 0 or ratings < 2:
        raise UserError(
            "argument --data: expected test pieces, and training pieces of two ratings or more, "
            f"got {len(test)} test pieces, {len(train)} training pieces of {ratings}"
        )
    return train, test


def read_reviews(path: Path) -> list[Review]:
    """The reviews in the order of the file: a header, then one review a line, fields by tabs.

    Raises:
        UserError: no such file, or a line that is malformed.
    """
    if not path.is_file():
        raise UserError(
            f"argument --data: expected a folder with {FILE}, or that file, got no file '{path}'"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _malformed(path, line, "UTF-8 text", "a byte that is not") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if tuple(lines[0].split("\t")) != HEADER:
        raise _malformed(path, 1, f"the header {' '.join(HEADER)}, by tabs", f"'{lines[0][:60]}'")
    if len(lines) == 1:
        raise UserError(f"argument --data: expected reviews in '{path}', got a header alone")
    return [_parse(path, number, line) for number, line in enumerate(lines[1:], start=2)]


def _parse(path: Path, number: int, line: str) -> Review:
    fields = line.split("\t")
    if len(fields) != len(HEADER):
        raise _malformed(path, number, f"{len(HEADER)} fields, by tabs", f"{len(fields)}")
    values = dict(zip(HEADER, fields, strict=True))
    try:
        rating = float(values["rating"])
    except ValueError:
        rating = float("nan")
    if not 0 <= rating <= 1:
        raise _malformed(path, number, "a rating in [0, 1]", f"'{values['rating'][:60]}'")
    if not values["text"].strip():
        raise _malformed(path, number, "the text of a review", "an empty one")
    return Review(values["author"], rating, values["text"])


def _malformed(path: Path, line: int, expected: str, actual: str) -> UserError:
    return UserError(f"argument --data: expected {expected} in '{path}', line {line}, got {actual}")


def authors_order(reviews: Iterable[Review]) -> list[Review]:
    """The reviews author by author in alphabetical order, then shuffled as in the authors' code."""
    order = sorted(reviews, key=lambda review: review.author)
    # RandomState's numbers never change between versions of numpy.
    return [order[i] for i in np.random.RandomState(0).permutation(len(order))]


def _unique(reviews: Iterable[Review]) -> list[Review]:
    """The first review of every text."""
    first: dict[str, Review] = {}
    for review in reviews:
        first.setdefault(review.text, review)
    return list(first.values())


def review_words(text: str) -> list[str]:
    """Lower-case words between single spaces; the end of the line is a word, as for the authors."""
    return [*(word for word in text.lower().split(" ") if word), "\n"]


def ranked_words(texts: Iterable[Iterable[str]]) -> list[str]:
    """Word types by falling frequency, ties in alphabetical order.

    The authors' ties are in the order of a Python 2 dict, which cannot be had again: which of the
    rarest words fall out of the vocabulary differs.
    """
    counts = Counter(word for words in texts for word in words)
    return sorted(counts, key=lambda word: (-counts[word], word))


def _encode(
    texts: Iterable[Iterable[str]], words: Sequence[str], seq_len: int
) -> list[list[list[int]]]:
    """Pieces of every review: START and its words' numbers, cut every `seq_len`, the tail kept."""
    number = {word: rank + RESERVED for rank, word in enumerate(words, start=1)}
    pieces = []
    for text in texts:
        tokens = [START, *(number.get(word, UNKNOWN) for word in text)]
        pieces.append([tokens[i : i + seq_len] for i in range(0, len(tokens), seq_len)])
    return pieces


def _padded(rows: Sequence[Sequence[int]], seq_len: int) -> Tensor:
    """Rows of at most `seq_len` tokens, padded on the left: int64 [rows, seq_len]."""
    padding = [PAD] * seq_len
    return torch.tensor([padding[len(row) :] + list(row) for row in rows], dtype=torch.int64)


def _train_count(count: int) -> int:
    return int(count * TRAIN_SHARE)

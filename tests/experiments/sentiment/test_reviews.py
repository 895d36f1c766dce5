"""Reading, tokens, pieces and splits of the reviews."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from review_files import HEADER, review_line, write_review_folder, write_reviews

from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.sentiment.reviews import (
    Pieces,
    Review,
    authors_order,
    load_reviews,
    ranked_words,
    read_reviews,
    review_words,
)

# Authors out of order; the shuffle puts author A's "b a" and so on as SHUFFLED says.
LINES = [
    review_line("a", 0.3, "B"),
    review_line("b b b b", 0.4, "B"),
    review_line("b a", 0.1, "A"),
    review_line("d", 0.5, "B"),
    review_line(" A  a c ", 0.2, "A"),
]
SHUFFLED = ["a", "b a", " A  a c ", "b b b b", "d"]
# Ranks: end of line and b (5 each), a (4), c and d (1 each): numbers 4 to 8.
TRAIN = [[1, 6, 4], [1, 5, 6], [0, 0, 4], [1, 6, 6], [0, 7, 4], [1, 5, 5]]
TEST = [[5, 5, 4], [1, 8, 4]]


@pytest.fixture
def small(tmp_path) -> str:
    write_reviews(tmp_path / "reviews.tsv", LINES)
    return str(tmp_path)


def test_words_are_split_at_single_spaces_and_end_with_the_line():
    assert review_words(" A  b,c. D\u00a0e") == ["a", "b,c.", "d\u00a0e", "\n"]


def test_words_are_ranked_by_frequency_then_alphabet():
    assert ranked_words([["b", "a", "c"], ["c", "\n"], ["\n"]]) == ["\n", "c", "a", "b"]


def test_order_is_that_of_the_authors_code(small):
    reviews = read_reviews(Path(small) / "reviews.tsv")
    assert [review.text for review in authors_order(reviews)] == SHUFFLED
    # As they have it: lists, author after author, and numpy's global generator.
    many = [Review("AB"[i >= 50], 0.5, str(i)) for i in range(99)]
    texts = [review.text for review in many]
    before = np.random.get_state()
    np.random.seed(0)
    np.random.shuffle(texts)
    np.random.set_state(before)
    assert [review.text for review in authors_order(many)] == texts


def test_pieces_of_the_authors_split(small):
    reviews = load_reviews(small, seq_len=3)
    assert reviews.words == ["\n", "b", "a", "c", "d"]
    assert reviews.train.tokens.tolist() == TRAIN
    assert reviews.test.tokens.tolist() == TEST
    assert reviews.train.tokens.dtype == torch.int64
    assert reviews.train.ratings.tolist() == [0.3, 0.1, 0.1, 0.2, 0.2, 0.4]
    assert reviews.test.ratings.tolist() == [0.4, 0.5]
    assert reviews.mean == pytest.approx(1.3 / 6)
    assert reviews.standard_deviation == pytest.approx(math.sqrt(0.35 / 6 - (1.3 / 6) ** 2))


def test_short_reviews_are_padded_on_the_left(small):
    tokens = load_reviews(small, seq_len=7).train.tokens
    assert tokens[0].tolist() == [0, 0, 0, 0, 1, 6, 4]


def test_rare_words_are_unknown(small):
    reviews = load_reviews(small, seq_len=3, vocabulary=8)
    assert reviews.words == ["\n", "b", "a", "c"]
    assert reviews.test.tokens.tolist() == [[5, 5, 4], [1, 2, 4]]
    assert reviews.train.tokens.max() == 7


def test_deduplicated_split_is_by_review_and_learns_no_test_words(tmp_path):
    """Ten reviews, each with a word of its own, from 3 to 20 others long; half stand twice."""
    texts = [f"w{i}" + (3 + 17 * (i % 2)) * " x" for i in range(10)]
    lines = [review_line(text, i % 3 / 2) for i, text in enumerate([*texts, *texts[:5]])]
    write_reviews(tmp_path / "reviews.tsv", lines)
    reviews = load_reviews(str(tmp_path), split="deduplicated", seq_len=4)
    train, test = reviews.train.tokens, reviews.test.tokens
    assert (train == 1).sum() == 8 and (test == 1).sum() == 2
    assert test[0, 0] == 1
    assert reviews.words[:2] == ["x", "\n"] and len(reviews.words) == 2 + 8
    own_words = train[train[:, 0] == 1, 1]
    assert sorted(own_words.tolist()) == list(range(6, 14))
    # START, its own word that training does not have, x, x.
    assert test[test[:, 0] == 1].tolist() == [[1, 2, 4, 4]] * 2


def test_reduced_number_of_pieces(tmp_path):
    folder = str(write_review_folder(tmp_path))
    whole, part = load_reviews(folder, seq_len=6), load_reviews(folder, seq_len=6, pieces=13)
    assert torch.equal(part.train.tokens, whole.train.tokens[:13])
    assert torch.equal(part.test.tokens, whole.test.tokens[:3])
    assert torch.equal(part.test.ratings, whole.test.ratings[:3])
    assert part.words == whole.words
    count = len(whole.train)
    with pytest.raises(
        UserError, match=f"--pieces: expected at most the {count} .*, got {count + 1}"
    ):
        load_reviews(folder, seq_len=6, pieces=count + 1)


def test_file_itself_byte_order_mark_and_windows_line_ends(tmp_path):
    text = "\r\n".join([HEADER, *LINES, ""])
    path = tmp_path / "other.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_reviews(str(path), seq_len=3).train.tokens.tolist() == TRAIN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header author id rating .* line 1, got ''"),
        (b"author,id\nx", "the header .* line 1, got 'author,id'"),
        (HEADER.encode() + b"\n", "reviews in '.*', got a header alone"),
        (f"{HEADER}\n{LINES[0]}\nA\t1\t0.5\n".encode(), "6 fields, by tabs .* line 3, got 3"),
        (f"{HEADER}\n{LINES[0]}\n\n{LINES[1]}\n".encode(), "6 fields, by tabs .* line 3, got 1"),
        (f"{HEADER}\n{LINES[0]}\tx\n".encode(), "6 fields, by tabs .* line 2, got 7"),
        (f"{HEADER}\n{review_line('a', 'good')}".encode(), r"in \[0, 1\] .* line 2, got 'good'"),
        (f"{HEADER}\n{review_line('a', 1.5)}".encode(), r"in \[0, 1\] .* line 2, got '1.5'"),
        (f"{HEADER}\n{review_line('a', 'nan')}".encode(), r"in \[0, 1\] .* line 2, got 'nan'"),
        (f"{HEADER}\n{review_line('a', -0.1)}".encode(), r"in \[0, 1\] .* line 2, got '-0.1'"),
        (f"{HEADER}\n{review_line('  ')}\n".encode(), "text of a review .* line 2, got an empty"),
        (f"{HEADER}\n{LINES[0]}\n".encode() + b"caf\xe9", "UTF-8 text .* line 3, got a byte that"),
        (
            f"{HEADER}\n{LINES[0]}\n".encode(),
            "two ratings or more, got 1 test pieces, 0 training pieces of 0",
        ),
    ],
)
def test_malformed_file_gives_one_line(tmp_path, content, message):
    (tmp_path / "reviews.tsv").write_bytes(content)
    with pytest.raises(UserError, match=f"^argument --data: expected .*{message}") as caught:
        load_reviews(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_ratings_that_are_all_equal(tmp_path):
    write_reviews(tmp_path / "reviews.tsv", [review_line(f"w{i}", 0.4) for i in range(10)])
    with pytest.raises(
        UserError, match="two ratings or more, got 2 test pieces, 8 training pieces of 1"
    ):
        load_reviews(str(tmp_path))


@pytest.mark.parametrize("data", ["nowhere", ""])
def test_missing_file(tmp_path, data):
    with pytest.raises(UserError, match=r"argument --data: expected a folder with reviews\.tsv"):
        load_reviews(str(tmp_path / data))


def test_no_folder():
    with pytest.raises(UserError, match="argument --data: expected the folder that holds"):
        load_reviews(None)


def test_fingerprint_tells_every_part(small):
    reviews = load_reviews(small, seq_len=3)
    assert load_reviews(small, seq_len=3).fingerprint() == reviews.fingerprint()
    train, test = reviews.train, reviews.test
    others = [
        replace(reviews, words=[*reviews.words[:-1], "e"]),
        replace(reviews, train=Pieces(train.tokens + 1, train.ratings)),
        replace(reviews, train=Pieces(train.tokens, train.ratings + 0.1)),
        replace(reviews, test=Pieces(test.tokens + 1, test.ratings)),
        replace(reviews, test=Pieces(test.tokens, test.ratings + 0.1)),
    ]
    assert len({reviews.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_cornell_counts_of_the_authors_split(stored_data):
    reviews = load_reviews(str(stored_data("cornell_scale")))
    assert reviews.train.tokens.shape == (10_620, 200)
    assert reviews.test.tokens.shape == (2_655, 200)
    assert reviews.mean == pytest.approx(0.58917, abs=5e-6)
    assert reviews.standard_deviation == pytest.approx(0.18391, abs=5e-6)
    baseline = (reviews.test.ratings - reviews.mean).square().mean().sqrt().item()
    assert baseline == pytest.approx(0.1915, abs=5e-5)
    tokens = torch.cat([reviews.train.tokens, reviews.test.tokens])
    assert (tokens == 1).sum() == 5_006
    assert (tokens > 1).sum() == 2_148_164 + 5_006
    assert len(reviews.words) == 19_996 and tokens.max() == 19_999
    # 2.37 % of the tokens.
    assert (tokens == 2).sum() / (tokens > 0).sum() == pytest.approx(0.0237, abs=5e-5)


def test_cornell_counts_of_the_deduplicated_split(stored_data):
    reviews = load_reviews(str(stored_data("cornell_scale")), split="deduplicated")
    assert (len(reviews.train), len(reviews.test)) == (10_551, 2_608)
    tokens = torch.cat([reviews.train.tokens, reviews.test.tokens])
    assert (tokens == 1).sum() == 5_006 - 47

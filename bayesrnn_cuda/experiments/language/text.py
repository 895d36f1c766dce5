"""Text for language models: words, vocabulary, the corpora, and their division into lanes and
windows.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby
from pathlib import Path

import torch
from torch import Tensor

from ...cli import UserError
from ..training.checkpoint import checksum

END = "<eos>"
UNKNOWN = "<unk>"
SPLITS = ("train", "valid", "test")
DOCUMENTATION_MIN_COUNT = 3

_TOKEN = re.compile(
    r"::=|>>>|\.\.\.|->|:=|[=!<>]=|\*\*|//|<<|>>|[^\W\d]\w*(?:['\u2019][a-z]+)?|\d+|[^\w\s]"
)
_SENTENCE_END = re.compile(r"(?<=[.?!])[\"\u201d)]*\s+(?=[A-Z\"\u201c])")
_RULE = re.compile(r"[^\w\s]{4,}|[+|][-=+| ]*")


class Vocabulary:
    """Word types numbered by falling frequency, ties in alphabetical order.

    Args:
        words: the types; the position is the token's number.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._number = {word: number for number, word in enumerate(self.words)}
        self.unknown = self._number.get(UNKNOWN)
        self.end = self._number[END]

    @classmethod
    def of(
        cls, tokens: Iterable[str], *, min_count: int, others: Iterable[str] = ()
    ) -> "Vocabulary":
        """Vocabulary of the training `tokens` that occur at least `min_count` times.

        `<unk>` is one of its types if the cut-off or a word of `others` (validation, test) needs
        it.
        """
        counts = Counter(tokens)
        kept = {word: count for word, count in counts.items() if count >= min_count}
        kept.setdefault(END, 0)
        rare = sum(count for word, count in counts.items() if word not in kept)
        if rare or any(word not in kept for word in others):
            kept[UNKNOWN] = kept.get(UNKNOWN, 0) + rare
        return cls(sorted(kept, key=lambda word: (-kept[word], word)))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> Tensor:
        """Token numbers, int64 [number of words]. A word outside the vocabulary becomes `<unk>`.

        Raises:
            UserError: such a word, and the vocabulary has no `<unk>`.
        """
        numbers = [self._number.get(word, self.unknown) for word in words]
        if None in numbers:
            raise UserError("a word is outside the vocabulary, which has no <unk> for it")
        return torch.tensor(numbers, dtype=torch.int64)

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """Words of the token numbers."""
        return [self.words[token] for token in tokens]

    def __contains__(self, word: str) -> bool:
        return word in self._number


@dataclass(frozen=True)
class Corpus:
    """A text in three parts, each a stream of tokens, int64 [tokens], `<eos>` after a sentence.

    Attributes:
        documents: of each part, the numbers of the tokens that begin a document, int64.
    """

    name: str
    vocabulary: Vocabulary
    train: Tensor
    valid: Tensor
    test: Tensor
    documents: Mapping[str, Tensor] = field(default_factory=dict)

    def resets(self, split: str, state: str) -> Tensor | None:
        """Where the state is zero within that part, bool [tokens]: at the beginnings of documents
        if `state` is "documents". None: nowhere."""
        if state != "documents":
            return None
        resets = torch.zeros(getattr(self, split).numel(), dtype=torch.bool)
        if split in self.documents:
            resets[self.documents[split]] = True
        return resets

    def describe(self) -> str:
        """One line of counts."""
        counts = ", ".join(f"{getattr(self, split).numel():,} {split}" for split in SPLITS)
        return f"text: {self.name}: {counts} tokens, {len(self.vocabulary):,} types"

    def fingerprint(self) -> int:
        """Of vocabulary and all tokens."""
        return checksum(self.vocabulary.words, *(getattr(self, split) for split in SPLITS))


def load_corpus(data: str | None, min_count: int | None) -> Corpus:
    """The text folder `data`, or Python's documentation if it is None.

    Args:
        data: folder as for `text_folder`.
        min_count: rarer words become `<unk>`; None takes 1 for a folder and 3 for the
            documentation.
    """
    if data is None:
        name, texts = "CPython's documentation", documentation()
        default_count = DOCUMENTATION_MIN_COUNT
    else:
        name, texts = data, text_folder(Path(data))
        default_count = 1
    words = {split: [*chain.from_iterable(texts[split])] for split in SPLITS}
    vocabulary = Vocabulary.of(
        words["train"],
        min_count=default_count if min_count is None else min_count,
        others=words["valid"] + words["test"],
    )
    begins = {
        split: torch.tensor([0, *accumulate(len(document) for document in texts[split][:-1])])
        for split in SPLITS
    }
    return Corpus(name, vocabulary, *(vocabulary.encode(words[s]) for s in SPLITS), begins)


def text_folder(folder: Path) -> dict[str, list[list[str]]]:
    """Documents of the train, valid and test files of `folder`: words, `<eos>` after each line.

    One sentence a line, words split at white space; a document ends where a line is blank. A
    split's file is `<split>.txt`, or else the
    only `*<split>*.txt`, such as `ptb.train.txt`. The Penn Treebank gives 929,589, 73,760 and
    82,430 tokens of 10,000 types.

    Raises:
        UserError: the folder or a file is missing, ambiguous, empty or not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(
            "argument --data: expected a folder with train, valid and test .txt files, got "
            f"'{folder}'"
        )
    return {split: _read_documents(_split_file(folder, split)) for split in SPLITS}


def _split_file(folder: Path, split: str) -> Path:
    exact = folder / f"{split}.txt"
    if exact.is_file():
        return exact
    found = sorted(path for path in folder.glob(f"*{split}*.txt") if path.is_file())
    if len(found) != 1:
        actual = ", ".join(path.name for path in found) if found else "none"
        raise UserError(
            f"argument --data: expected one file {split}.txt or *{split}*.txt in '{folder}', got "
            f"{actual}"
        )
    return found[0]


def _read_documents(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"argument --data: expected UTF-8 text in '{path}', got byte {error.start} that is not"
        ) from None
    blocks = groupby(lines, key=lambda line: bool(line.strip()))
    documents = [
        [word for line in block for word in (*line.split(), END)]
        for filled, block in blocks
        if filled
    ]
    if not documents:
        raise UserError(f"argument --data: expected text in '{path}', got an empty file")
    return documents


def documentation() -> dict[str, list[list[str]]]:
    """The documentation that CPython carries for `help()`: words of its topics, in three parts.

    Topics quote one another at length, so every paragraph is kept once, in the longest topic that
    has it: otherwise the test text would be training text too. Topics of less than a twentieth of
    the text, in the order of their names' checksums, make the test part until it has a twelfth of
    the text, then the validation part; the others are for training. Counts vary with the version:
    CPython 3.11 gives 64,745, 7,239 and 7,750 tokens of 1,550 types.

    Raises:
        UserError: this Python was installed without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "argument --data: this Python carries no pydoc_data to train on, give a folder of text"
        ) from None
    seen: set[str] = set()
    words: dict[str, list[str]] = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        words[name] = [
            word
            for paragraph in _new_paragraphs(topics[name], seen)
            for word in sentence_words(paragraph)
        ]
    total = sum(map(len, words.values()))
    parts: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    taken = dict.fromkeys(SPLITS, 0)
    for name in sorted(words, key=lambda name: (zlib.crc32(name.encode()), name)):
        small = len(words[name]) < total / 20
        open_parts = (split for split in ("test", "valid") if small and taken[split] < total / 12)
        split = next(open_parts, "train")
        taken[split] += len(words[name])
        if words[name]:  # else another topic has all of it
            parts[split].append(words[name])
    return parts


def _new_paragraphs(text: str, seen: set[str]) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text):
        lines = (line.strip() for line in block.splitlines())
        paragraph = " ".join(line for line in lines if line and not _RULE.fullmatch(line))
        if paragraph and paragraph not in seen:
            seen.add(paragraph)
            yield paragraph


def sentence_words(paragraph: str) -> list[str]:
    """`prose_words` of every sentence of `paragraph`, each followed by `<eos>`."""
    words = []
    for sentence in _SENTENCE_END.split(paragraph):
        words += [*prose_words(sentence), END]
    return words


def prose_words(text: str) -> list[str]:
    """Lower-case words, numbers as `N` and punctuation, without `<eos>`."""
    return ["N" if token.isdigit() else token for token in _TOKEN.findall(text.lower())]


def readable(words: Iterable[str]) -> str:
    """The text of `words`: `<eos>` ends a line, punctuation stands where English has it."""
    lines = [[]]
    for word in words:
        if word == END:
            lines.append([])
        else:
            lines[-1].append(word)
    return "\n".join(_join(line) for line in lines).rstrip("\n")


def _join(words: list[str]) -> str:
    text, quoted, glue = "", False, True
    for word in words:
        closing = word in {".", ",", ";", ":", "?", "!", ")", "]", "}", "%", "n't"} or (
            word.startswith("'") and len(word) > 1
        )
        if word == '"':
            closing, quoted = quoted, not quoted
        text += word if glue or closing else " " + word
        glue = word in {"(", "[", "{"} or (word == '"' and quoted)
    return text


def lanes(tokens: Tensor, batch_size: int) -> Tensor:
    """Cuts one stream into `batch_size` equal lanes read side by side: int64 [steps, batch_size].

    The at most `batch_size - 1` tokens that are left over are dropped.
    """
    steps = tokens.numel() // batch_size
    return tokens[: steps * batch_size].view(batch_size, steps).t().contiguous()


def windows(lanes: Tensor, seq_len: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive inputs and targets, int64 [T, B] each, T = seq_len; the last may be shorter.
    Every target is given once.
    """
    predictions = lanes.shape[0] - 1
    for start in range(0, predictions, seq_len):
        stop = min(start + seq_len, predictions)
        yield lanes[start:stop], lanes[start + 1 : stop + 1]

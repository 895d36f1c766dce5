"""Made-up reviews in the format of the Cornell scale data."""

import random
from pathlib import Path

HEADER = "author\tid\trating\tlabel3\tlabel4\ttext"


def review_line(text: str, rating: float | str = 0.5, author: str = "A") -> str:
    return f"{author}\t1\t{rating}\t0\t0\t{text}"


def write_reviews(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def write_review_folder(folder: Path, reviews: int = 40) -> Path:
    """Short reviews, the better ones with more good words, of two authors."""
    draw = random.Random(3)
    lines = []
    for number in range(reviews):
        rating = draw.choice([0.1, 0.3, 0.5, 0.7, 0.9])
        words = [
            draw.choice(["good", "fine"] if draw.random() < rating else ["bad", "dull"])
            for _ in range(draw.randint(3, 12))
        ]
        lines.append(review_line(f"film {number} is {' '.join(words)} .", rating, "AB"[number % 2]))
    write_reviews(folder / "reviews.tsv", lines)
    return folder

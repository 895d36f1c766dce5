"""The examples under docs/ run as printed there, and show what they are there to show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def lines(name: str, *arguments: object) -> list[str]:
    """What the example prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | {"MPLBACKEND": "Agg"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def numbers(line: str) -> list[float]:
    return [float(text) for text in re.findall(r"-?\d+\.\d+(?:e-?\d+)?|\d+e-\d+", line)]


def test_drop_in():
    same, standard, bayesian = lines("drop_in.py")
    assert numbers(same)[0] < 1e-6
    fitted, tested = numbers(standard)
    assert fitted > 0.95 and tested < 0.9  # learned by heart
    assert numbers(bayesian)[1] > tested + 0.05


def test_time_series(tmp_path):
    error, doubt, with_noise, scaled, score = lines("time_series.py", tmp_path)
    assert numbers(error)[0] < 0.7  # the mean of the series has 0.8
    assert numbers(doubt)[0] < 83  # per cent
    for line in (with_noise, scaled):
        assert 86 < numbers(line)[0] < 94
    assert 0.1 < numbers(score)[0] < 0.4
    assert (tmp_path / "time_series.png").read_bytes().startswith(b"\x89PNG")


def test_language_model():
    corpus, epoch, test, heading, *words = lines("language_model.py", 1)
    assert "types" in corpus and heading.startswith("next word")
    assert numbers(epoch)[0] < 200 and numbers(test)[0] < 200  # words alone have 330
    assert len(words) == 19
    rows = [numbers(line)[-4:] for line in words]
    for p, std, entropy, information in rows:
        assert 0 <= p <= 1 and 0 <= std <= 0.5 and 0 <= information < entropy < 7.35  # ln 1550
    assert sum(std for _, std, _, _ in rows) > 0 and sum(row[3] for row in rows) > 0


def test_recurrent_ppo():
    pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")
    (line,) = lines("recurrent_ppo.py", 1024)
    assert line.startswith("after 1024 steps: ")


def test_torchrl_module():
    pytest.importorskip("torchrl", reason="torchrl is not installed")
    for line in lines("torchrl_module.py"):
        assert numbers(line)[-1] < 1e-5


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_is_tested_and_listed(name):
    assert f"test_{name.removesuffix('.py')}" in globals()
    assert f"({name})" in (EXAMPLES / "README.md").read_text()

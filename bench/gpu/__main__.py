"""Everything that needs a GPU, in two calls of minutes: docs/gpu.md.

python -m bench.gpu [--part 1|2] [--out DIR] [--before ROWS] [--only STAGE ...] [--seconds N]

DIR gets part1.jsonl (a row as soon as it is known), part1.log (what the stages print) and part1.txt
(the summary, which is also the last thing that is printed). --before: the rows of an earlier part
1; what failed in it is what part 2 begins with.
"""

import argparse
import json
import sys
from pathlib import Path

from . import stages
from .runner import Runner

ROOT = Path(__file__).resolve().parents[2]


def failed_before(path: Path | None) -> dict[str, list[str]]:
    """The jobs of each stage that had an error, of an earlier part's rows."""
    failed: dict[str, list[str]] = {}
    for line in path.read_text().splitlines() if path else ():
        row = json.loads(line)
        if "error" in row and row.get("job"):
            failed.setdefault(row["stage"], []).append(row["job"])
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--part", type=int, choices=(1, 2), default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/gpu", metavar="DIR")
    parser.add_argument("--before", type=Path, metavar="ROWS", help="part1.jsonl of another run")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="stages by name")
    parser.add_argument("--seconds", type=float, help="in all; of part 1 330, of part 2 300")
    arguments = parser.parse_args()
    try:
        before = failed_before(arguments.before)
    except (OSError, ValueError) as error:
        parser.error(f"--before: expected rows of an earlier part, got {error}")
    table = stages.part_1() if arguments.part == 1 else stages.part_2(before)
    if unknown := set(arguments.only or ()) - {stage.name for stage in table}:
        known = ", ".join(stage.name for stage in table)
        parser.error(f"--only: expected some of {known}, got {', '.join(sorted(unknown))}")
    table = [s for s in table if not arguments.only or s.name in arguments.only]
    seconds = arguments.seconds or stages.SECONDS[arguments.part]
    runner = Runner(arguments.out.resolve(), f"part{arguments.part}", seconds)
    sys.exit(runner.run(table))


if __name__ == "__main__":
    main()

"""Reads a PTX file into kernels: their statements, by line, and where in the sources each stands.

PTX ISA 9.0: 4 (syntax), 5 (state spaces), 10.1 (special registers), 11.5 (.loc).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path


class UnknownError(Exception):
    """A piece of PTX whose meaning nobody has written down here."""


@dataclass
class Statement:
    line: int
    text: str  # without guard and semicolon; "$label:" for a label
    guard: str = ""  # "%p1" or "!%p1"
    source: str = ""  # "cuda/tile.cuh:80 < cuda/forward.cuh:120", innermost first


@dataclass
class Kernel:
    name: str
    statements: list[Statement] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # prefix: type
    params: dict[str, int] = field(default_factory=dict)  # bytes by name
    most_threads: int = 0  # .maxntid, 0: none
    shared: set[str] = field(default_factory=set)  # names of dynamic shared memory

    def drop(self, instruction: str, source: str = "", *, every: int = 0) -> int:
        """Leaves instructions out, to plant a bug. See `change`."""
        return self.change(instruction, None, source, every=every)

    def change(self, instruction: str, new: str | None, source: str = "", *, every: int = 0) -> int:
        """Replaces (re.sub) what matches `instruction`, None: leaves the statement out, where
        `source` is part of the place; `every`: only one in so many. Returns how many changed."""
        count = matches = 0
        kept = []
        for s in self.statements:
            if re.match(instruction, s.text) and re.search(source, s.source):
                matches += 1
                if not every or matches % every == 0:
                    count += 1
                    if new is None:
                        continue
                    s.text = re.sub(instruction, new, s.text, count=1)
            kept.append(s)
        self.statements = kept
        return count


class Places:
    """What .file and .loc say. A .loc inside an inlined function names the call, which has its own
    .loc before it."""

    def __init__(self, text: str):
        files = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.M)
        self.files = {number: short_name(path) for number, path in files}
        self.callers: dict[tuple, tuple | None] = {}
        self.now = ""

    def read(self, text: str) -> None:
        m = re.match(r"\.loc\s+(\d+) (\d+) (\d+)(?:,.*inlined_at (\d+) (\d+) (\d+))?", text)
        place = m.groups()[:3]
        self.callers[place] = m.groups()[3:] if m[4] else None
        if place[1] == "0":  # made by the compiler: belongs to what is around it
            return
        chain: dict[tuple, str] = {}
        at: tuple | None = place
        while at and at not in chain:
            chain[at] = f"{self.files.get(at[0], '?')}:{at[1]}"
            at = self.callers.get(at)
        self.now = " < ".join(dict.fromkeys(chain.values()))


def short_name(path: str) -> str:
    """From csrc or from the root of the repository."""
    parts = Path(path).resolve().parts
    for root, kept in (("csrc", 0), ("tests", 1)):
        if root in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(root) - kept :])
    return parts[-1]


def parts(text: str) -> dict[str, tuple[int, int]]:
    """Where the kernels of a file stand, by name."""
    if m := re.search(r"^(\.visible )?\.(func|global|const)\b.*", text, re.M):
        raise UnknownError(m[0])
    found = list(re.finditer(r"^(?:\.visible |\.weak )?\.entry (\w+)\(", text, re.M))
    ends = [m.start() for m in found[1:]] + [len(text)]
    return {m[1]: (m.start(), end) for m, end in zip(found, ends, strict=True)}


def parse(text: str, name: str, part: tuple[int, int], places: Places) -> Kernel:
    """One kernel of a file. `places`: Places(text)."""
    kernel = Kernel(name)
    kernel.shared.update(re.findall(r"^\.extern \.shared \.align \d+ \.b8 (\w+)\[\];", text, re.M))
    start = text.count("\n", 0, part[0])
    lines = iter(enumerate(text[slice(*part)].splitlines(), start + 1))
    head(kernel, lines)
    body(kernel, lines, places)
    return kernel


def head(kernel: Kernel, lines) -> None:
    for _, line in lines:
        if m := re.match(r"\s*\.maxntid (\d+), 1, 1", line):
            kernel.most_threads = int(m[1])
        elif m := re.match(r"\s*\.param \.align \d+ \.b8 (\w+)\[(\d+)\]", line):
            kernel.params[m[1]] = int(m[2])
        elif re.match(r"\s*\.param", line):
            raise UnknownError(line)
        elif line.strip() == "{":
            break
    if len(kernel.params) != 1:
        raise UnknownError(f"{kernel.name}: {len(kernel.params)} parameters, expected 1")


def body(kernel: Kernel, lines, places: Places) -> None:
    depth, text = 1, ""
    for number, line in lines:
        code = line.split("//")[0].strip()
        if not text and code.startswith(".loc"):
            places.read(code)
            continue
        while code:
            if not text and code[0] in "{}":  # of a scope; those of vectors stand in statements
                depth += 1 if code[0] == "{" else -1
                code = code[1:].strip()
                if depth == 0:
                    return
            elif not text and (m := re.match(r"(\$[\w$]+:)", code)):
                kernel.statements.append(Statement(number, m[1], source=places.now))
                code = code[m.end() :].strip()
            else:
                part, semicolon, rest = code.partition(";")
                text = f"{text} {part.strip()}".strip()
                if semicolon:
                    statement(kernel, number, re.sub(r"\s+", " ", text), places.now)
                    text = ""
                code = rest.strip()
    raise UnknownError(f"{kernel.name}: no end")


def statement(kernel: Kernel, line: int, text: str, source: str) -> None:
    if m := re.fullmatch(r"\.reg \.(\w+) (%?[a-z]+)(<\d+>)?", text):
        kernel.registers[m[2]] = m[1]  # a name without a count belongs to a scope
    elif not text.startswith(".pragma"):
        guard = ""
        if m := re.match(r"@(!?%p\d+) ", text):
            guard, text = m[1], text[m.end() :]
        kernel.statements.append(Statement(line, text, guard, source))

"""What a compiled kernel does in a step, counted in its machine code:

    python -m bench.sass OBJECT [--kernel PATTERN] [--loop]

OBJECT is an object of the build (build/extension/*.cu.o, build/ptx/90a/*.o) or the library; a
kernel is meant by a pattern of its short name as `make kernels` prints it. cuobjdump disassembles:
of the toolkit, or of pip's nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm (CUDA_HOME, PATH).

A row is a part of the loop over time steps of a persistent recurrence, on the longest way of a
thread that updates elements, resets and all:

before      until it looks at the words of other blocks; hidden while they are under way
products    from there to the last mma
path        from there until h or dz is published: sums, elements
after       what comes behind: results to memory, loads for the next step
again       loops inside that ask again for words that were missing: once each, not in the sums

`cycles` is how long one warp takes that meets no other: every instruction waits as ptxas has told
it to, and for the latencies of LATENCY; words that others publish are there at once. A part cannot
be shorter than `issue`, in which a scheduler issues the instructions of all its warps, nor than
`mma`, in which the multiprocessor does their products. `us` is the longest of the three. Clock and
rate of mma are those of cost.h; nothing here is measured.
"""

import argparse
import importlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLAN = ROOT / "csrc/cuda/plan"
SCHEDULERS = 4  # of a multiprocessor

# Classes by opcode, the first that matches; everything else is "alu".
CLASSES = {
    "mma": r"HMMA|IMMA|BMMA|WGMMA",
    "poll": r"LDG?\..*STRONG|LDG?\..*ACQUIRE",
    "publish": r"STG?\..*STRONG|STG?\..*RELEASE|MEMBAR|FENCE|CCTL",
    "ldg": r"LDG|LD\.|LDGSTS|LDGDEPBAR|DEPBAR",
    "stg": r"STG|ST\.|RED|ATOM",
    "lds": r"LDS|LDSM",
    "sts": r"STS",
    "ldc": r"LDC|ULDC|S2R|S2UR|CS2R",
    "mufu": r"MUFU",
    "convert": r"F2F\.|I2F|F2I|FRND",
    "barrier": r"BAR|UCGABAR|WARPSYNC|BSYNC|BSSY|SYNCS|ERRBAR",
    "branch": r"BRA|BRX|EXIT|CALL|RET|JMP|NOP|YIELD",
    "shuffle": r"SHFL|VOTE|MATCH|REDUX",
}
# Cycles until a result is there: of instructions that ptxas does not know the time of, and of mma.
LATENCY = {
    "mma": 33,  # m16n8k16 on Hopper, as others measured it
    "lds": 30,
    "mufu": 24,
    "convert": 24,
    "shuffle": 24,
    "ldc": 30,
    "ldg": 270,  # from L2
    "poll": 0,  # a trip through L2 is the latency of an engine (tilings.h)
    "barrier": 20,
}
PARTS = ("before", "products", "path", "after", "again")


@dataclass
class Instruction:
    """One of them, with what ptxas has told the hardware."""

    address: int
    predicate: str
    opcode: str
    operands: str
    stall: int  # cycles until the next one
    sets: int  # scoreboard that its result clears; 7: none
    waits: int  # bits: scoreboards it waits for
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.kind = next((k for k, p in CLASSES.items() if re.match(p, self.opcode)), "alu")
        if self.kind == "poll" and not re.search(r"128|64|ACQUIRE|\.32", self.opcode):
            self.kind = "ldg" if ".U16" in self.opcode or ".U8" in self.opcode else "poll"

    @property
    def target(self) -> int | None:
        if self.opcode == "BRA.DIV":  # to what a warp does whose lanes have lost each other
            return None
        found = re.search(r"(?:^|\s)(0x[0-9a-f]+)$", self.operands)
        return int(found[1], 16) if self.opcode.startswith("BRA") and found else None

    @property
    def ends(self) -> bool:
        """Whether what stands behind it is reached by others alone."""
        return (
            self.opcode in ("EXIT", "BRA", "RET")
            and not self.predicate
            and (self.opcode != "BRA" or bool(re.fullmatch(r"0x[0-9a-f]+", self.operands.strip())))
        )

    def registers(self) -> tuple[set[int], set[int]]:
        """Written (of mma alone) and read."""
        numbers = [int(n) for n in re.findall(r"\bR(\d+)\b", self.operands)]
        if self.kind != "mma" or not numbers:
            return set(), set(numbers)
        return set(range(numbers[0], numbers[0] + 4)), set(numbers[1:])


@dataclass
class Kernel:
    name: str
    instructions: list[Instruction]


def parse(dump: str) -> Iterator[Kernel]:
    """The kernels of what cuobjdump -sass prints."""
    line = re.compile(
        r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s+/\* 0x[0-9a-f]+ \*/"
        r"\s+/\* (0x[0-9a-f]+) \*/"
    )
    for part in re.split(r"\n\s*Function : ", dump)[1:]:
        found = []
        for at, predicate, opcode, operands, word in line.findall(part):
            control = int(word, 16) >> 41
            scoreboard, mask = control >> 5 & 7, control >> 11 & 63
            found.append(
                Instruction(int(at, 16), predicate, opcode, operands, max(1, control & 15),
                            scoreboard, mask)
            )  # fmt: skip
        yield Kernel(part.split("\n", 1)[0].strip(), found)


# ---- loops


Block = list[Instruction]


class Graph:
    """Basic blocks of a kernel and the loops among them."""

    def __init__(self, code: list[Instruction]):
        places = {i.address for i in code}
        starts = {code[0].address} | {i.target for i in code if i.target in places}
        starts |= {b.address for a, b in itertools.pairwise(code)
                   if a.target is not None or a.ends}  # fmt: skip
        self.blocks: dict[int, Block] = {}
        for i in code:
            if i.address in starts:
                self.blocks[i.address] = block = []
            block.append(i)
        order = list(self.blocks)
        self.next: dict[int, list[int]] = {}
        for here, after in zip(order, [*order[1:], None], strict=True):
            last = self.blocks[here][-1]
            to = [last.target] if last.target in self.blocks else []
            if after is not None and not last.ends:
                to.append(after)
            self.next[here] = to
        self.first = order[0]
        self.back = set(self.back_edges())

    def back_edges(self) -> Iterator[tuple[int, int]]:
        state = {self.first: 1}
        stack = [(self.first, iter(self.next[self.first]))]
        while stack:
            here, to = stack[-1]
            block = next(to, None)
            if block is None:
                state[here] = 2
                stack.pop()
            elif state.get(block) == 1:
                yield here, block
            elif block not in state:
                state[block] = 1
                stack.append((block, iter(self.next[block])))

    def loop(self, latch: int, head: int) -> set[int]:
        before: dict[int, list[int]] = {b: [] for b in self.blocks}
        for here, to in self.next.items():
            for block in to:
                before[block].append(here)
        found, left = {head}, [latch]
        while left:
            here = left.pop()
            if here not in found:
                found.add(here)
                left += before[here]
        return found

    def loops(self) -> dict[int, set[int]]:
        """By the head of each."""
        found: dict[int, set[int]] = {}
        for latch, head in self.back:
            found[head] = found.get(head, set()) | self.loop(latch, head)
        return found

    def longest_way(self, head: int, inside: set[int]) -> Block:
        """From the head of a loop to where it starts again."""
        best: dict[int, tuple[int, list[int]]] = {}

        def longest(block: int) -> tuple[int, list[int]]:
            if block not in best:
                ways = [longest(b) for b in self.next[block]
                        if b in inside and (block, b) not in self.back]  # fmt: skip
                length, way = max(ways, default=(0, []))
                best[block] = length + len(self.blocks[block]), [block, *way]
            return best[block]

        sys.setrecursionlimit(10_000)
        return [i for b in longest(head)[1] for i in self.blocks[b]]

    def time_loop(self) -> tuple[Block, Block] | None:
        """The longest way through the loop over steps, and what asks again inside."""
        loops = self.loops()
        multiply = {h: b for h, b in loops.items() if any(
            i.kind == "mma" for n in b for i in self.blocks[n])}  # fmt: skip
        if not multiply:
            return None
        head = max(multiply, key=lambda h: len(multiply[h]))
        again = [
            i
            for h, blocks in loops.items()
            if h not in multiply and blocks < multiply[head]
            for b in blocks
            for i in self.blocks[b]
        ]
        asks = {i.address for i in again}
        way = [i for i in self.longest_way(head, multiply[head]) if i.address not in asks]
        return way, again


# ---- a step


def polled(code: Block) -> set[int]:
    """Registers that words of other blocks arrive in."""
    firsts = [int(re.findall(r"\bR(\d+)\b", i.operands)[0]) for i in code if i.kind == "poll"]
    return {r for first in firsts for r in range(first, first + 4)}


def parts(way: Block, again: Block) -> dict[str, Block]:
    kinds = [i.kind for i in way]
    look = next((n for n, i in enumerate(way) if i.registers()[1] & polled(way[:n])), 0)
    multiplied = len(kinds) - kinds[::-1].index("mma")
    published = [n for n, i in enumerate(way) if i.kind == "publish" and n >= multiplied]
    if not published:  # through shared memory: what is stored before the last barrier
        published = [n for n, i in enumerate(way) if i.opcode.startswith("BAR") and n >= multiplied]
    ends = [0, look, multiplied, max(published, default=len(way) - 1) + 1, len(way)]
    pieces = [way[a:b] for a, b in itertools.pairwise(ends)]
    return dict(zip(PARTS, [*pieces, again], strict=True))


def cycles(code: Iterable[Instruction]) -> list[int]:
    """When each instruction is issued, and at the end when the last one is done."""
    now, times = 0, []
    clears = [0] * 8
    ready: dict[int, int] = {}
    for i in code:
        written, read = i.registers()
        now = max([now, *(clears[n] for n in range(6) if i.waits >> n & 1),
                   *(ready.get(r, 0) for r in read)])  # fmt: skip
        times.append(now)
        if i.sets < 6:
            clears[i.sets] = max(clears[i.sets], now + LATENCY.get(i.kind, 0))
        for r in written:  # what it adds to is handed on inside the unit
            ready[r] = now + LATENCY["mma"]
        now += i.stall + (LATENCY["barrier"] if re.match(r"BAR\.SYNC", i.opcode) else 0)
    return [*times, now]


def warps_of(name: str) -> tuple[int, int]:
    """Warps of a block, and those of them that update elements."""
    tile = re.search(r"(\d+)x(\d+)x(\d+)", name)
    if not tile:
        raise ValueError(f"{name}: expected a tile such as 3x8x1")
    k_warps, unit_tiles = int(tile[2]), int(tile[3])
    return k_warps * unit_tiles, min(k_warps, 4) * unit_tiles


def rates(architecture: str) -> tuple[float, float]:
    """Gigahertz, and cycles of a multiprocessor for one mma, by cost.h."""
    number = int(re.sub(r"\D", "", architecture))
    rows = re.findall(r"\{(\d+), (\d+), \{([\d.]+), ([\d.]+),", (PLAN / "cost.h").read_text())
    *_, found = [r for r in rows if int(r[0]) * 10 + int(r[1]) <= number]
    return float(found[2]), float(found[3])


def report(name: str, code: list[Instruction], architecture: str) -> list[str]:
    """A line for each part of a step of the kernel; none where it has no such loop."""
    found = Graph(code).time_loop()
    if not found:
        return []
    times = cycles(found[0])
    everyone, makers = warps_of(name)
    gigahertz, mma_cycles = rates(architecture)
    lines, begin = [], 0
    for part, piece in parts(*found).items():
        counts = Counter(i.kind for i in piece)
        line = f"  {part:9}{len(piece):6} " + " ".join(f"{counts[k]:7}" for k in (*CLASSES, "alu"))
        if part != "again":
            end = begin + len(piece)
            warps = everyone if part in ("before", "products") else makers
            bounds = [
                times[end] - times[begin],
                len(piece) * warps / SCHEDULERS,
                counts["mma"] * warps * mma_cycles,
            ]
            line += f" {bounds[0]:7} {bounds[1]:6.0f} {bounds[2]:5.0f}"
            line += f" {max(bounds) / gigahertz / 1e3:6.3f}"
            begin = end
        lines.append(line)
    return lines


# ---- tools


def disassemble(file: Path) -> str:
    folders = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin", os.environ.get("PATH", "")]
    folders += [f"{p}/nvidia/cu13/bin" for p in sys.path]
    tool = shutil.which("cuobjdump", path=os.pathsep.join(folders))
    if not tool:
        sys.exit("bench.sass: cuobjdump not found: pip install nvidia-cuda-cuobjdump "
                 "nvidia-cuda-nvdisasm, or set CUDA_HOME")  # fmt: skip
    environment = os.environ | {"PATH": f"{Path(tool).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([tool, "-sass", str(file)], capture_output=True, text=True, check=False,
                          env=environment)  # fmt: skip
    if done.returncode:
        sys.exit(f"bench.sass: {file}: {done.stderr.strip()}")
    return done.stdout


def main(arguments: list[str]) -> None:
    sys.path.append(str(ROOT / "tests"))
    short_names = importlib.import_module("kernels").short_names  # tests/kernels.py
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("object", type=Path)
    parser.add_argument("--kernel", default="", help="pattern of short names")
    parser.add_argument("--loop", action="store_true", help="print the instructions counted")
    options = parser.parse_args(arguments)
    dump = disassemble(options.object)
    print(
        " " * 11 + "  all", *(f"{k:>7}" for k in (*CLASSES, "alu", "cycles")), " issue   mma     us"
    )
    for cubin in re.split(r"\n(?=[\t ]*code for sm_)", dump)[1:]:
        architecture = re.search(r"sm_(\w+)", cubin)[1]  # type: ignore[index]
        kernels = {k.name: k for k in parse(cubin)}
        for mangled, name in short_names(kernels).items():
            if not re.search(options.kernel, name) or "ward_kernel" not in name:
                continue
            lines = report(name, kernels[mangled].instructions, architecture)
            if lines:
                print(f"{name} on sm_{architecture}", *lines, sep="\n")
            if lines and options.loop:
                print_loop(kernels[mangled].instructions)


def print_loop(code: list[Instruction]) -> None:
    way, _ = Graph(code).time_loop() or ([], [])
    for time, i in zip(cycles(way), way, strict=False):
        print(f"    {time:5} {i.address:05x} {i.predicate:5} {i.opcode} {i.operands}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Registers, shared memory and spills of every CUDA kernel on every architecture: `make kernels`.

Reads what ptxas said while the package was built (setup.py keeps it beside each object), after
bringing that build up to date. Fails if a kernel spills registers or needs a stack frame: both mean
that a value which should stay in a register goes through memory at every step. Fails as well if an
object calls what nvcc puts in place of a device function that host code calls (tests/stand_ins.py).

    python tests/kernels.py [FOLDER]     FOLDER: with *.ptxas and *.o, instead of the build's
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import stand_ins

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "extension"
SOURCES = ROOT / "csrc"

# csrc/cuda/persistent/word_masks.cuh: enum class MaskForm
MASKS = ("no masks", "ready masks", "packed masks")

# Kernels that may spill, a few values at most: (pattern of the short name, architecture or "",
# reason).
_FULL = "U takes 128 to 192 of 255 registers; what spills waits for the makers, off the path of h"
EXCEPTIONS: list[tuple[str, str, str]] = [
    (r"(for|back)ward_kernel<Lstm, \w+, grid, 6x8x1\+loop", "", _FULL),
    (r"forward_kernel<Lstm, \w+, grid, 4x8x1, ready masks", "sm_80", _FULL),
    (r"forward_kernel<Lstm, \w+, grid, 4x8x1, ready masks", "sm_120", _FULL),
    (r"weight_gradients_kernel<float, Shape<128, 128", "", "two blocks of 128 registers a thread"),
]
MOST_SPILLED = 160  # bytes stored that an exception excuses


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture. Bytes; shared memory that is static."""

    name: str  # mangled
    architecture: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> bool:
        return self.stack + self.spill_stores + self.spill_loads > 0


class LogError(ValueError):
    """A log that is not what ptxas -v writes, or two at once."""


def parse(log: str) -> list[Kernel]:
    """The kernels of a log of `nvcc -Xptxas -v`.

    What a kernel calls without inlining has its own stack and spills, which count as the kernel's.
    """
    kernels, entry, frame = [], None, (0, 0, 0)
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(.+)' for '(\w+)'", line):
            if entry:
                raise LogError(f"{entry[0]}: no registers before the next kernel")
            entry, frame = match.groups(), (0, 0, 0)
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            frame = tuple(a + int(b) for a, b in zip(frame, match.groups(), strict=True))
        elif match := re.search(r"Used (\d+) registers", line):
            if not entry:
                raise LogError(f"registers of no kernel: {line.strip()}")
            shared = re.search(r"(\d+) bytes smem", line)
            used = int(match[1]), int(shared[1]) if shared else 0
            kernels.append(Kernel(*entry, *used, *frame))
            entry = None
    if entry:
        raise LogError(f"{entry[0]}: the log ends before its registers")
    return kernels


def short_names(mangled: Iterable[str]) -> dict[str, str]:
    """Readable names: no namespace, no argument list, no template argument that repeats another."""
    names = sorted(set(mangled))
    result = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return dict(zip(names, map(short, result.stdout.splitlines()), strict=True))


def short(demangled: str) -> str:
    name = re.sub(r"\((?!anonymous)[^()]*\)$", "", demangled).removeprefix("void ")
    name = re.sub(r"(\w+|\(anonymous namespace\))::", "", name)
    name = re.sub(r"\(MaskForm\)(\d)", lambda m: MASKS[int(m[1])], name)
    # Tile<Tiling{3, 8, 1, true, 6}> as 3x8x1+loop+6
    name = re.sub(
        r"Tile<Tiling\{(\d+), (\d+), (\d+), (true|false), (\d+)\} ?>",
        lambda m: f"{m[1]}x{m[2]}x{m[3]}" + "+loop" * (m[4] == "true") + f"+{m[5]}" * (m[5] != "0"),
        name,
    )
    # Exchange<bfloat16, 3x8x1, 1> repeats what the kernel's own arguments say.
    name = re.sub(r"(\w+)Exchange<[^<>]*?(, true|, false)?>", exchange_name, name)
    return re.sub(r"\s+>", ">", name)


def exchange_name(match: re.Match) -> str:
    if match[1] != "Shared":
        return match[1].lower()
    return "cluster" if match[2] == ", true" else "block"


def excused(name: str, kernel: Kernel) -> bool:
    """Whether this kernel may spill, and no more than an exception allows."""
    return kernel.spill_stores <= MOST_SPILLED and any(
        re.search(pattern, name) and where in ("", kernel.architecture)
        for pattern, where, _ in EXCEPTIONS
    )


def cell(kernel: Kernel | None) -> str:
    if not kernel:
        return "-"
    text = str(kernel.registers)
    if kernel.shared:
        text += f" s{kernel.shared}"
    if kernel.spills:
        text += f" !{kernel.stack}/{kernel.spill_stores}/{kernel.spill_loads}"
    return text


def table(logs: dict[str, list[Kernel]]) -> str:
    """A row for each kernel, a column for each architecture, a block for each source."""
    everything = [k for kernels in logs.values() for k in kernels]
    architectures = sorted({k.architecture for k in everything}, key=architecture_number)
    names = short_names(k.name for k in everything)
    rows = []
    for source, kernels in logs.items():
        if kernels:
            rows.append((source, [""] * len(architectures)))
        of = {(k.name, k.architecture): k for k in kernels}
        for name in sorted({k.name for k in kernels}, key=lambda n: natural(names[n])):
            cells = [cell(of.get((name, a))) for a in architectures]
            rows.append(("  " + names[name], cells))
    rows = [("", architectures), *rows]
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(architectures))]
    first = max(len(label) for label, _ in rows)
    return "\n".join(
        " ".join([label.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
        .rstrip()
        for label, cells in rows
    )  # fmt: skip


def natural(text: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def architecture_number(architecture: str) -> int:
    return int(re.search(r"\d+", architecture)[0])


def failures(kernels: Iterable[Kernel]) -> list[str]:
    """A line for each kernel that spills and is not excused."""
    spilled = [k for k in kernels if k.spills]
    names = short_names(k.name for k in spilled) if spilled else {}
    return [
        f"{names[k.name]} on {k.architecture}: stack frame of {k.stack} bytes, "
        f"{k.spill_stores} bytes of spill stores, {k.spill_loads} of loads"
        for k in spilled
        if not excused(names[k.name], k)
    ]


def bring_up_to_date(logs: list[str]) -> None:
    """Lets ninja make these logs, with their objects, by the rules that setup.py wrote."""
    rules = BUILD / "build.ninja"
    if not rules.exists():
        sys.exit(f"make kernels: {rules} not found; build first: pip install -e .")
    if "rule nvcc" not in rules.read_text():
        sys.exit(
            "make kernels: the package was built without CUDA: install the CUDA toolkit (nvcc) or "
            "set CUDA_HOME, then pip install -e ."
        )
    ninja = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    if not ninja:
        sys.exit("make kernels: ninja not found: pip install ninja")
    if subprocess.run([ninja, "-C", str(BUILD), "--quiet", *logs]).returncode:
        sys.exit("make kernels: the build failed")


def logs_and_objects(folder: Path | None) -> tuple[dict[Path, str], list[Path]]:
    """The logs with the sources they are of, and the objects: of the build, or of any folder."""
    if folder:
        return {p: p.stem for p in sorted(folder.glob("*.ptxas"))}, sorted(folder.glob("*.o"))
    # As in setup.py: the name of an object spells out the folders under csrc.
    sources = [p.relative_to(SOURCES) for p in sorted((SOURCES / "cuda").rglob("*.cu"))]
    objects = {BUILD / "_".join(s.with_suffix(".cu.o").parts): str(s) for s in sources}
    logs = {path.with_name(f"{path.name}.ptxas"): source for path, source in objects.items()}
    bring_up_to_date([path.name for path in logs])
    return logs, list(objects)


def main(arguments: list[str]) -> int:
    paths, objects = logs_and_objects(Path(arguments[0]) if arguments else None)
    logs = {name: parse(path.read_text()) for path, name in paths.items()}
    kernels = [k for of_source in logs.values() for k in of_source]
    if not kernels:
        print("make kernels: no kernel was compiled")
        return 1
    print("registers of a thread; s: bytes of static shared memory; !: bytes of stack frame, spill")
    print(
        "stores, spill loads. Tiles: chunks x k warps x unit tiles of a block "
        "(csrc/cuda/plan/tilings.h)"
    )
    print(table(logs))
    for pattern, where, reason in EXCEPTIONS:
        print(f"may spill: {pattern} {where}: {reason}")
    refused = [line for path in objects for line in stand_ins.refused(path)]
    print(f"\n{len(refused)} calls of device functions from host code in {len(objects)} objects")
    for line in refused:
        print(f"  {line}")
    bad = failures(kernels)
    print(f"{len(bad)} of {len(kernels)} kernels spill or have a stack frame")
    for line in bad:
        print(f"  {line}")
    return 1 if bad or refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

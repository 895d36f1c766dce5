"""Finds in an object what nvcc puts in place of a call from host code to a device function.

Within a template nvcc accepts such a call without a word, even under
`--Werror cross-execution-space-call`. For the host it compiles the device function with another
body, `::exit(1)`, or `::free(nullptr)` where it is a constructor or destructor (cudafe++ of CUDA
13.0, read in what `nvcc --keep` keeps). The first ends the user's process with status 1 and no
message, the second leaves an object half made. Nothing under csrc/cuda may call either by itself.
"""

import re
import subprocess
from pathlib import Path

STAND_INS = {
    "exit": "a device function",
    "free": "a constructor or destructor for the device",
}


def refused(path: Path) -> list[str]:
    """A line for each stand-in and each function of the object at `path` that calls it."""
    undefined = subprocess.run(
        ["nm", "--undefined-only", str(path)], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[-1] for line in undefined.splitlines()} & STAND_INS.keys()
    if not names:
        return []
    return [
        f"{path.name}: {caller} calls {name}, which nvcc puts in place of {STAND_INS[name]} that "
        "host code calls: make that __host__ __device__, or call it from device code alone"
        for caller, name in callers(path, names)
    ]


def callers(path: Path, names: set[str]) -> list[tuple[str, str]]:
    """The functions that refer to one of `names`, with that name; "data" where none does."""
    code = subprocess.run(
        ["objdump", "--disassemble", "--reloc", "--demangle", "--no-show-raw-insn", str(path)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found, function = {}, ""
    for line in code.splitlines():
        if start := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            function = start[1]
        elif (use := re.search(r"\bR_\w+\s+(\w+)", line)) and use[1] in names:
            found[function, use[1]] = None
    missing = names - {name for _, name in found}
    return [*found, *(("data", name) for name in sorted(missing))]

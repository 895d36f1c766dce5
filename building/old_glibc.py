"""Links the library as if the C library were that of 2018, so that it runs on systems of that age.

The linker takes the newest version of a function that the building machine's C library has. Since
glibc 2.34 that is GLIBC_2.34 for all that moved there from libpthread, libdl and librt, though the
functions are the same. Stubs of libc and libm, named to the linker before the real ones and like
them, offer every symbol in the newest version that TARGET has. What runs is the real C library.
tests/check_wheel.py sees what came of it.
"""

import re
import shutil
import subprocess
from pathlib import Path

TARGET = (2, 28)  # manylinux_2_28: what torch>=2.10 itself wants
LIBRARIES = ("libc.so.6", "libm.so.6")
# std::shared_ptr reads this flag of glibc 2.32. Ours says that there may be threads.
HIDDEN = """extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
"""
Symbols = dict[str, tuple[str, str]]  # name: its version, its type


def link_stubs(folder: Path, compiler: list[str]) -> list[str]:
    """What to name to the linker, made in `folder`; nothing where there is no glibc."""
    paths = {name: library_path(name, compiler) for name in LIBRARIES}
    if not shutil.which("objdump") or None in paths.values():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / "hidden.cpp"
    hidden.write_text(HIDDEN)
    target = str(hidden.with_suffix(".o"))
    subprocess.run([*compiler, "-fPIC", "-c", str(hidden), "-o", target], check=True)
    stubs = [make_stub(folder, n, symbols_of(p), compiler) for n, p in paths.items() if p]
    return [target, *stubs]


def library_path(name: str, compiler: list[str]) -> Path | None:
    """Where the compiler finds it; None where it has none, as with another C library."""
    command = [*compiler, f"-print-file-name={name}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return Path(printed) if Path(printed).is_absolute() else None  # else the name comes back


def symbols_of(library: Path) -> Symbols:
    """Each symbol in the newest version that TARGET has, or in its oldest where that is newer."""
    command = ["objdump", "-T", str(library)]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    versions: dict[str, list[tuple[int, ...]]] = {}
    types = {}
    # The seven flags end in F for a function, in O for data, in "iD " for a choice among functions.
    pattern = re.compile(r"^\w+ .{4}( DF| DO|iD ) [^*]+\s\(?GLIBC_([\d.]+)\)?\s+(\w+)$")
    for line in table.splitlines():
        if match := pattern.match(line):
            versions.setdefault(match[3], []).append(tuple(map(int, match[2].split("."))))
            types[match[3]] = "object" if match[1] == " DO" else "function"
    chosen = {}
    for name, known in versions.items():
        old = [version for version in known if version <= TARGET]
        version = max(old) if old else min(known)
        chosen[name] = ".".join(map(str, version)), types[name]
    return chosen


def make_stub(folder: Path, library: str, symbols: Symbols, compiler: list[str]) -> str:
    """A shared library of that name with these symbols and nothing behind them."""
    source, script, stub = (folder / f"{library}{end}" for end in (".s", ".map", ""))
    source.write_text(
        "".join(
            f".globl old_{name}\n.type old_{name},%{kind}\n.size old_{name},8\n"
            f"old_{name}: .zero 8\n.symver old_{name},{name}@@GLIBC_{version}\n"
            for name, (version, kind) in sorted(symbols.items())
        )
    )
    versions = sorted({version for version, _ in symbols.values()})
    script.write_text("".join(f"GLIBC_{version} {{}};\n" for version in versions))
    command = [*compiler, "-shared", "-nostdlib", f"-Wl,-soname,{library}"]
    command += [f"-Wl,--version-script={script}", str(source), "-o", str(stub)]
    subprocess.run(command, check=True)
    return str(stub)

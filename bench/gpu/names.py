"""The names of the kernels in a library, read from the file: no tool and no GPU is needed.

nvcc registers each kernel by its mangled name, which therefore stands as text among the read-only
data of the host code. Names of functions that are no kernels stand in symbol tables only.
"""

import ctypes
import functools
import re
import struct
from collections.abc import Iterable
from pathlib import Path

_KERNEL = re.compile(rb"_ZN4brnn4cuda\w+")


def section(elf: bytes, wanted: bytes) -> bytes:
    """A section of a 64-bit ELF file; empty where it has none of that name."""
    (start,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_at = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + i * size) for i in range(count)]
    names = headers[names_at][4]
    for name, _, _, _, offset, length in headers:
        at = names + name
        if elf[at : elf.index(b"\0", at)] == wanted:
            return elf[offset : offset + length]
    return b""


@functools.cache
def kernels(library: Path) -> frozenset[str]:
    """The mangled names of every kernel of the package in a library."""
    data = section(library.read_bytes(), b".rodata")
    return frozenset(name.decode() for name in _KERNEL.findall(data))


def demangle(name: str) -> str:
    """As a profiler shows a kernel; the name itself where it is none."""
    library = ctypes.CDLL("libstdc++.so.6")
    function = library.__cxa_demangle
    function.restype = ctypes.c_void_p
    status = ctypes.c_int()
    text = function(name.encode(), None, None, ctypes.byref(status))
    if not text:
        return name
    try:
        return ctypes.string_at(text).decode()
    finally:
        free = ctypes.CDLL(None).free
        free.argtypes = [ctypes.c_void_p]
        free(text)


def mangled(shown: Iterable[str], known: Iterable[str]) -> list[str]:
    """What a profiler has shown, by mangled names where they are `known`; sorted, each once."""
    by_text = {demangle(name): name for name in known}
    return sorted({by_text.get(name, name) for name in shown})


def short(name: str) -> str:
    """A kernel in the few words that tell it from others."""
    text = re.sub(r"^void |brnn::cuda::|brnn::|\(anonymous namespace\)::", "", demangle(name))
    return text.split("(brnn")[0].split("Params")[0][:140]

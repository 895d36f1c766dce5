"""Compiles tests/cuda/<name>.cpp into a Python module, anew when it or csrc has changed."""

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def module(name: str) -> ModuleType:
    source, csrc = HERE / f"{name}.cpp", ROOT / "csrc"
    read = [source, *sorted(csrc.glob("*.h")), *sorted((csrc / "cuda/plan").iterdir())]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in read)).hexdigest()[:16]
    library = ROOT / "build/tests" / f"{name}-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        include = [csrc, pybind11.get_include(), sysconfig.get_paths()["include"]]
        temporary = library.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [*shlex.split(os.environ.get("CXX", "g++")), "-std=c++20", "-O1", "-fPIC", "-shared",
             "-fvisibility=hidden", *(f"-I{folder}" for folder in include), str(source),
             "-o", str(temporary)],
            check=True,
        )  # fmt: skip
        temporary.rename(library)
    spec = importlib.util.spec_from_file_location(name, library)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded

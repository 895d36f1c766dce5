"""What `make wheel` built and installed: contents, binary interface, ops, command line.

`make wheel` runs it in the second environment, outside the tree. `make test` leaves it out: there
the package is the tree itself.
"""

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from cases import CELLS, Case, backward_arguments, leaves, op_arguments, parity, sample
from torch.library import opcheck

import bayesrnn_cuda as brnn

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
VERSION = brnn.__version__


def tree(folder: str) -> set[str]:
    """Files of the repository that git knows, relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return set(listed.splitlines())


def test_imported_as_installed():
    assert Path(brnn.__file__).is_relative_to(sys.prefix)
    assert Path(brnn.ops.LIBRARY_PATH).is_relative_to(sys.prefix)


def test_one_wheel_for_every_python():
    (wheel,) = DIST.glob("*.whl")
    assert wheel.name.startswith(f"bayesrnn_cuda-{VERSION}-cp310-abi3-manylinux_2_")


def test_runs_on_systems_as_old_as_those_that_torch_runs_on():
    """torch>=2.10 comes as manylinux_2_28: glibc 2.28, and the libstdc++ of GCC 8."""
    (wheel,) = DIST.glob("*.whl")
    tags = re.findall(r"manylinux_2_(\d+)_", wheel.name)
    assert tags and min(map(int, tags)) <= 28


def test_wheel_has_the_package_and_no_more():
    (wheel,) = DIST.glob("*.whl")
    entries = zipfile.ZipFile(wheel).namelist()
    names = {n for n in entries if ".dist-info/" not in n and not n.endswith("/")}  # no folders
    assert names == tree("bayesrnn_cuda") | {"bayesrnn_cuda/_C.abi3.so"}


def test_sdist_has_what_the_build_needs_and_nothing_built():
    (sdist,) = DIST.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = [member.name for member in archive.getmembers() if member.isfile()]
    names = {name.split("/", 1)[1] for name in members}
    wanted = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"}
    wanted |= tree("building") | tree("csrc") | tree("bayesrnn_cuda")
    made = {"PKG-INFO", "setup.cfg"}
    assert {n for n in names if ".egg-info/" not in n} == wanted | made


def test_metadata():
    assert importlib.metadata.version("bayesrnn_cuda") == VERSION
    assert importlib.metadata.metadata("bayesrnn_cuda")["License-Expression"] == "MIT"
    files = [str(file) for file in importlib.metadata.files("bayesrnn_cuda") or ()]
    assert any(file.endswith("licenses/LICENSE") for file in files)


def test_library_uses_only_torch_c_interface():
    """torch's stable ABI is C functions; a C++ name of torch's or a Python one would tie it."""
    command = ["nm", "-D", "--undefined-only", brnn.ops.LIBRARY_PATH]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in output.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    tied = ("Py", "_Py", "_ZN2at", "_ZNK2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch", "_ZNK5torch")
    assert [name for name in names if name.startswith(tied)] == []


@pytest.mark.parametrize("cell", CELLS)
def test_ops_under_this_torch(cell):
    """Values and gradients equal the reference's; schema, fake kernel and autograd are in order."""
    case = Case(cell, masks="untied", lengths=True, resets="random", reverse=True)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert parity(case, dtype) == []
    inputs = sample(case, torch.float32)
    for op, arguments in (
        op_arguments(case, leaves(case, inputs)),
        backward_arguments(case, inputs),
    ):
        opcheck(op.default, arguments)


def test_command_line():
    def output(*arguments: str) -> str:
        command = [str(Path(sys.executable).parent / "bayesrnn"), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert f"torch: {torch.__version__}" in output("info")
    assert "engine cpu" in output("plan", "gru", "35", "20", "200", "200")
    assert "ptb-small-bayesian" in output("experiment", "list")

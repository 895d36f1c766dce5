"""Which build each command of the Makefile makes, and when: pip only says here what it got."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# GPUS and NVCC are what the machine has: architectures, and 0 where nvcc is found.
PYTHON = """#!/bin/sh
case "$*" in
  "building/cuda_toolkit.py gpus") echo "$GPUS" ;;
  building/cuda_toolkit.py) exit "$NVCC" ;;
esac
"""
PIP = """#!/bin/sh
echo "$* CUDA=$BAYESRNN_CUDA FOR=$TORCH_CUDA_ARCH_LIST" >> pip.txt
"""
TRAIN, TESTS = "install --quiet -e .[train]", "install --quiet -e .[train,test]"


class Tree:
    """A tree with the Makefile and an environment of stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        for name in ("csrc", "building", "tests/ptx", ".venv/bin"):
            (folder / name).mkdir(parents=True)
        (folder / "csrc/ops.cpp").touch()
        (folder / ".venv/torch").touch()
        for name, text in (("python", PYTHON), ("pip", PIP), ("bayesrnn", "#!/bin/sh\n")):
            (folder / ".venv/bin" / name).write_text(text)
            (folder / ".venv/bin" / name).chmod(0o755)

    def make(self, target: str, gpus: str = "", nvcc: int = 0, **environment: str) -> list[str]:
        """What pip was called with, and for which CUDA."""
        log = self.folder / "pip.txt"
        log.unlink(missing_ok=True)
        kept = {"PATH": os.environ["PATH"], "GPUS": gpus, "NVCC": str(nvcc)}
        subprocess.run(
            ["make", "--silent", target], cwd=self.folder, env=kept | environment, check=True
        )
        return log.read_text().splitlines() if log.exists() else []

    def edit(self) -> None:
        (self.folder / "csrc/ops.cpp").write_text("changed")


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_training_without_a_gpu_builds_without_cuda(tree):
    assert tree.make("train") == [f"{TRAIN} CUDA=0 FOR="]
    assert tree.make("train") == []


def test_training_beside_a_gpu_builds_for_that_one(tree):
    assert tree.make("train", gpus="9.0a") == [f"{TRAIN} CUDA= FOR=9.0a"]


def test_tests_after_training_build_with_cuda_and_serve_both(tree):
    tree.make("train")
    assert tree.make("test") == [f"{TESTS} CUDA= FOR=9.0a"]
    assert tree.make("train") == tree.make("test") == []


def test_kernels_are_built_for_all_architectures_and_serve_every_command(tree):
    assert tree.make("kernels", gpus="8.0") == [f"{TESTS} CUDA= FOR="]
    assert tree.make("train") == tree.make("test") == tree.make("kernels") == []


def test_a_change_is_compiled_for_each_command_that_needs_it(tree):
    tree.make("kernels")
    tree.edit()
    assert tree.make("train") == [f"{TRAIN} CUDA=0 FOR="]
    assert tree.make("test", gpus="8.0;9.0a") == [f"{TESTS} CUDA= FOR=8.0;9.0a"]
    assert tree.make("kernels") == [f"{TESTS} CUDA= FOR="]


@pytest.mark.parametrize("target", ["train", "test", "kernels"])
def test_the_environment_decides_first(tree, target):
    (line,) = tree.make(target, gpus="8.0", TORCH_CUDA_ARCH_LIST="12.0")
    assert line.endswith("CUDA= FOR=12.0")
    (line,) = tree.make(target, nvcc=1, BAYESRNN_CUDA="0")
    assert " CUDA=0 " in line
    assert tree.make(target, nvcc=1, BAYESRNN_CUDA="0") == []


@pytest.mark.parametrize("target", ["test", "kernels"])
def test_a_missing_toolkit_is_installed_from_pip(tree, target):
    toolkit, package = tree.make(target, nvcc=1)
    names = ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-runtime", "cuda-cccl")
    assert toolkit.startswith(f"install --quiet {' '.join(f'nvidia-{n}==13.0.*' for n in names)} ")
    assert package.startswith(TESTS)
    assert len(tree.make("train", nvcc=1)) == 0


def test_the_packages_of_the_recipes_leave_torch_as_it_is(tree):
    package, tools = tree.make("tools")
    assert package == f"{TESTS} CUDA= FOR=9.0a"
    assert tools.startswith("install --quiet torch==2.13.0 accelerate captum darts ")
    assert "torchvision" in tools and " -e " not in tools
    assert tree.make("tools") == []

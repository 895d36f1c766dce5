"""The error where NVIDIA's driver is too old for the CUDA runtime that the library carries.

A program links that runtime, as the library does, and finds a driver of ours: one function, which
tells a version. What the runtime then says is what it says beside a real old driver.
"""

import os
import subprocess
from pathlib import Path

import pytest

from building.cuda_toolkit import cuda_home, library_folder

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = cuda_home()
pytestmark = pytest.mark.skipif(not HOME, reason="needs nvcc: pip install -e '.[cuda]'")

PROGRAM = """
#include "cuda/driver.h"

#include <cstdio>
#include <sstream>

int main() {
  using namespace brnn::cuda;
  std::istringstream module("NVRM version: NVIDIA UNIX x86_64 Kernel Module  520.61.05  Thu Sep");
  std::printf("%s\\n", describe(cudaSetDevice(0)).c_str());
  std::printf("%s\\n", driver_too_old(CUDART_VERSION, 11080, driver_release(module)).c_str());
  std::printf("%s\\n", describe(cudaErrorInvalidValue).c_str());
}
"""
DRIVER = 'extern "C" int cuDriverGetVersion(int* version) { *version = 11080; return 0; }\n'


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program, and beside it the driver that it finds only if told where."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "program.cpp").write_text(PROGRAM)
    (folder / "driver.cpp").write_text(DRIVER)
    (folder / "old").mkdir()
    options = [f"-I{ROOT / 'csrc'}", "-isystem", str(HOME / "include"), "-std=c++20"]
    cudart = [f"-L{library_folder(HOME)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    for command in (
        ["g++", *options, "program.cpp", "-o", "program", *cudart],
        ["g++", "-shared", "-fPIC", "driver.cpp", "-o", "old/libcuda.so.1"],
    ):
        subprocess.run(command, cwd=folder, check=True)
    return folder / "program"


def said(program, driver):
    environment = os.environ | {"LD_LIBRARY_PATH": str(program.parent / driver)}
    result = subprocess.run([program], env=environment, check=True, capture_output=True, text=True)
    return result.stdout.splitlines()


def test_an_old_driver_is_named_with_the_one_that_is_needed(program):
    by_runtime, with_release, other = said(program, "old")
    head, found = by_runtime.split(", got ")
    assert head.startswith("driver: expected NVIDIA's version 5")
    assert " or later for CUDA 1" in head
    assert "CUDA 11.8; update the driver, or build bayesrnn_cuda with an older" in found
    assert ", got version 520.61.05 for CUDA 11.8; update the driver" in with_release
    assert other == "invalid argument"


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="there is a driver")
def test_a_missing_driver_is_said(program):
    assert ", got none; update the driver" in said(program, "nowhere")[0]

"""A worker whose jobs are rates of this GPU that no data sheet gives: python -m bench.gpu.probes

    --build FILE   compiles the probes for TORCH_CUDA_ARCH_LIST's first architecture and ends

reads       bytes that all multiprocessors read from L2 when each reads the same memory: h_t
mma         cycles of a multiprocessor for one mma.sync m16n8k16, FLOP a second, and the clock
products    cycles of 24 masked products in each of 8 warps: three chunks of an LSTM's step
warp sums   cycles of the sum over 8 warps that follows
release     cycles of a word and its flag with release, as grid_flags publishes
cluster     cycles of a cluster's barrier
hops        cycles of a word through L2 from one block to another
exchange    microseconds a step of a grid's exchange alone, at H = 768, B = 16, by planes (1
            forward, 4 backward), loads asked for ahead, and prefetch; its stages in L2, or flushed
launch      microseconds from one kernel to the next: plain, cooperative, in a CUDA graph
library     torch's own: copy, products at the size of a step and of all steps

The kernels are probes.cu. The program that users install has none of them: a library beside this
file is taken if it is there (--build makes it where there is nvcc), else nvcc compiles one.
"""

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .device import Cuda
from .worker import Send, serve

ROOT = Path(__file__).resolve().parents[2]
# Not probes.so: beside probes.py Python would import that instead.
LIBRARY = Path(__file__).with_name("libprobes.so")
ROUNDS = 5
EXCHANGES = ("1_3_0", "1_3_1", "1_1_1", "4_12_0", "4_12_1", "4_6_1", "4_3_1")
STAGE = 2 * 24 * 128 * 4  # bytes of a plane of a stage at H = 768, B = 16
STEPS = {"in L2": 128, "flushed": 1024}
FLUSH = 256 << 20  # bytes, more than any L2


class BuildError(Exception):
    """The kernels cannot be compiled here; in one line."""


def build(architecture: str, library: Path) -> None:
    """probes.cu compiled for an architecture such as "90a".

    Raises:
        BuildError: no CUDA toolkit, or one that cannot compile for the architecture.
    """
    folder = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    nvcc = shutil.which("nvcc", path=folder) or shutil.which("nvcc")
    if nvcc is None:
        raise BuildError(f"expected nvcc in {folder} or on PATH, got none (set CUDA_HOME)")
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, "-std=c++20", "-O3", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static",
               "-gencode", target, "-I", ROOT / "csrc", "-o", library,
               ROOT / "bench/gpu/probes.cu"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"nvcc: {(done.stderr or done.stdout).strip().splitlines()[0]}")


class Call(ctypes.Structure):  # ProbeCall of probes.cu
    _fields_ = [
        ("name", ctypes.c_char_p), ("launches", ctypes.c_int), ("blocks", ctypes.c_int),
        ("blocks_y", ctypes.c_int),
        ("threads", ctypes.c_int), ("cluster", ctypes.c_int), ("cooperative", ctypes.c_int),
        ("repeats", ctypes.c_int), ("partner", ctypes.c_int), ("memory", ctypes.c_void_p),
        ("bytes", ctypes.c_int64), ("cycles", ctypes.c_void_p), ("seen", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    ]  # fmt: skip


def load(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.probe.restype = ctypes.c_char_p
    return loaded


@cache
def _library() -> ctypes.CDLL:
    if LIBRARY.exists():
        return load(LIBRARY)
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:  # what is loaded stays
        made = Path(folder) / LIBRARY.name
        build(f"{major}{minor}{'a' if major == 9 else ''}", made)
        return load(made)


@dataclass
class Launch:
    """A probe's grid and memory."""

    name: str
    memory: torch.Tensor
    repeats: int
    blocks: tuple[int, int] = (1, 1)
    threads: int = 256
    partner: int = 0
    cluster: int = 0
    cooperative: bool = False
    launches: int = 1

    def __post_init__(self) -> None:
        blocks, device = self.blocks[0] * self.blocks[1], self.memory.device
        self.cycles = torch.zeros(blocks, dtype=torch.int64, device=device)
        self.seen = torch.zeros(blocks, self.threads, dtype=torch.int32, device=device)

    def __call__(self) -> None:
        """Raises RuntimeError where the launch fails."""
        call = Call(
            self.name.encode(), self.launches, *self.blocks, self.threads, self.cluster,
            self.cooperative,
            self.repeats, self.partner, self.memory.data_ptr(), self.memory.nbytes,
            self.cycles.data_ptr(), self.seen.data_ptr(), torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        if error := _library().probe(ctypes.byref(call)):
            raise RuntimeError(f"{self.name}: {error.decode()}")


def seconds(function: Callable[[], object], before: Callable[[], object] | None = None) -> float:
    """Of one call on the GPU: the median of ROUNDS, after one to warm up."""
    taken = []
    for _ in range(1 + ROUNDS):
        if before:
            before()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(taken[1:])


def cycles(launch: Launch) -> float:
    """Of the median block, for each repeat."""
    found = launch.cycles.double().median().item()
    if found <= 0:
        raise RuntimeError(f"{launch.name}: expected cycles of each block, got {found:g}")
    return found / launch.repeats


def multiprocessors() -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count


def zeros(size: int) -> torch.Tensor:
    return torch.zeros(size // 4, dtype=torch.int32, device="cuda")


def random(size: int) -> torch.Tensor:
    """Bytes of pairs of bfloat16 of ordinary size."""
    return torch.randn(size // 2, device="cuda").bfloat16().view(torch.int32)


# ---- jobs: what each tells


def reads(kib: int) -> dict[str, Any]:
    everywhere = multiprocessors()
    launch = Launch("l2_reads", random(kib << 10), 1024, (everywhere, 1), threads=1024)
    took = seconds(launch)
    size = 16 * 1024 * launch.repeats  # bytes of a block
    return {
        "terabytes_per_second": everywhere * size / took * 1e-12,
        "bytes_per_cycle_and_multiprocessor": size / launch.repeats / cycles(launch),
    }


def mma(warps: int) -> dict[str, Any]:
    everywhere = multiprocessors()
    launch = Launch("tensor_cores", random(1 << 16), 8192, (everywhere, 1), threads=32 * warps)
    took = seconds(launch)
    flop = 2 * 16 * 8 * 16 * 8 * launch.repeats * warps * everywhere
    return {
        "cycles_per_mma": cycles(launch) / (8 * warps),
        "teraflop_per_second": flop / took * 1e-12,
        "gigahertz": cycles(launch) * launch.repeats / took * 1e-9,
    }


def in_cycles(name: str, repeats: int, everywhere: bool = True, **options: Any) -> dict[str, Any]:
    """A probe whose figure is cycles alone."""
    blocks = multiprocessors() if everywhere else 1
    if cluster := options.get("cluster"):
        blocks = blocks // 2 // cluster * cluster
    launch = Launch(name, random(1 << 20), repeats, (max(blocks, cluster or 1), 1), **options)
    launch()
    launch()
    torch.cuda.synchronize()
    return {"cycles": cycles(launch)}


def hops() -> dict[str, Any]:
    """To blocks here and there on the chip."""
    found, everywhere, repeats = [], multiprocessors(), 500
    for partner in range(1, everywhere, 5):
        memory = zeros(repeats * 256).fill_(-1)
        launch = Launch("hops", memory, repeats, (everywhere, 1), 32, partner, cooperative=True)
        launch()
        launch.cycles = launch.cycles[:1]  # the first block keeps the time
        found.append(cycles(launch) / 2)
    return {"least": min(found), "cycles": statistics.median(found), "most": max(found)}


def exchange(which: str, where: str) -> dict[str, Any]:
    planes, steps = int(which[0]), STEPS[where]
    stages = zeros(steps * planes * STAGE)
    other = zeros(FLUSH)

    def before() -> None:
        stages.fill_(-1)
        if where == "flushed":
            other.add_(1)

    launch = Launch(f"exchange_{which}", stages, steps, (48, 2), cooperative=True)
    return {"us_a_step": seconds(launch, before) / steps * 1e6, "cycles": cycles(launch)}


def launches() -> dict[str, Any]:
    count, row = 200, {}
    for name, cooperative in (("plain", False), ("cooperative", True)):
        launch = Launch("nothing", zeros(64), 1, (1, 1), 32, 0, 0, cooperative, count)
        row[f"{name}_us"] = seconds(launch) / count * 1e6
        if not cooperative:
            row["graph_us"] = seconds(Cuda().captured(launch)) / count * 1e6
    return row


def copies() -> float:
    """Terabytes a second of a copy of 1 GiB, read and written."""
    a = zeros(1 << 30)
    b = torch.ones_like(a)
    return 2 * a.nbytes / seconds(lambda: a.copy_(b)) * 1e-12


def library() -> dict[str, Any]:
    """torch's copy, and its products: of a step of stepwise in a graph, of all steps."""
    row = {"copy_terabytes_per_second": copies()}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for B, H, count in ((16, 768, 50), (2000, 650, 10)):
            h = torch.randn(B, H, device="cuda", dtype=dtype)
            u = torch.randn(4 * H, H, device="cuda", dtype=dtype)

            def steps(h=h, u=u, count=count) -> None:
                for _ in range(count):
                    torch.nn.functional.linear(h, u)

            took = seconds(Cuda().captured(steps)) / count
            row[f"{name}_step_us_B{B}_H{H}"] = took * 1e6
        x = torch.randn(4096, 4096, device="cuda", dtype=dtype)
        row[f"{name}_teraflop_per_second"] = 2 * 4096**3 / seconds(lambda x=x: x @ x) * 1e-12
    return row


def jobs() -> dict[str, Callable[[], dict[str, Any]]]:
    """By name, in the order of what they decide."""
    table: dict[str, Callable[[], dict[str, Any]]] = {"hops": hops}
    for which in EXCHANGES:
        for where in STEPS:
            if where == "flushed" or which.endswith("0"):
                table[f"exchange {which} {where}"] = lambda w=which, s=where: exchange(w, s)
    table["warp sums"] = lambda: in_cycles("warp_sums", 2000)
    table["products"] = lambda: in_cycles("masked_products", 2000)
    for kib in (24, 48, 192, 1024):
        table[f"reads {kib} KiB"] = lambda k=kib: reads(k)
    for warps in (4, 8, 16):
        table[f"mma {warps} warps"] = lambda w=warps: mma(w)
    table["release alone"] = lambda: in_cycles("releases", 2000, everywhere=False, threads=32)
    table["release everywhere"] = lambda: in_cycles("releases", 2000, threads=32)
    for size in (2, 8):
        table[f"cluster of {size}"] = lambda s=size: in_cycles("cluster_barriers", 2000, cluster=s)
    return table | {"launch": launches, "library": library}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.build:
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0a").replace(" ", ";").split(";")[0]
        try:
            build(wanted.removesuffix("+PTX").replace(".", ""), arguments.build)
        except BuildError as error:
            sys.exit(f"bench.gpu.probes: {error}")
        return
    table = jobs()

    def run(job: str, skip: Collection[str], send: Send) -> None:
        send(row=table[job]())

    serve(list(table), run)


if __name__ == "__main__":
    main()

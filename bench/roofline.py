"""Three rates that bound the persistent kernels and that no data sheet gives, on this GPU.

python -m bench.roofline [--out FILE]

reads     bytes a second that all multiprocessors together read from L2 when each reads the same
          memory: what every block does with h_t in each step
mma       mma.sync m16n8k16 in bfloat16: cycles of a multiprocessor for one, and FLOP a second
fence     cycles of a store and __threadfence, what publishing by flags costs beside the data

The kernels are compiled here, by nvcc, for this GPU: the library that users install has no probes.
"""

import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import harness
from .options import OneLineParser

_ROOT = Path(__file__).resolve().parent.parent
_ROUNDS = 7


class BuildError(Exception):
    """The kernels cannot be compiled here; in one line."""


def build(architecture: str, out: Path) -> ctypes.CDLL:
    """bench/roofline.cu compiled for an architecture such as "90a", and loaded.

    Raises:
        BuildError: no CUDA toolkit, or one that cannot compile for the architecture.
    """
    folder = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    nvcc = shutil.which("nvcc", path=folder) or shutil.which("nvcc")
    if nvcc is None:
        raise BuildError(f"expected nvcc in {folder} or on PATH, got none (set CUDA_HOME)")
    library = out / "roofline.so"
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, "-std=c++20", "-O3", "-shared", "-Xcompiler", "-fPIC",
               "-gencode", target, "-I", _ROOT / "csrc/cuda", "-o", library,
               _ROOT / "bench/roofline.cu"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"nvcc: {(done.stderr or done.stdout).strip().splitlines()[0]}")
    loaded = ctypes.CDLL(str(library))
    loaded.roofline.restype = ctypes.c_char_p
    return loaded


@cache
def _library() -> ctypes.CDLL:
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:  # what is loaded stays
        return build(f"{major}{minor}{'a' if major == 9 else ''}", Path(folder))


def launch(
    rate: str, memory: torch.Tensor, blocks: int, threads: int, repeats: int
) -> torch.Tensor:
    """Cycles that each block took, [blocks]. Raises RuntimeError where the launch fails."""
    cycles = torch.empty(blocks, dtype=torch.int64, device=memory.device)
    error = _library().roofline(
        rate.encode(), ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(memory.nbytes), blocks,
        threads, repeats, ctypes.c_void_p(cycles.data_ptr()),
        ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
    )  # fmt: skip
    if error:
        raise RuntimeError(f"{rate}: {error.decode()}")
    return cycles


def timed(rate: str, memory: torch.Tensor, blocks: int, threads: int, repeats: int) -> tuple:
    """(seconds, cycles of a block): medians; the first round only warms up."""
    seconds, cycles = [], []
    for _ in range(1 + _ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        taken = launch(rate, memory, blocks, threads, repeats)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) * 1e-3)
        cycles.append(taken.double().median().item())
    return statistics.median(seconds[1:]), statistics.median(cycles[1:])


def reads(kib: int, blocks: int, repeats: int) -> dict[str, Any]:
    memory = torch.zeros(kib * 256, dtype=torch.int32, device="cuda")
    seconds, cycles = timed("l2_reads", memory, blocks, 1024, repeats)
    size = memory.numel() * 4 * repeats
    return {
        "rate": "reads", "kib": kib, "terabytes_per_second": blocks * size / seconds * 1e-12,
        "bytes_per_cycle_and_multiprocessor": size / cycles,
    }  # fmt: skip


def mma(blocks: int, warps: int, repeats: int = 4096) -> dict[str, Any]:
    memory = torch.zeros(1024, dtype=torch.int32, device="cuda")
    seconds, cycles = timed("tensor_cores", memory, blocks, 32 * warps, repeats)
    count = 8 * repeats * warps
    flop = 2 * 16 * 8 * 16 * count * blocks
    return {
        "rate": "mma", "warps": warps, "cycles_per_mma": cycles / count,
        "teraflop_per_second": flop / seconds * 1e-12,
    }  # fmt: skip


def fence(blocks: int, repeats: int = 4096) -> dict[str, Any]:
    memory = torch.zeros(32 * blocks, dtype=torch.int32, device="cuda")
    _, cycles = timed("fences", memory, blocks, 32, repeats)
    return {"rate": "fence", "blocks": blocks, "cycles": cycles / repeats}


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write JSON there")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("expected a GPU, got none (torch.cuda.is_available() is false)")
    try:
        _library()
    except BuildError as error:
        parser.error(str(error))
    everywhere = torch.cuda.get_device_properties("cuda").multi_processor_count
    records = [reads(kib, everywhere, 65536 // kib) for kib in (24, 48, 192, 1024)]
    records += [mma(everywhere, warps) for warps in (4, 8, 16)]
    records += [fence(blocks) for blocks in (1, everywhere)]
    for record in records:
        rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in record.items()}
        print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in rounded.items()))
    if arguments.out:
        harness.save(arguments.out, torch.device("cuda"), records)


if __name__ == "__main__":
    main()

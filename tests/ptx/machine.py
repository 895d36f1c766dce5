"""The machine (machine/) from Python: kernels of one architecture, on a named device.

machine = Machine("90a")
machine.configure(schedule="random", seed=3, yields=0.1)
machine.run_kernel("name", params, grid=(2, 1, 1), threads=64)  # raises ReportError
"""

import ctypes
import functools
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import build
import decode
import registers
import source
import torch

DEVICES = {"80": "A100", "90a": "H100", "100": "B200", "120": "RTX 5090"}
SCHEDULES = ("round_robin", "random", "block_ahead")
MOST_STEPS = 20_000_000


class ReportError(RuntimeError):
    """A launch ended with a report: deadlock, livelock, divergence, data race, misuse."""


class Grid(ctypes.Structure):
    _fields_ = [(k, ctypes.c_uint32) for k in ("x", "y", "z", "threads", "shared_bytes", "cluster")]
    _fields_ += [("cooperative", ctypes.c_bool)]


def schedules(seeds: int = 2, yields: float = 0.1) -> list[dict]:
    """Arguments of configure(): round robin once, the other schedules with each seed."""
    some = [{"schedule": "round_robin"}]
    for seed in range(1, seeds + 1):
        some += [{"schedule": name, "seed": seed, "yields": yields} for name in SCHEDULES[1:]]
    return some


class Machine:
    """`targets`: objects whose kernels it has. With layer.so it runs whole layers (layer.py)."""

    def __init__(self, arch: str, *targets: str):
        objects = targets or tuple(f"{unit.stem}.o" for unit in build.UNITS)
        self.arch = arch
        self.folder = build.build(arch, "layer.so", *objects)
        self.library = ctypes.CDLL(str(self.folder / "layer.so"))
        for name in ("problem_text", "operation_name", "last_plan", "launched"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.names = self.operation_names()
        self.kernels = self.read_kernels([build.ptx_of(self.folder / o) for o in objects])
        self.registers: dict[str, int] = {}
        for o in objects:
            self.registers |= build.registers_of(self.folder / o)
        self.edit: Callable[[source.Kernel], object] | None = None
        self.failure: Exception | None = None
        self.dry = False
        self.loader = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_char_p)(self.load)
        self.device()
        self.configure()

    def operation_names(self) -> dict[str, int]:
        names: dict[str, int] = {}
        while name := self.library.operation_name(ctypes.c_int64(len(names))):
            if name.decode() in names:
                raise RuntimeError(f"{name.decode()} is there twice")
            names[name.decode()] = len(names)
        return names

    # ---- kernels

    def kernel(self, name: str) -> source.Kernel:
        """Freshly read, to be changed at will."""
        text, part, places = self.kernels[name]
        return source.parse(text, name, part, places)

    def read_kernels(self, texts: list[str]) -> dict[str, tuple]:
        """Where each kernel stands."""
        found: dict[str, tuple] = {}
        for text in texts:
            places = source.Places(text)
            found |= {name: (text, part, places) for name, part in source.parts(text).items()}
        return found

    def outline(self, name: str) -> decode.Program:
        """A kernel without its instructions: what a launch is checked against."""
        text, (start, _), _ = self.kernels[name]
        kernel = source.Kernel(name)
        source.head(kernel, iter(enumerate(text[start : start + 4000].splitlines())))
        return decode.Program(
            name, b"", 0, b"", 0, *kernel.params.values(), kernel.most_threads, []
        )

    def program(self, name: str) -> decode.Program:
        if self.edit is None:
            return self.cached_program(name)
        kernel = self.kernel(name)
        self.edit(kernel)
        return decode.decode(kernel, self.names)

    def cached_program(self, name: str) -> decode.Program:
        """Decoded once for each content of the object and of what decodes it."""
        text, part, _ = self.kernels[name]
        key = hashlib.sha256((self.key(text) + text[slice(*part)]).encode()).hexdigest()[:32]
        file = build.CACHE / "cache" / key
        if not file.exists():
            program = decode.decode(self.kernel(name), self.names)
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{id(self)}")
            temporary.write_bytes(pickle.dumps(program))
            temporary.rename(file)
        return pickle.loads(file.read_bytes())

    @functools.cache  # noqa: B019 - as long as the machine
    def key(self, text: str) -> str:
        own = [Path(m.__file__).read_text() for m in (source, decode, registers)]
        files = text[text.rfind("\n}\n") :]  # .file stands after the last kernel
        return "".join([*own, *self.names, files])

    def load(self, name: bytes) -> bool:
        try:
            self.define(self.outline(name.decode()) if self.dry else self.program(name.decode()))
        except Exception as error:  # told by check(): an exception cannot pass through C++
            self.failure = error
            return False
        return True

    def define(self, p: decode.Program) -> None:
        lines = (ctypes.c_int64 * len(p.sources))(*(line for line, _ in p.sources))
        texts = (ctypes.c_char_p * len(p.sources))(*(text.encode() for _, text in p.sources))
        numbers = (p.register_bytes, p.param_bytes, p.most_threads, self.registers[p.name])
        self.library.define_kernel(
            p.name.encode(), p.code, ctypes.c_int64(p.count), p.constants,
            ctypes.c_int64(len(p.constants)), *map(ctypes.c_int64, numbers), lines, texts,
            ctypes.c_int64(len(p.sources)),
        )  # fmt: skip

    def plant(self, edit: Callable[[source.Kernel], object] | None) -> None:
        """From now on `edit` changes every kernel before it is decoded; None: no more."""
        self.edit = edit
        self.library.forget_kernels()

    # ---- settings

    def configure(
        self, schedule: str = "round_robin", seed: int = 1, yields: float = 0.02,
        delays: float = 0.0, late_copies: float = 1.0, races: bool = True,
        fetches: bool = False, most_steps: int = MOST_STEPS,
    ) -> None:  # fmt: skip
        """What is not named gets its default back. `yields`, `delays`, `late_copies`: probabilities
        of a switch at an access, of a store that waits, of a copy that comes as late as it may."""
        double = ctypes.c_double
        self.library.configure(
            ctypes.c_uint64(seed), SCHEDULES.index(schedule), double(yields), double(delays),
            double(late_copies), races, fetches, ctypes.c_int64(most_steps),
        )  # fmt: skip

    def device(
        self, name: str = "", *, refuses_cooperation: int = 0, nothing_fits: bool = False,
        fills_nothing: int = 0, dry: bool = False,
    ) -> None:  # fmt: skip
        """Which cooperative launch is the first that is refused, and which cudaMemsetAsync that
        leaves memory as it is; 0: none."""
        name = name or DEVICES[self.arch]
        lacks = refuses_cooperation, nothing_fits, fills_nothing
        if self.library.set_device(name.encode(), *lacks, dry):
            raise ValueError(f"device: expected one of {list(DEVICES.values())}, got {name}")
        if dry != self.dry:  # of kernels that never run, no instruction is decoded
            self.library.forget_kernels()
        self.dry = dry

    def fetches(self) -> tuple[int, int, int]:
        """Sectors of 32 bytes that were prefetched since configure(fetches=True), how many of them
        were loaded afterwards, and how many had been loaded before."""
        counts = (ctypes.c_int64 * 3)()
        self.library.fetches(counts)
        return counts[0], counts[1], counts[2]

    # ---- memory and launches

    def add_memory(self, name: str, t: torch.Tensor) -> None:
        if t.numel():
            size = ctypes.c_size_t(t.numel() * t.element_size())
            self.library.add_memory(ctypes.c_void_p(t.data_ptr()), size, name.encode())

    def clear_memory(self) -> None:
        self.library.clear_memory()

    def check(self, code: int) -> None:
        """Raises what a call has reported."""
        failure, self.failure = self.failure, None
        if failure:
            raise failure
        if code == 2:
            raise ReportError(self.library.problem_text().decode())
        if code:
            raise RuntimeError(self.library.problem_text().decode())

    def run_kernel(
        self, name: str, params: ctypes.Structure, *, grid: tuple[int, int, int] = (1, 1, 1),
        threads: int = 32, shared_bytes: int = 0, cluster: int = 1, cooperative: bool = False,
    ) -> None:  # fmt: skip
        self.library.set_loader(self.loader)
        size = Grid(*grid, threads, shared_bytes, cluster, cooperative)
        self.check(self.library.run_kernel(name.encode(), ctypes.byref(params), ctypes.byref(size)))

    def launched(self) -> list[str]:
        """Kernels that were launched since the last call."""
        return self.library.launched().decode().split()

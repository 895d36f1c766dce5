"""Threads, processes, signals and memory: what a long-running program does around the layers."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from module_cases import PAIRS, every_cell, flat
from torch.utils.data import DataLoader, Dataset

import bayesrnn_cuda as brnn

pytestmark = pytest.mark.usefixtures("two_threads")

HERE = Path(__file__).parent
THREADS = 8
TORCH_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
# Enough work for two threads inside each call.
T, B, I, H = 10, 16, 48, 64  # noqa: E741


def same_bits(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- Threads


def results(module, seed: int) -> list[torch.Tensor]:
    """Outputs and every gradient for an input and masks of that seed."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(T, B, I, generator=rng).to(module.weight_ih_l0.dtype).requires_grad_()
    masks = module.sample_masks(B, generator=rng)
    out = flat(module(x, masks=masks))
    loss = sum(t.square().sum() for t in out)
    grads = torch.autograd.grad(loss, [x, *module.parameters()])
    return [t.detach() for t in (*out, *grads)]


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["layers of their own", "one shared layer"])
def test_eight_threads_give_the_bits_of_one(cell, shared, dtype):
    def make(index: int):
        torch.manual_seed(0 if shared else index)
        return PAIRS[cell][0](I, H, input_dropout=0.25, recurrent_dropout=0.25, dtype=dtype)

    modules = [make(0).eval()] * THREADS if shared else [make(i) for i in range(THREADS)]
    alone = [results(module, seed) for seed, module in enumerate(modules)]
    start = threading.Barrier(THREADS)

    def work(seed: int) -> bool:
        start.wait(60)
        return all(same_bits(results(modules[seed], seed), alone[seed]) for _ in range(5))

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(THREADS)))


def test_the_first_call_may_come_from_many_threads():
    """What is set up once, the choice of the instruction set, in a process that used nothing."""
    program = """
import threading, torch, bayesrnn_cuda as brnn
torch.manual_seed(0)
layer, x = brnn.BayesianLSTM(48, 64), torch.randn(10, 16, 48)
start, found = threading.Barrier(8), []
def work():
    start.wait(60)
    found.append(layer(x)[0])
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
print(len(found), all(torch.equal(y, found[0]) for y in found))
"""
    assert in_process(program).stdout == "8 True\n"


def test_other_threads_run_during_a_call():
    """The interpreter's lock is released: a long forward does not stop a server's other work."""
    layer = brnn.BayesianLSTM(H, H)
    x = torch.randn(20_000, 8, H)
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    with torch.no_grad():
        start = time.perf_counter()
        torch.ops.bayesrnn.lstm(
            x, *[torch.zeros(8, H)] * 2, *layer.layer_weights("l0"), *(None,) * 4, save=False
        )
        end = time.perf_counter()
    done.set()
    ticker.join()
    assert sum(start < t < end for t in ticks) >= 3, (end - start, len(ticks))


# ---- Processes


class Encoded(Dataset):
    """Sequences run through a layer, forward and backward, in the worker that loads them."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.layer = brnn.BayesianLSTM(I, H, bidirectional=True, dtype=dtype)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(index)
        x = torch.randn(T, B, I, generator=rng).to(self.layer.weight_ih_l0.dtype)
        y, _ = self.layer(x.requires_grad_())
        return torch.cat([y.detach().flatten(), torch.autograd.grad(y.sum(), x)[0].flatten()])


@pytest.mark.parametrize(
    ("way", "dtype"),
    [("fork", torch.float32), ("fork", torch.bfloat16), ("spawn", torch.bfloat16)],
    ids=str,
)
def test_data_loader(way, dtype):
    """Workers after the parent's own threads exist, which a fork does not take along.

    A worker that hangs makes the loader raise after its timeout.
    """
    data = Encoded(dtype)
    torch.set_num_threads(3)
    assert data[0].isfinite().all()  # the parent's threads
    torch.set_num_threads(1)  # as a worker has
    expected = [data[i] for i in range(len(data))]
    torch.set_num_threads(2)
    workers = 2 if way == "fork" else 1
    loader = DataLoader(
        data, batch_size=None, num_workers=workers, multiprocessing_context=way, timeout=120
    )
    assert same_bits(loader, expected)
    assert data[1].isfinite().all()  # and the parent goes on


def in_process(program: str, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=HERE, capture_output=True, text=True, timeout=300, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_a_child_of_fork_with_one_thread():
    """`os.fork` by hand: as with torch's own ops the child must ask for one thread first."""
    program = """
import os, sys, torch, bayesrnn_cuda as brnn
torch.set_num_threads(2)
torch.manual_seed(0)
layer, x = brnn.BayesianGRU(48, 64), torch.randn(10, 16, 48)
layer(x)[0].sum().backward()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    y = layer(x)[0]
    y.sum().backward()
    os._exit(0 if y.isfinite().all() else 1)
print(os.waitpid(child, 0)[1], layer(x)[0].isfinite().all().item())
"""
    assert in_process(program).stdout == "0 True\n"


# ---- Signals


INTERRUPTED = """
import signal, sys, torch, bayesrnn_cuda as brnn
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
torch.manual_seed(0)
torch.set_num_threads(2)
layer, x = brnn.BayesianLSTM(64, 64), torch.randn(40, 8, 64, requires_grad=True)
expected = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])
longer = torch.randn(4000, 8, 64, requires_grad=True)
print("ready", flush=True)
try:
    while True:
        y = layer(longer)[0]
        if sys.argv[1] == "backward":
            torch.autograd.grad(y.sum(), longer)
except KeyboardInterrupt:
    print("interrupted", flush=True)
again = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])
print(all(torch.equal(a, b) for a, b in zip(again, expected)))
"""


@pytest.mark.parametrize("during", ["forward", "backward"])
def test_interrupt(during):
    """Ctrl-C is heard after the call in progress, and leaves everything usable."""
    command = [sys.executable, "-c", INTERRUPTED, during]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (said, process.returncode) == ("interrupted\nTrue\n", 0)


# ---- Memory: training stands in test_cpu_engine.py


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def refused_call() -> None:
    layer = brnn.BayesianLSTM(50, 50)
    x = torch.zeros(20, 20, 50, requires_grad=True)
    zero = torch.zeros(20, 50)
    wrong = (x, zero, zero, *layer.layer_weights("l0"), None, None, torch.full((20,), 99), None)
    with pytest.raises(RuntimeError, match="lengths: expected values"):
        torch.ops.bayesrnn.lstm(*wrong)


def prediction() -> None:
    layer = brnn.BayesianGRU(50, 50, input_dropout=0.5, recurrent_dropout=0.5)
    brnn.mc_predict(layer, torch.zeros(5, 2, 50), samples=4, chunk=2)


def abandoned_graph() -> None:
    """A forward whose backward never comes."""
    brnn.BayesianLSTM(50, 50, num_layers=2)(torch.zeros(20, 4, 50))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("call", [refused_call, prediction, abandoned_graph])
def test_memory_does_not_grow_with(call):
    """And no cycle of references holds a tensor until Python's collector finds it."""
    for _ in range(100):
        call()
    gc.collect()
    gc.disable()
    try:
        before = resident_megabytes()
        for _ in range(400):
            call()
        grown = resident_megabytes() - before
    finally:
        gc.enable()
    assert grown < 20  # each call makes tensors of 0.1 to 2 MB


def no_memory(call) -> None:
    """That nn.LSTM too finds no memory is what makes it a size that no machine has."""
    with pytest.raises(torch.OutOfMemoryError, match=r"memory: expected room for .*, got \S"):
        call()


@every_cell
def test_no_memory_is_torchs_own_error(cell):
    ours, theirs = PAIRS[cell][0](4, 8, recurrent_dropout=0.5), PAIRS[cell][1](4, 8)
    x = torch.zeros(1, 1, 4).expand(2**30, 256, 4)  # [T, B, I] in 16 bytes; y takes 8 TB
    with pytest.raises(RuntimeError, match="memory"):
        theirs(x)
    no_memory(lambda: ours(x))
    with torch.no_grad():
        no_memory(lambda: ours(x))
    weights = dict(ours.named_parameters())
    loss = lambda w: torch.func.functional_call(ours, w, x)[0].sum()  # noqa: E731
    no_memory(lambda: torch.func.grad(loss)(weights))
    no_memory(lambda: ours.sample_masks(2**44))
    no_memory(lambda: brnn.LockedDropout(0.5)(torch.zeros(1, 1, 1).expand(1, 2**46, 1)))


@pytest.mark.skipif(
    TORCH_VERSION < (2, 13), reason="torch does not tell why it made no tensor before"
)
def test_what_is_no_want_of_memory_is_not_called_so():
    """Who halves a batch where memory is short must not do so for ever."""
    layer = brnn.BayesianLSTM(1, 16)
    x = torch.zeros(1, 1, 1).expand(2**50, 2**10, 1)  # y has 2^64 elements
    with pytest.raises(RuntimeError, match=r"^torch could not make .*: .*overflow") as caught:
        layer(x)
    assert not isinstance(caught.value, torch.OutOfMemoryError)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_no_memory_in_backward():
    """Some 130 MB for dx, where 50 are left; afterwards everything is as before."""
    program = """
import resource, torch, bayesrnn_cuda as brnn
from pathlib import Path
torch.set_num_threads(1)
layer, x = brnn.BayesianLSTM(1024, 8), torch.zeros(500, 64, 1024, requires_grad=True)
layer(x[:2])[0].sum().backward()
y = layer(x)[0].sum()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20, resource.RLIM_INFINITY))
try:
    y.backward()
except torch.OutOfMemoryError as error:
    print(str(error).split(", got")[0])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
layer(x)[0].sum().backward()
"""
    said = in_process(program).stdout
    assert said == "memory: expected room for a tensor of shape [500, 64, 1024]\n"

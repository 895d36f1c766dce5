"""What the speed stage asks of a device. A CPU answers too: then it runs without a GPU."""

from collections.abc import Callable

import torch


class Cuda:
    name = "cuda"

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def captured(self, function: Callable[[], object]) -> Callable[[], object]:
        """Replays a CUDA graph of function(), warmed up on a side stream as graphs ask for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = function()  # what the graph writes must outlive it

        def replay() -> object:
            graph.replay()
            return kept

        return replay

    def peak(self, function: Callable[[], object]) -> int:
        """Bytes that a call takes beyond what is there before it."""
        function()  # what libraries keep for good
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


class Cpu:
    """The same calls, of which the graph and the memory mean nothing."""

    name = "cpu"

    def synchronize(self) -> None: ...

    def captured(self, function: Callable[[], object]) -> Callable[[], object]:
        return function

    def peak(self, function: Callable[[], object]) -> int:
        function()
        return 0


Device = Cuda | Cpu


def device_of(name: str) -> Device:
    return Cuda() if name == "cuda" else Cpu()

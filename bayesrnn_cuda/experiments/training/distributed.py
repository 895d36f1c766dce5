"""Data-parallel runs under torchrun: one model, every process with its share of each batch."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from ...cli import UserError
from .configuration import RunConfig
from .runs import Interrupted

# All wait while the main process evaluates; the end of a process ends the others at once anyway.
_TIMEOUT = timedelta(days=2)


@dataclass(frozen=True)
class Workers:
    """This process among those of the run; without torchrun it is alone."""

    rank: int = 0
    size: int = 1  # number of processes
    local_rank: int = 0  # its number among those of its machine: that of its CUDA device

    @property
    def main(self) -> bool:
        """Whether this process prints, evaluates and writes the files."""
        return self.rank == 0

    def device(self, config: RunConfig) -> torch.device:
        """The device that `config` names; of several processes each has a CUDA device of its own.

        Raises:
            UserError: this machine does not have it.
        """
        device = config.resolved_device()
        if self.size == 1 or device.type == "cpu":
            return device
        count = torch.cuda.device_count()
        if device.index is not None:
            raise UserError(
                f"argument --device: expected cuda, one device for each of {self.size} processes, "
                f"got '{config.device}'"
            )
        if self.local_rank >= count:
            raise UserError(
                "argument --device: expected a CUDA device for each process of this machine, got "
                f"{count} for at least {self.local_rank + 1}"
            )
        return torch.device("cuda", self.local_rank)

    def share(self, items: int) -> slice:
        """This process's part of `items` in a row: the shares are consecutive and complete."""
        return slice(self.rank * items // self.size, (self.rank + 1) * items // self.size)

    def check_divides(self, batch_size: int) -> None:
        """Raises UserError unless all processes have the same share of `batch_size`."""
        if batch_size % self.size:
            raise UserError(
                f"argument --batch-size: expected a multiple of the {self.size} processes, got "
                f"{batch_size}"
            )

    def seed(self, seed: int) -> int:
        """Seed of this process's masks: `seed` itself in the main one, others in the others."""
        if self.main:
            return seed
        return int(np.random.SeedSequence((seed, self.rank)).generate_state(1)[0])

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model to train: with several processes, one that averages gradients over them."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model)

    def largest(self, value: int) -> int:
        """The largest `value` of all processes."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return int(values.item())

    def mean(self, value: float) -> float:
        """The mean `value` of all processes."""
        if self.size == 1:
            return value
        values = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(values)
        return values.item() / self.size

    def barrier(self) -> None:
        """Waits for all processes."""
        self.largest(0)

    def in_main(self, function: Callable[[], Any]) -> Any:
        """What `function` returns in the main process, in all; stops all where it is stopped."""
        outcome = [None, 0]
        if self.main:
            try:
                outcome[0] = function()
            except Interrupted as stop:
                outcome[1] = stop.number
        if self.size > 1:
            distributed.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        result, number = outcome
        if number:
            raise Interrupted(number)
        return result

    def gather(self, value: Any) -> list[Any]:
        """All processes' values, by rank, in the main process; an empty list in the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.main else None
        distributed.gather_object(value, values, dst=0)
        return values or []


ALONE = Workers()
# Kept to the end of the process: a group that goes with the last DistributedDataParallel, after
# destroy_process_group, waits for its threads while holding the lock that they want.
_GROUPS: list[Any] = []


@contextmanager
def joined_workers() -> Iterator[Workers]:
    """The processes that torchrun has started, if it has. They leave together."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    workers = Workers(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    # gloo for what is on the CPU: decisions, objects, and the gradients of a model there.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    _GROUPS.append(distributed.group.WORLD)
    try:
        yield workers
        # torchrun ends the others where one ends with a status above 0.
        workers.barrier()
    finally:
        distributed.destroy_process_group()


def run_stoppable(work: Callable[[Workers], int | None], to_continue: str) -> int:
    """Exit status of `work`: what it returns or 0, or that of the Interrupted that ended it.

    Args:
        work: what all processes do.
        to_continue: command line that goes on with it, to print where it was interrupted.
    """
    with joined_workers() as workers:
        try:
            status = work(workers)
        except Interrupted as stop:
            if workers.main:
                print(f"bayesrnn: {stop}; to continue: {to_continue}", file=sys.stderr, flush=True)
            return stop.status
    return status or 0

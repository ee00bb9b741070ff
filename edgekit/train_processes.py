"""The processes that train one model together: those of torchrun or accelerate, or this alone.

Rules:

1. All of them take the same batches in the same order. Of a batch's rows each works on every
   N-th, weighted so that the mean over the processes is the mean over the batch's rows; batches,
   steps and learning rates are those of one process.
2. What depends on the clock or on the disk is found by the first process, which tells the others:
   none of them waits for one that has stopped.
3. Numbers travel as tensors, never as pickles. On CPUs by gloo, on GPUs by NCCL.
"""

import datetime
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.preprocess import Array

if TYPE_CHECKING:
    import torch

# A process may wait for another that does more: looks at the data, or writes.
_PATIENCE = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """This process among ``count``; ``rank`` counts from 0."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and is heard."""
        return self.rank == 0

    def share(self, rows: Array) -> tuple[Array, float]:
        """This process's part of a batch, and the weight of its mean (rule 1).

        With fewer rows than processes, some get a row that counts for nothing.
        """
        mine = rows[self.rank :: self.count]
        weight = len(mine) * self.count / len(rows)
        return (mine if len(mine) else rows[:1]), weight

    def mean(self, values: list[float]) -> list[float]:
        """Of each value, its mean over the processes."""
        if self.count == 1:
            return values
        import torch

        shared = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(shared)
        return [float(value) / self.count for value in shared]

    def agree(self, value: float) -> float:
        """The first process's value."""
        if self.count == 1:
            return value
        import torch

        shared = torch.tensor(value, dtype=torch.float64)
        torch.distributed.broadcast(shared, 0)
        return float(shared)

    def agree_text(self, text: str) -> str:
        """The first process's text."""
        if self.count == 1:
            return text
        import torch

        data = text.encode()
        length = int(self.agree(len(data)))
        shared = torch.zeros(length, dtype=torch.uint8)
        if self.first:
            shared = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        torch.distributed.broadcast(shared, 0)
        return bytes(shared.tolist()).decode()

    def gather(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The tensors of all processes, alike in shape and on the CPU, in a row: [count, …]."""
        import torch

        if self.count == 1:
            return tensor[None]
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        torch.distributed.all_gather(found, tensor)
        return torch.stack(found)


def join() -> Processes:
    """This process among those that a launcher started, or alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    import torch

    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=_PATIENCE)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())

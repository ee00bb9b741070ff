"""Many small torch jobs on all cores: one thread a job, instead of all threads in each job.

OpenMP's threads wait for each other after every operation, spinning; on a machine that is busy
with anything else, two threads then take three times as long as one (MiniLM: 21 against 7 s).
Jobs of one thread each never wait.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel(job: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``job`` of each item, in order; torch computes without the interpreter's lock."""
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(
            max_workers=os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield from pool.map(job, items)
    finally:
        torch.set_num_threads(before)

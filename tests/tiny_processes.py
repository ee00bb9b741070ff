"""One process of a training that several share: the one of ``tests.tiny_training``, but dropout.

``torchrun … -m tests.tiny_processes FOLDER [KILL_AT]``: each process writes its report to FOLDER,
and the first one the weights. The last process kills itself without warning after the step
KILL_AT, once. ``pair`` starts two without a launcher, which costs no second import of torch.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import torch.nn.parallel.distributed
import transformers.trainer

from edgekit.train import train
from tests.tiny_training import TRAINING, bag, cross_entropy, texts

STEPS = 39
# What a fork has need not be imported again.
PRELOADED = (torch.nn.parallel.distributed, transformers.trainer)


def learn_together(home: Path, kill_at: int | None) -> None:
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    killed = home / "killed"

    def after_step(share: float) -> None:
        if kill_at == round(share * STEPS) and rank == count - 1 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    module = bag().eval()
    report = train(
        module,
        texts(),
        cross_entropy,
        TRAINING,
        folder=home / f"training-{rank}",
        after_step=after_step,
        checkpoint_seconds=0.0,
    )
    told = {"losses": report.losses, "resumed_from": report.resumed_from}
    (home / f"report-{rank}.json").write_text(json.dumps(told))
    if rank == 0:
        np.savez(home / "weights", **{name: t.numpy() for name, t in module.state_dict().items()})


def pair(home: Path, kill_at: int | None = None) -> list[int | None]:
    """Two processes; their exit codes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started = [
        context.Process(target=_member, args=(rank, port, home, kill_at)) for rank in range(2)
    ]
    for each in started:
        each.start()
    for each in started:
        each.join()
    return [each.exitcode for each in started]


def _member(rank: int, port: int, home: Path, kill_at: int | None) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    learn_together(home, kill_at)


if __name__ == "__main__":
    learn_together(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)

"""A training that sparsifies; as a program, one that kills itself without warning after a step.

``python -m tests.steps.prune.sparse_training FOLDER WEIGHTS [KILL_AT]``
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from edgekit.steps.prune.sparsify import pruned_gradually
from tests.tiny_training import bag, learn


def run(folder: str, weights: str, *kill_at: str) -> None:
    def on_progress(fraction: float, text: str) -> None:
        if kill_at and text.startswith(f"step {kill_at[0]} "):
            os.kill(os.getpid(), signal.SIGKILL)

    module = bag()
    matrices = [module.words.weight, module.head.weight]
    with pruned_gradually(module, matrices, 0.7, until=0.5, every=3) as after_step:
        learn(Path(folder), module, on_progress=on_progress, after_step=after_step)
    np.savez(weights, **{name: each.numpy() for name, each in module.state_dict().items()})


if __name__ == "__main__":
    run(*sys.argv[1:])

"""A text task that a bag of words learns within seconds; as a program, one training of it.

``python -m tests.tiny_training FOLDER KILL_AT`` trains with checkpoints in FOLDER, and kills itself
without warning after the step KILL_AT.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.examples import Batch, Examples
from edgekit.preprocess import Encoded
from edgekit.train import Report, Training, train

TRAINING = Training(epochs=3, learning_rate=5e-2, batch=16, seed=5)


class Bag(nn.Module):
    """Mean of word vectors, dropout, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(41, 8)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask[..., None]
        mean = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        return self.head(self.dropout(mean))


def bag(seed: int = 0) -> Bag:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    made = Bag()
    torch.set_rng_state(state)
    return made


def texts(rows: int = 200, longest: int = 24) -> Examples:
    """Rows of the words 1 to 20 for label 0 and 21 to 40 for label 1; every fifth word strays."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(1, longest + 1, rows).astype(np.int32)
    labels = chance.integers(0, 2, rows)
    real = np.arange(longest) < lengths[:, None]
    stray = chance.random((rows, longest)) < 0.2
    ids = chance.integers(1, 21, (rows, longest)) + 20 * (labels[:, None] ^ stray)
    arrays = {
        "input_ids": np.where(real, ids, 0).astype(np.int32),
        "attention_mask": real.astype(np.int32),
    }
    return Examples(Encoded(arrays, lengths), labels=labels)


def cross_entropy(module: nn.Module, batch: Batch) -> torch.Tensor:
    assert batch.labels is not None
    return nn.functional.cross_entropy(batch.run(module), batch.labels)


def learn(folder: Path, module: nn.Module, **options: Any) -> Report:
    options = {"checkpoint_seconds": 0.0} | options
    training = options.pop("training", TRAINING)
    return train(module, texts(), cross_entropy, training, folder=folder, **options)


def main() -> None:
    folder, kill_at = sys.argv[1:]

    def on_progress(fraction: float, text: str) -> None:
        if text.startswith(f"step {kill_at} "):
            os.kill(os.getpid(), signal.SIGKILL)

    learn(Path(folder), bag(), on_progress=on_progress)


if __name__ == "__main__":
    main()

"""What a model's summaries are held against while it is pruned: Xu et al. 2022, arXiv 2112.07198.

Rules:

1. A bank has the summary [D] of each training row by a model that no longer changes: the state of
   the token that stands for the text, after the last layer.
2. The candidates of a batch are its own summaries by the model that learns, the bank's rows of the
   same texts, and ``_MORE`` further rows of the bank, drawn anew for each batch. A bank of several
   models has all of their rows.
3. s = cos(z, candidate) / 0.1; log p is the log-softmax over the candidates. A row is no candidate
   of its own. No gradient reaches a candidate.
4. A row's positives are the candidates of the same text (unsupervised), or of the same label
   (supervised). The loss is the mean over rows of the mean of -log p over a row's positives; rows
   without any do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.examples import Batch
    from edgekit.model import Model
    from edgekit.preprocess import Array, Encoded

_TEMPERATURE = 0.1
_MORE = 4096
_BATCH = 64


@dataclass(frozen=True)
class Bank:
    """float32 [M, N, D]: of M models and N rows, each of length 1. labels: int64 [N]."""

    summaries: Tensor
    labels: Tensor

    @staticmethod
    def of(models: Sequence[Array], labels: Array) -> Bank:
        """From the summaries [N, D] of each model."""
        import torch
        import torch.nn.functional as F

        stacked = torch.from_numpy(np.stack(models))
        return Bank(F.normalize(stacked, dim=-1), torch.from_numpy(np.asarray(labels, np.int64)))

    def candidates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of rule 2, those of the bank: summaries [K, D] and which training rows they are of [K].

        The further rows are drawn from torch's generator.
        """
        import torch

        models, count, _ = self.summaries.shape
        drawn = torch.randint(models * count, (min(_MORE, models * count),))
        same = (torch.arange(models)[:, None] * count + rows[None]).flatten()
        places = torch.cat([same, drawn]).to(self.summaries.device)
        return self.summaries.flatten(0, 1)[places], places % count


def contrast(
    states: Tensor, rows: Tensor, bank: Bank, supervised: float, unsupervised: float
) -> Tensor:
    """Rules 2 to 4, weighted: a scalar. states: the summaries [B, D] of the rows [B]."""
    import torch
    import torch.nn.functional as F

    z = F.normalize(states, dim=-1)
    others, whose = bank.candidates(rows)
    found = torch.cat([z, others]).detach()
    whose = torch.cat([rows, whose])
    scores = z @ found.T / _TEMPERATURE
    itself = torch.zeros_like(scores, dtype=torch.bool)
    itself.fill_diagonal_(True)
    scores = torch.log_softmax(scores.masked_fill(itself, -torch.inf), dim=-1)
    total = states.new_zeros(())
    labels = bank.labels
    for weight, alike in (
        (unsupervised, rows[:, None] == whose[None]),
        (supervised, labels[rows][:, None] == labels[whose][None]),
    ):
        if weight:
            total = total + weight * _attract(scores, alike & ~itself)
    return total


def _attract(log_p: Tensor, positive: Tensor) -> Tensor:
    """Rule 4, of log p [B, K] and where the positives are."""
    counts = positive.sum(1)
    each = -log_p.masked_fill(~positive, 0).sum(1) / counts.clamp_min(1)
    mean: Tensor = each.sum() / (counts > 0).sum().clamp_min(1)
    return mean


def summaries(model: Model, encoded: Encoded, path: Path | None = None) -> Array:
    """float32 [N, D]: the state of each row's summary token. Kept in ``path``, if given."""
    from edgekit.examples import teacher_outputs

    return (
        _summaries(model, encoded)
        if path is None
        else teacher_outputs(model, encoded, path, _summaries)
    )


def _summaries(model: Model, encoded: Encoded) -> Array:
    import torch

    from edgekit.examples import Batch, Examples, batches, collate
    from edgekit.model import export_forward

    forward = export_forward(model)
    examples = Examples(encoded)
    found: Array | None = None
    with torch.inference_mode():
        for rows in batches(encoded.lengths, len(encoded), _BATCH, 0, 0):
            fields: Any = collate(examples, rows)
            given = summary_states(forward, Batch(**fields))[0].numpy()
            if found is None:
                found = np.zeros((len(encoded), given.shape[-1]), np.float32)
            found[rows] = given
    assert found is not None
    return found


def summary_states(forward: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The summary tokens' states [B, D], and the encoder's states that hold them."""
    inputs = batch.inputs
    states: Tensor = forward.encoder(
        inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids")
    )
    return states[:, 0], states

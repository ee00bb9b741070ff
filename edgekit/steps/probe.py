"""Linear classifiers on a model's final representation, and what they say about its neurons.

Dalvi et al. 2019, What is one grain of sand in the desert?, arXiv 1812.09355; Durrani et al.
2022, Linguistic correlation analysis, arXiv 2206.13288.

Rules:

1. The representation is what the model's classifier reads of a row (of each word's first token);
   of a sentence embedding it is the mean state, before its length is made 1.
2. The probe is linear, with the penalty λ1 |θ|₁ + λ2 |θ|₂ (the norm, not its square): Adam at
   1e-3, 10 epochs, 32 rows at a time. Its inputs are z-scored, so that weights compare.
3. Of each class the neurons with the largest weights are taken until they hold p percent of its
   weights' sum; the top neurons are those of all classes. With p from 1 to 100 that is an order:
   a neuron's place is the first p that takes it, and among equals its largest weight.
4. Neurons are redundant when 1 - |correlation| is below a threshold, by average linkage; the
   first of each cluster in the order stands for it.
5. What a model ships with is fitted to its optimum instead: the mean loss plus 0.005 |θ|₂². On
   MiniLM's pooled BANKING77 states that answers 92.7 % of the test rows; a hundredth of it 92.3 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.data import Rows
    from edgekit.model import Model
    from edgekit.preprocess import Array, Encoded

_PENALTY = 1e-5
_RIDGE = 0.005
_EPOCHS = 10
_BATCH = 32
_RATE = 1e-3
_FORWARD_BATCH = 32


@dataclass(frozen=True)
class Linear:
    """weight [C, K] and bias [C], float64: of C classes and K neurons."""

    weight: Array
    bias: Array


def representation(model: Model, encoded: Encoded) -> Array:
    """Rule 1: float32 [N, K], or [words, K] for token-classification."""
    import torch

    from edgekit.architectures.blocks import mean_state
    from edgekit.model import export_forward
    from edgekit.parallel import parallel
    from edgekit.steps.quantize.static import as_inputs

    assert model.architecture is not None and encoded.lengths is not None
    forward: Any = export_forward(model)
    head = model.architecture.task_head(model.module, model.task)
    order = np.argsort(encoded.lengths, kind="stable")
    batches = [order[at : at + _FORWARD_BATCH] for at in range(0, len(order), _FORWARD_BATCH)]

    def read(rows: Array) -> Array:
        inputs = as_inputs(model, encoded, rows)
        with torch.inference_mode():
            states = forward.encoder(*inputs, *[None] * (3 - len(inputs)))
            if head is None:
                states = mean_state(states, inputs[1])
            elif model.task == "text-classification":
                states = head.read(states[:, 0])
        found: Array = states.float().numpy()
        return found

    rows: dict[int, Array] = {}
    for batch, states in zip(batches, parallel(read, batches), strict=True):
        rows |= dict(zip(batch.tolist(), states, strict=True))
    if encoded.word_starts is None:
        return np.stack([rows[n] for n in range(len(encoded))])
    return np.concatenate([rows[n][s[s >= 0]] for n, s in enumerate(encoded.word_starts)])


def gold(model: Model, rows: Rows, encoded: Encoded) -> Array:
    """The labels of what ``representation`` returns: ids [N], 0 and 1 [N, C], or numbers [N].

    Raises DataError for a label that the model does not know.
    """
    from edgekit.data import label_ids

    known = label_ids(
        rows, model.labels, task=model.task, problem=model.problem, source="the training rows"
    )
    if encoded.word_starts is None:
        return np.asarray(known)
    return np.concatenate([k[s >= 0] for k, s in zip(known, encoded.word_starts, strict=True)])


def fit_probe(
    states: Array, labels: Array, classes: int, seed: int, penalty: float = _PENALTY
) -> Linear:
    """Rule 2. states: z-scored [N, K]; labels: as from ``gold``."""
    import torch

    inputs, targets, loss_of = _tensors(states, labels)
    weight = torch.zeros(classes, states.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=_RATE)
    for epoch in range(_EPOCHS):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(states)))
        for rows in order.split(_BATCH):
            optimizer.zero_grad()
            loss = loss_of(inputs[rows] @ weight.T + bias, targets[rows]).mean()
            # At zero the norm has no gradient; torch gives 0.
            (loss + penalty * (weight.abs().sum() + weight.norm())).backward()
            optimizer.step()
    return Linear(weight.detach().numpy(), bias.detach().numpy())


def fit_classifier(states: Array, labels: Array, classes: int) -> Linear:
    """Rule 5. states: [N, K] of about unit spread or less; labels: as from ``gold``."""
    import torch

    inputs, targets, loss_of = _tensors(states, labels)
    weight = torch.zeros(classes, states.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
    )

    def whole() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(inputs @ weight.T + bias, targets).mean() + _RIDGE * (weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(whole)
    return Linear(weight.detach().numpy(), bias.detach().numpy())


def z_scored(states: Array) -> Array:
    """float64 [N, K] of mean 0 and spread 1; neurons that never change are 0."""
    wide = states.astype(np.float64)
    mean, spread = wide.mean(0), spreads(wide)
    scored: Array = (wide - mean) / spread
    return scored


def spreads(states: Array) -> Array:
    """The standard deviation of each neuron [K]; 1 for those that hardly change (``changing``)."""
    wide = states.astype(np.float64)
    return np.where(changing(wide), wide.std(0), 1.0)


def changing(states: Array) -> Array:
    """Which neurons [K] spread by more than a hundredth of their size.

    Scaling the others would blow rounding up: float32 holds 7 digits of what they are.
    """
    wide = states.astype(np.float64)
    found: Array = wide.std(0) > 1e-2 * np.abs(wide).max(0)
    return found


def neuron_order(weight: Array) -> Array:
    """Rule 3: the neurons, the most important first. weight: [C, K] of a probe."""
    size = np.abs(weight)
    order = np.argsort(-size, axis=1, kind="stable")
    sorted_ = np.take_along_axis(size, order, axis=1)
    total = np.maximum(sorted_.sum(1, keepdims=True), 1e-300)
    # What the larger ones hold: a neuron is taken by the first p above that.
    before = (np.cumsum(sorted_, axis=1) - sorted_) / total
    taken_by = np.empty_like(before)
    np.put_along_axis(taken_by, order, np.floor(before * 100 + 1e-9) + 1, axis=1)
    return np.lexsort((-size.max(0), taken_by.min(0)))


def without_redundant(states: Array, order: Array, threshold: float) -> Array:
    """Rule 4: the order with one neuron of each cluster. states: [N, K]."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    scored = z_scored(states)
    distances = 1 - np.abs(scored.T @ scored) / len(scored)
    np.fill_diagonal(distances, 0)
    apart = squareform(np.clip((distances + distances.T) / 2, 0, None), checks=False)
    clusters = fcluster(linkage(apart, "average"), threshold, "distance")
    first: dict[int, int] = {}
    for neuron in order:
        first.setdefault(int(clusters[neuron]), int(neuron))
    return np.array(list(first.values()))


def _tensors(
    states: Array, labels: Array
) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """Inputs, targets, and the loss [N] of answers [N, C]: by the kind of the labels."""
    import torch
    from torch.nn import functional as F

    inputs, targets = torch.from_numpy(states.astype(np.float64)), torch.from_numpy(labels)
    if labels.ndim == 2:
        return (
            inputs,
            targets.double(),
            lambda answers, wanted: F.binary_cross_entropy_with_logits(
                answers, wanted, reduction="none"
            ).sum(1),
        )
    if labels.dtype.kind == "f":
        return inputs, targets, lambda answers, wanted: (answers[:, 0] - wanted) ** 2 / 2
    return (
        inputs,
        targets,
        lambda answers, wanted: F.cross_entropy(answers, wanted, reduction="none"),
    )

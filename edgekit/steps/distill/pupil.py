"""A student in training: what runs, what is beside it, and the loss of a lesson.

Rules:

1. States of another width than the teacher's pass one projection with a bias, shared by the
   embeddings and all layers (Jiao et al. 2020, arXiv 1909.10351, equations 8 and 9). It begins as
   the least-squares fit of the word rows that both have, learns along, and is left behind.
2. Heads are compared one by one, so both need as many. Relations are compared in as many heads as
   the teacher's layer has, however many the student has (MiniLM v2, arXiv 2012.15828).
3. A loss that is over layers is the sum over the pairs of the map; over relations, the sum of
   those of queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.architectures.blocks import distance_bias
from edgekit.errors import RecipeError
from edgekit.examples import IGNORED, Batch
from edgekit.steps.distill import losses
from edgekit.steps.distill.inside import Mentor, Views, distances, heads_of, width_of
from edgekit.steps.distill.lessons import BY_HEAD, INSIDE, Lesson, View
from edgekit.steps.distill.masked import Mask
from edgekit.steps.distill.teachers import common_rows

if TYPE_CHECKING:
    from edgekit.model import Model

Pairs = Sequence[tuple[int, int]]


class Pupil(nn.Module):
    """The student's forward, and the projection that is left behind."""

    def __init__(self, forward: nn.Module, projection: nn.Linear | None) -> None:
        super().__init__()
        self.student = forward
        self.projection = projection

    def forward(self, *inputs: Tensor) -> Tensor:
        answer: Tensor = self.student(*inputs)
        return answer

    def project(self, states: Tensor) -> Tensor:
        return states if self.projection is None else self.projection(states)


def projection(student: Model, teacher: Model, seed: int) -> nn.Linear | None:
    """Rule 1; ``None`` where the widths are the same."""
    mine, theirs = (width_of(each, ("embeddings", 0)) for each in (student, teacher))
    if mine == theirs:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Linear(mine, theirs)
    tables = []
    for model, rows in zip((student, teacher), common_rows(student, teacher), strict=True):
        assert model.architecture is not None
        table = model.architecture.word_embeddings(model.module).weight.detach()
        tables.append(table[torch.from_numpy(rows)].double())
    own, wanted = tables
    if own.shape[1] == mine and wanted.shape[1] == theirs and len(own) > mine:
        own = torch.cat([own, torch.ones(len(own), 1).double()], 1)
        fit = torch.linalg.lstsq(own, wanted).solution
        if torch.isfinite(fit).all():
            with torch.no_grad():
                made.weight.copy_(fit[:-1].T)
                made.bias.copy_(fit[-1])
    return made


def need_heads(lesson: Lesson, student: Model, teacher: Model, pairs: Pairs) -> None:
    """Raise RecipeError where rule 2 cannot be kept."""
    if not any(name in lesson.losses for name in (*BY_HEAD, "values", "relations")):
        return
    for mine, theirs in pairs:
        own, other = heads_of(student, mine), heads_of(teacher, theirs)
        if not own or not other:
            raise RecipeError(
                f"distill: layer {mine} of the student or {theirs} of the teacher has no attention "
                "to compare; leave the losses of attention out, as in losses=kl+hidden"
            )
        if own != other and any(name in lesson.losses for name in BY_HEAD):
            raise RecipeError(
                f"distill: layer {mine} of the student has {own} heads and layer {theirs} of the "
                f"teacher {other}, which cannot be compared one by one; take relations instead, or "
                "losses=kl+hidden"
            )
        width = width_of(student, ("query", mine))
        if width % other:
            raise RecipeError(
                f"distill: layer {mine} of the student has queries of {width} numbers, which do "
                f"not part into the {other} heads of the teacher; leave relations and values out"
            )


@dataclass(frozen=True)
class Beside:
    """A student beside a teacher that is looked into, or guesses words.

    pairs: the layers that are compared. views: what is looked at in the student.
    """

    pupil: Pupil
    mentor: Mentor
    pairs: Pairs
    views: set[View]


def lesson_loss(
    lesson: Lesson, student: Model, beside: Beside | None = None, seen: Views | None = None
) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss of a batch: the weighted sum of the lesson's losses.

    beside: for losses of more than the task's answers; the module is then its pupil, and ``seen``
    what it looks at in the student, of the forward that ran last.
    """
    mask_words = Mask(student) if lesson.masks else None
    tables = None
    if beside is not None and any(name in BY_HEAD for name in lesson.losses):
        tables = distances(student), distances(beside.mentor.teacher)

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        guessed: Tensor | None = None
        if mask_words is not None:
            ids, guessed = mask_words(batch.inputs["input_ids"], _mask(batch))
            batch = Batch(batch.inputs | {"input_ids": ids}, batch.rows)
        answer = batch.run(module)
        wanted, compared = batch.teacher, None
        if beside is not None:
            theirs: Views
            if guessed is not None:
                wanted, theirs = beside.mentor.answer(batch)
            else:
                theirs = beside.mentor.look(batch)
            compared = _Compared(beside, _mask(batch), {} if seen is None else seen, theirs, tables)
        found = []
        for name, weight in lesson.losses.items():
            if name in INSIDE:
                assert compared is not None
                found.append(weight * compared.loss(name))
            else:
                each = _answer_loss(name, lesson, student, batch, answer, wanted, guessed)
                found.append(weight * each)
        return torch.stack(found).sum()

    return loss


def _answer_loss(
    name: str,
    lesson: Lesson,
    student: Model,
    batch: Batch,
    answer: Tensor,
    wanted: Tensor | None,
    guessed: Tensor | None,
) -> Tensor:
    """A loss of answers: the task's, or with ``guessed`` the words'."""
    if name == "mlm":
        assert guessed is not None
        return losses.label_cross_entropy(answer, guessed)
    if name == "labels":
        assert batch.labels is not None
        return losses.label_cross_entropy(answer, batch.labels)
    assert wanted is not None
    if name in ("mlm-kl", "masked-kl"):
        assert guessed is not None
        asked = _mask(batch) if name == "mlm-kl" else guessed != IGNORED
        return losses.soft_cross_entropy(answer, wanted, lesson.temperature, asked)
    mask = batch.mask if student.task == "token-classification" else None
    if name == "kl" and classifies(student):
        return losses.soft_cross_entropy(answer, wanted, lesson.temperature, mask)
    return losses.state_error(answer, wanted, mask)


@dataclass(frozen=True)
class _Compared:
    """The losses of what is inside, for one batch. tables: ``distances`` of both."""

    beside: Beside
    mask: Tensor
    seen: Views
    theirs: Views
    tables: tuple[Tensor | None, Tensor | None] | None

    def loss(self, name: str) -> Tensor:
        """Rule 3."""
        if name == "embeddings":
            return self._states("embeddings", 0, 0, losses.state_error)
        return torch.stack([self._layer(name, m, n) for m, n in self.beside.pairs]).sum()

    def _layer(self, name: str, mine: int, theirs: int) -> Tensor:
        if name == "hidden":
            return self._states("hidden", mine, theirs, losses.state_error)
        if name == "cosine":
            return self._states("hidden", mine, theirs, losses.cosine_distance)
        heads = heads_of(self.beside.mentor.teacher, theirs)
        if name in BY_HEAD:
            assert self.tables is not None
            compare = losses.attention_error if name == "attention" else losses.attention_divergence
            return compare(
                _scores(self.seen, mine, heads, self.tables[0]),
                _scores(self.theirs, theirs, heads, self.tables[1]),
                self.mask,
            )
        each = [
            losses.attention_divergence(
                _relations(self.seen[kind, mine], heads),
                _relations(self.theirs[kind, theirs], heads),
                self.mask,
            )
            for kind in (("value",) if name == "values" else ("query", "key", "value"))
        ]
        return torch.stack(each).sum()

    def _states(
        self, kind: str, mine: int, theirs: int, compare: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        states = self.beside.pupil.project(self.seen[kind, mine])
        return compare(states, self.theirs[kind, theirs], self.mask)


def _scores(views: Views, layer: int, heads: int, table: Tensor | None) -> Tensor:
    query, key = views["query", layer], views["key", layer]
    bias = None
    if table is not None:
        bias = distance_bias(table.to(query.device), query.shape[1])
    return losses.attention_scores(query, key, heads, bias)


def _relations(states: Tensor, heads: int) -> Tensor:
    return losses.attention_scores(states, states, heads)


def classifies(model: Model) -> bool:
    """Whether an answer is a choice among labels, so that divergences are of probabilities."""
    return model.problem == "single-label" or model.task == "token-classification"


def _mask(batch: Batch) -> Tensor:
    assert batch.mask is not None
    return batch.mask

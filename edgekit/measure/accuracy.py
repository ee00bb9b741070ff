"""How right a model's outputs are, and how often two models give the same answer.

Outputs are numpy arrays: logits [N, C] for classification, [N, L, C] for token classification,
[N] or [N, 1] for regression, and embeddings [2N, D] for N pairs (all first texts, then all second
ones). An output that is not finite is a wrong answer and agrees with nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ProofError
from edgekit.measure.intervals import interval as interval

if TYPE_CHECKING:
    from edgekit.preprocess import Encoded

Array = npt.NDArray[Any]
LabelIds = Array | Sequence[Array]

# Two embeddings are the same answer from this cosine on, two regressions within this share of
# the reference's standard deviation.
_SAME_COSINE = 0.95
_SAME_SHARE = 0.05


def predict(outputs: Array, task: str, problem: str | None) -> Array:
    """The answer that outputs stand for.

    Single-label and token classification: the class of the largest logit, int64 [...], and -1
    where a logit is not finite. Multi-label: 1 for each label with a sigmoid above 0.5, int64
    [N, C]. Regression: float64 [N]. Sentence embedding: vectors of length one, float64 [N, D].
    """
    if task == "sentence-embedding":
        vectors = np.asarray(outputs, dtype=np.float64)
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return vectors / np.where(lengths == 0, 1, lengths)
    if problem == "regression":
        return np.asarray(outputs, dtype=np.float64).reshape(len(outputs))
    if problem == "multi-label":
        return (outputs > 0).astype(np.int64)
    classes = np.argmax(outputs, axis=-1)
    return np.where(np.isfinite(outputs).all(axis=-1), classes, -1)


def primary_metric(task: str, problem: str | None) -> str:
    """The one figure of ``score`` that decides about a file."""
    if task == "token-classification":
        return "entity_f1"
    if task == "sentence-embedding" or problem == "regression":
        return "spearman"
    return "micro_f1" if problem == "multi-label" else "accuracy"


def score(
    outputs: Array,
    label_ids: LabelIds,
    *,
    task: str,
    problem: str | None,
    labels: Sequence[str],
    encoded: "Encoded",
) -> dict[str, float]:
    """The task's metrics, each 1.0 at best. ``label_ids`` are those of ``edgekit.data``.

    Single-label: accuracy, macro F1 (over the classes that occur or are predicted), Matthews
    correlation. Multi-label: micro and macro F1. Regression: Spearman and Pearson correlation of
    the outputs, sentence embedding: of the cosines of the pairs. Token classification:
    F1 of entities (``entities``) and accuracy of words, answered by the first sub-word of each;
    a word that was cut off is answered ``O``.
    """
    if task == "token-classification":
        return _tag_scores(predict(outputs, task, problem), label_ids, labels, encoded)
    truth = np.asarray(label_ids)
    answers = predict(outputs, task, problem)
    if task == "sentence-embedding":
        first, second = np.split(answers, 2)
        return _correlations((first * second).sum(axis=-1), truth)
    if problem == "regression":
        return _correlations(answers, truth)
    if problem == "multi-label":
        return _label_set_scores(answers, truth)
    return _class_scores(answers, truth)


def chance(label_ids: LabelIds, task: str, problem: str | None) -> float:
    """The primary metric of the best answer that ignores the input.

    Single-label: the share of the commonest class. Multi-label: the best micro F1 of one set of
    labels given to every row. Entities (never answering one) and correlations: 0.
    """
    metric = primary_metric(task, problem)
    truth = label_ids if metric == "entity_f1" else np.asarray(label_ids)
    if metric == "accuracy":
        return float(np.unique(truth, return_counts=True)[1].max()) / len(truth)
    if metric == "micro_f1":
        # For any size of the set, the commonest labels are the best ones to put into it.
        right = np.sort(np.asarray(truth).sum(axis=0))[::-1].cumsum()
        given = len(truth) * np.arange(1, len(right) + 1)
        return float((2 * right / (given + right[-1])).max())
    return 0.0


def refuse_vacuous(
    scores: Mapping[str, float], label_ids: LabelIds, *, task: str, problem: str | None
) -> None:
    """Raise ProofError when the original's scores are no better than ``chance``.

    A file that agrees with a model that guesses has proven nothing.
    """
    metric = primary_metric(task, problem)
    guess = chance(label_ids, task, problem)
    if not scores[metric] > guess:
        raise ProofError(
            f"the original's {metric.replace('_', ' ')} on the eval rows is {scores[metric]:.4f}, "
            f"no better than an answer that ignores the input ({guess:.4f}), so it proves nothing "
            "about a file; check that labels, eval rows and checkpoint belong together"
        )


def agreement(outputs: Array, reference: Array, task: str, problem: str | None) -> float:
    """The share of rows where both outputs [M, ...] give the ``same`` answer."""
    if len(reference) == 0:
        return math.nan
    return float(same(outputs, reference, task, problem).mean())


def same(outputs: Array, reference: Array, task: str, problem: str | None) -> Array:
    """Whether both outputs [M, ...] give the same answer, bool [M].

    Single-label: the same class. Multi-label: the same labels, all of them. Token
    classification: the same tag, with a row for each word [words, C]. Regression: within 5 % of
    the standard deviation of ``reference`` (of its size, where all are alike). Sentence
    embedding: a cosine of at least 0.95.
    """
    ours, theirs = predict(outputs, task, problem), predict(reference, task, problem)
    finite = np.isfinite(outputs) & np.isfinite(reference)
    if task == "sentence-embedding":
        equal = (ours * theirs).sum(axis=-1) >= _SAME_COSINE
    elif problem == "regression":
        with np.errstate(invalid="ignore"):
            equal = np.abs(ours - theirs) <= _SAME_SHARE * (theirs.std() or np.abs(theirs).max())
    elif problem == "multi-label":
        equal = (ours == theirs).all(axis=-1)
    else:
        equal = ours == theirs
    found: Array = equal & finite.reshape(len(equal), -1).all(axis=1)
    return found


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of a tagged sentence, as (type, first word, word after the last).

    The rules of CoNLL-2003's scorer (Tjong Kim Sang and De Meulder, conlleval), which serve IOB1,
    IOB2, IOBES and BILOU: an entity begins at B, S or U, and at a tag of another type than the
    one before; it ends at E, L, S or U, and where another type or the next entity begins. A tag
    without a prefix is all type.
    """
    found: set[tuple[str, int, int]] = set()
    begin, kind, last = 0, "", ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, name = tag[:1], tag[2:]
        if tag[1:2] != "-" or prefix not in "BIELSU":
            prefix, name = "", "" if tag == "O" else tag
        if name != kind or prefix in ("B", "S", "U") or last in ("E", "L", "S", "U"):
            if kind:
                found.add((kind, begin, position))
            begin, kind = position, name
        last = prefix
    return found


def _tag_scores(
    classes: Array, label_ids: LabelIds, labels: Sequence[str], encoded: "Encoded"
) -> dict[str, float]:
    right = answered = expected = words = hits = 0
    for truth, answer in _tagged(classes, label_ids, labels, encoded):
        words += len(truth)
        hits += sum(map(str.__eq__, truth, answer))
        gold, found = entities(truth), entities(answer)
        right += len(gold & found)
        answered += len(found)
        expected += len(gold)
    return {
        "entity_f1": 2 * right / (answered + expected) if answered + expected else 0.0,
        "word_accuracy": hits / words if words else 0.0,
    }


def _tagged(
    classes: Array, label_ids: LabelIds, labels: Sequence[str], encoded: "Encoded"
) -> Iterator[tuple[list[str], list[str]]]:
    """For each row the true tags of its words and the predicted ones."""
    assert encoded.word_starts is not None
    for row, truth, starts in zip(classes, label_ids, encoded.word_starts, strict=True):
        # A start of -1 is a word without a token, a class of -1 an output that is not finite.
        answer = [row[start] if start >= 0 else -1 for start in starts]
        yield [labels[tag] for tag in truth], [labels[tag] if tag >= 0 else "O" for tag in answer]


def _class_scores(answers: Array, truth: Array) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    return {
        "accuracy": float(accuracy_score(truth, answers)),
        "macro_f1": float(f1_score(truth, answers, average="macro")),
        "matthews": float(matthews_corrcoef(truth, answers)),
    }


def _label_set_scores(answers: Array, truth: Array) -> dict[str, float]:
    """A label that neither occurs nor is predicted has an F1 of 0, and counts in macro F1."""
    from sklearn.metrics import f1_score

    return {
        f"{average}_f1": float(f1_score(truth, answers, average=average, zero_division=0))
        for average in ("micro", "macro")
    }


def _correlations(values: Array, truth: Array) -> dict[str, float]:
    """Zero where either side is constant or not finite: such answers explain nothing."""
    from scipy.stats import pearsonr, spearmanr

    if not np.isfinite(values).all() or np.ptp(values) == 0 or np.ptp(truth) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    return {
        "spearman": float(spearmanr(values, truth).statistic),
        "pearson": float(pearsonr(values, truth).statistic),
    }

"""Distillation losses against values that numpy finds by itself."""

from typing import Any

import numpy as np
import pytest
import torch

from edgekit.steps.distill import losses
from edgekit.steps.distill.losses import soft_cross_entropy


def softmax(logits: Any) -> Any:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(student: Any, teacher: Any, temperature: float) -> Any:
    """KL of each row, in float64 and by the definition."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def logits(*shape: int) -> tuple[Any, Any]:
    chance = np.random.default_rng(0)
    return 3 * chance.normal(size=shape), 3 * chance.normal(size=shape)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_it_is_the_mean_divergence_of_rows(temperature: float) -> None:
    student, teacher = logits(6, 5)
    found = soft_cross_entropy(torch.tensor(student), torch.tensor(teacher), temperature)
    assert float(found) == pytest.approx(divergence(student, teacher, temperature).mean(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("padding", [0.0, 1e4, np.inf, np.nan])
def test_padding_counts_for_nothing_and_gets_no_gradient(
    temperature: float, padding: float
) -> None:
    student, teacher = logits(3, 4, 5)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    expected = divergence(student, teacher, temperature)[mask == 1].mean()
    student[mask == 0], teacher[mask == 0] = padding, -padding
    given = torch.tensor(student, requires_grad=True)
    found = soft_cross_entropy(given, torch.tensor(teacher), temperature, torch.tensor(mask))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert given.grad is not None
    gradient = given.grad.numpy()
    assert (gradient[mask == 0] == 0).all() and (gradient[mask == 1] != 0).all()
    # d KL / d student = T (softmax(student / T) - softmax(teacher / T)), over 7 tokens.
    difference = softmax(student[mask == 1] / temperature) - softmax(
        teacher[mask == 1] / temperature
    )
    assert gradient[mask == 1] == pytest.approx(temperature * difference / 7, abs=1e-6)


def test_it_is_zero_when_the_student_equals_the_teacher_and_for_no_token() -> None:
    teacher = torch.tensor(logits(3, 4, 5)[0])
    assert float(soft_cross_entropy(teacher.clone(), teacher, 2.0)) == 0
    mask = torch.ones(3, 4)
    assert float(soft_cross_entropy(teacher.clone(), teacher, 2.0, mask)) == 0
    assert float(soft_cross_entropy(teacher + 1, teacher, 2.0, 0 * mask)) == 0


# What is inside, beside numpy in float64. Rows of 4, 2 and 1 tokens.

MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


def states(width: int, seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(3, 4, width))


def lengths() -> Any:
    return enumerate(MASK.sum(1))


def scores(query: Any, key: Any, heads: int) -> Any:
    """[heads, L, L] of one row without padding."""
    split = [np.stack(np.split(each, heads, axis=-1)) for each in (query, key)]
    return split[0] @ split[1].transpose(0, 2, 1) / np.sqrt(split[0].shape[-1])


def test_label_cross_entropy_is_over_known_labels() -> None:
    student = logits(4, 5)[0]
    labels = np.array([2, -100, 0, -100])
    expected = -np.log(softmax(student)[[0, 2], [2, 0]]).mean()
    found = losses.label_cross_entropy(torch.tensor(student), torch.tensor(labels))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    none = losses.label_cross_entropy(torch.tensor(student), torch.full((4,), -100))
    assert float(none) == 0


def test_states_are_compared_by_token() -> None:
    student, teacher = states(6, 0), states(6, 1)
    real = MASK == 1
    expected = np.mean((student[real] - teacher[real]) ** 2)
    cosines = (student * teacher).sum(-1)[real]
    cosines /= np.linalg.norm(student, axis=-1)[real] * np.linalg.norm(teacher, axis=-1)[real]
    student[~real], teacher[~real] = np.nan, np.inf
    given = [torch.tensor(each) for each in (student, teacher, MASK)]
    assert float(losses.state_error(*given)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.cosine_distance(*given)) == pytest.approx((1 - cosines).mean(), rel=1e-5)
    assert float(losses.cosine_distance(3 * given[0], given[0], given[2])) <= 1e-6
    assert float(losses.state_error(given[0], given[0], given[2])) == 0
    rows = [torch.tensor(states(6, seed)[:, 0]) for seed in (0, 1)]
    mean = ((rows[0] - rows[1]) ** 2).mean()
    assert float(losses.state_error(*rows)) == pytest.approx(float(mean), rel=1e-5)


def test_attention_is_compared_by_pair_of_tokens() -> None:
    query, key, other_query, other_key = (states(6, seed) for seed in range(4))
    query[0, 1] *= 1000  # a score far below -100 or above
    squares, divergences = [], []
    for row, length in lengths():
        mine = scores(query[row, :length], key[row, :length], 2)
        theirs = scores(other_query[row, :length], other_key[row, :length], 2)
        cut = [np.where(each <= -100, 0, each) for each in (mine, theirs)]
        squares.append(((cut[0] - cut[1]) ** 2).reshape(-1))
        p, q = log_softmax(theirs), log_softmax(mine)
        divergences.append((np.exp(p) * (p - q)).sum(-1).reshape(-1))
    found = [
        losses.attention_scores(torch.tensor(q), torch.tensor(k), 2)
        for q, k in ((query, key), (other_query, other_key))
    ]
    for row, length in lengths():
        for each in found:
            each[row, :, length:], each[row, :, :, length:] = torch.nan, torch.inf
    mask = torch.tensor(MASK)
    assert (found[0] <= -100).any()
    error = losses.attention_error(*found, mask)
    assert float(error) == pytest.approx(np.concatenate(squares).mean(), rel=1e-5)
    divergence = losses.attention_divergence(*found, mask)
    assert float(divergence) == pytest.approx(np.concatenate(divergences).mean(), rel=1e-4)
    for compare in (losses.attention_error, losses.attention_divergence):
        assert float(compare(found[0], found[0].clone(), mask)) <= 1e-10
        given = found[1].clone().requires_grad_()
        compare(given, found[0], mask).backward()
        assert given.grad is not None
        assert torch.isfinite(given.grad).all() and (given.grad[2, :, 1:] == 0).all()


def test_relations_are_scores_of_states_with_themselves_in_any_heads() -> None:
    """Wang et al. 2021, equation 4: KL of softmax(V Vᵀ / √d), d the width of a relation's head."""
    mine, theirs = states(6, 0), states(12, 1)
    expected = []
    for row, length in lengths():
        p = softmax(scores(theirs[row, :length], theirs[row, :length], 3))
        q = softmax(scores(mine[row, :length], mine[row, :length], 3))
        expected.append((p * np.log(p / q)).sum(-1).reshape(-1))
    found = [losses.attention_scores(torch.tensor(e), torch.tensor(e), 3) for e in (mine, theirs)]
    divergence = losses.attention_divergence(*found, torch.tensor(MASK))
    assert float(divergence) == pytest.approx(np.concatenate(expected).mean(), rel=1e-5)

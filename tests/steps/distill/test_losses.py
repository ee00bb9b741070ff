"""Distillation losses against values that numpy finds by itself."""

from typing import Any

import numpy as np
import pytest
import torch

from edgekit.steps.distill.losses import soft_cross_entropy


def softmax(logits: Any) -> Any:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


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

"""Probes: against independent implementations, and what they find where it was planted."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from edgekit.steps.probe import (
    Linear,
    fit_classifier,
    fit_probe,
    neuron_order,
    without_redundant,
    z_scored,
)

PLANTED = [3, 11, 17, 29, 40]


def planted(seed: int, rows: int = 1600, width: int = 48) -> tuple[Any, Any]:
    """Noise in which five neurons tell the class: each is high for one of five classes."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 5, rows)
    states = chance.normal(size=(rows, width))
    for label, neuron in enumerate(PLANTED):
        states[:, neuron] += 3.0 * (labels == label)
    return states.astype(np.float32), labels


def right(fitted: Linear, states: Any, labels: Any) -> float:
    return float(((states @ fitted.weight.T + fitted.bias).argmax(1) == labels).mean())


def by_hand(states: Any, labels: Any, classes: int, seed: int, penalty: float) -> Any:
    """The probe again, in numpy: Adam of Kingma and Ba, algorithm 1."""
    parts = [np.zeros((classes, states.shape[1])), np.zeros(classes)]
    first, second = [np.zeros_like(p) for p in parts], [np.zeros_like(p) for p in parts]
    step = 0
    for epoch in range(10):
        order = np.random.default_rng([seed, epoch]).permutation(len(states))
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            logits = states[rows] @ parts[0].T + parts[1]
            wrong = np.exp(logits - logits.max(1, keepdims=True))
            wrong /= wrong.sum(1, keepdims=True)
            wrong[np.arange(len(rows)), labels[rows]] -= 1
            wrong /= len(rows)
            length = np.linalg.norm(parts[0])
            pull = np.sign(parts[0]) + (parts[0] / length if length else 0)
            gradients = [wrong.T @ states[rows] + penalty * pull, wrong.sum(0)]
            step += 1
            for n, gradient in enumerate(gradients):
                first[n] = 0.9 * first[n] + 0.1 * gradient
                second[n] = 0.999 * second[n] + 0.001 * gradient**2
                mean, square = first[n] / (1 - 0.9**step), second[n] / (1 - 0.999**step)
                parts[n] -= 1e-3 * mean / (np.sqrt(square) + 1e-8)
    return parts[0]


def test_the_probe_equals_one_written_again() -> None:
    states, labels = planted(0, rows=320)
    found = fit_probe(z_scored(states), labels, 5, seed=7, penalty=1e-3)
    expected = by_hand(z_scored(states), labels, 5, 7, 1e-3)
    np.testing.assert_allclose(found.weight, expected, atol=1e-9)


def test_the_order_is_that_of_the_smallest_sets_with_p_percent() -> None:
    weight = np.random.default_rng(1).normal(size=(4, 30)) ** 3
    order = neuron_order(weight).tolist()
    assert sorted(order) == list(range(30))
    for percent in range(1, 101):
        top: set[int] = set()
        for row in np.abs(weight):
            largest = np.argsort(-row)
            held = np.cumsum(row[largest]) / row.sum()
            top |= set(largest[: 1 + int(np.searchsorted(held, percent / 100))].tolist())
        assert set(order[: len(top)]) == top


@pytest.mark.parametrize("seed", range(3))
def test_planted_neurons_come_first(seed: int) -> None:
    states, labels = planted(seed)
    order = neuron_order(fit_probe(z_scored(states), labels, 5, seed).weight)
    assert set(order[:5]) == set(PLANTED)
    # The top tells more than a random choice, and that more than the bottom, on rows not seen.
    unseen, wanted = planted(seed + 100)
    chosen = np.random.default_rng(seed).permutation(48)[:5]
    top, some, bottom = (
        right(fit_classifier(states[:, n], labels, 5), unseen[:, n], wanted)
        for n in (order[:5], chosen, order[-5:])
    )
    assert top > 0.85 and top > some + 0.2 and some > bottom - 0.05 and bottom < 0.3


@pytest.mark.slow
def test_shuffled_labels_select_nothing() -> None:
    states, labels = planted(5)
    shuffled = np.random.default_rng(0).permutation(labels)
    unseen, wanted = planted(6)
    learnt = right(fit_probe(z_scored(states), labels, 5, 0), z_scored(unseen), wanted)
    control = fit_probe(z_scored(states), shuffled, 5, 0)
    assert learnt > 0.85
    assert right(control, z_scored(unseen), np.random.default_rng(1).permutation(wanted)) < 0.27
    assert set(neuron_order(control.weight)[:5]) != set(PLANTED)


def test_classifiers_are_at_the_optimum_that_scikit_learn_finds() -> None:
    states, labels = planted(2, rows=300)
    states = states.astype(np.float64)  # scikit-learn stays in float32 otherwise
    theirs = LogisticRegression(C=1 / 3, tol=1e-10, max_iter=5000).fit(states, labels)
    found = fit_classifier(states, labels, 5)
    np.testing.assert_allclose(found.weight, theirs.coef_, atol=2e-4)
    numbers = states @ np.linspace(-1, 1, 48) + 3
    ridge = Ridge(alpha=3.0).fit(states, numbers)
    fitted = fit_classifier(states, numbers, 1)
    np.testing.assert_allclose(fitted.weight[0], ridge.coef_, atol=1e-4)
    np.testing.assert_allclose(fitted.bias[0], ridge.intercept_, atol=1e-3)
    several = np.stack([labels == 0, labels < 3], axis=1).astype(np.int64)
    both = fit_classifier(states, several, 2)
    for n in range(2):
        one = LogisticRegression(C=1 / 3, tol=1e-10, max_iter=5000).fit(states, several[:, n])
        np.testing.assert_allclose(both.weight[n], one.coef_[0], atol=2e-4)


def test_one_of_each_cluster_stays_the_first_in_the_order() -> None:
    chance = np.random.default_rng(0)
    base = chance.normal(size=(500, 6))
    doubles = -2 * base[:, :4] + 0.05 * chance.normal(size=(500, 4))
    states = np.concatenate([base, doubles, np.ones((500, 1))], axis=1)
    order = np.array([9, 0, 10, 1, 2, 3, 4, 5, 6, 7, 8])
    assert without_redundant(states, order, 0.2).tolist() == [9, 0, 10, 1, 2, 4, 5]
    assert without_redundant(states, order, 1e-9).tolist() == order.tolist()

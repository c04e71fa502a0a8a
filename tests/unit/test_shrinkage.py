"""Moments of few samples, whose directions and sizes come from different halves of them."""

from __future__ import annotations

import numpy as np
import pytest

from nnr_codec.calibration.shrinkage import cross_validated

DEVIATIONS = 2.0 ** -np.linspace(0, 6, 60)


def halves(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the moments of two halves of samples, and the true ones, of as many."""
    rng = np.random.default_rng(seed)
    mixed = np.linalg.qr(rng.normal(size=(60, 60)))[0] * DEVIATIONS
    vectors = rng.normal(size=(samples, 60)) @ mixed.T
    first, second = (part.T @ part for part in (vectors[::2], vectors[1::2]))
    return first, second, samples * mixed @ mixed.T


def cost(used: np.ndarray, true: np.ndarray) -> float:
    """Return what errors cost in the true metric that are white in the one that is used, of the
    same volume: the mean of the ratios between the two."""
    scale = np.exp(np.linalg.slogdet(used)[1] / len(used))
    return float(np.trace(np.linalg.solve(used / scale, true)) / len(used))


@pytest.mark.parametrize("samples", [40, 80])
def test_errors_are_better_shaped_than_by_the_sum(samples: int) -> None:
    costs = []
    for seed in range(5):
        first, second, true = halves(samples, seed)
        ridge = 1e-4 * np.trace(true) / 60 * np.eye(60)
        found = cross_validated(first, second)
        costs.append([cost(m + ridge, true) for m in (found, first + second, np.eye(60))])
    checked, summed, nothing_known = np.mean(costs, axis=0)
    assert checked < summed
    assert checked < 0.5 * nothing_known


def test_many_samples_are_as_they_are() -> None:
    first, second, true = halves(200_000, 1)
    found = cross_validated(first, second)
    assert np.linalg.norm(found - true) < 0.01 * np.linalg.norm(true)


def test_the_sum_of_all_stays() -> None:
    first, second, _ = halves(30, 2)
    groups = cross_validated(np.stack([first, second]), np.stack([second, 2 * second]))
    assert np.trace(groups[0]) == pytest.approx(np.trace(first + second))
    assert np.trace(groups[1]) == pytest.approx(3 * np.trace(second))
    np.testing.assert_allclose(groups, groups.swapaxes(1, 2), atol=1e-12)


def test_directions_that_one_half_lacks_are_not_lost() -> None:
    first, second = np.diag([1.0, 0, 0, 0]), np.diag([0, 1.0, 0, 0])
    found = np.linalg.eigvalsh(cross_validated(first, second))
    assert found.sum() == pytest.approx(2)
    assert (found > -1e-12).all()

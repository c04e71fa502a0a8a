"""Bytes at a loss of accuracy, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnr_codec.experiments.report.bootstrap import bytes_at_losses, bytes_within, resampled_means

SIZES = [100, 200, 400]
LOSSES = np.array([4.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [(4.0, 100), (5.0, 100), (1.0, 200), (0.0, 400), (2.5, math.sqrt(100 * 200)), (-0.1, math.inf)],
)
def test_interpolation(allowed: float, expected: float) -> None:
    assert float(bytes_within(SIZES, LOSSES, allowed)) == pytest.approx(expected)


def test_the_smallest_point_within_counts_even_if_a_larger_one_is_not() -> None:
    assert float(bytes_within(SIZES, np.array([3.0, 1.0, 2.0]), 1.0)) == pytest.approx(200)


def test_many_sets_at_once() -> None:
    losses = np.stack([LOSSES, LOSSES + 10])
    assert bytes_within(SIZES, losses, 1.0) == pytest.approx([200, math.inf])


def test_resampled_means_are_paired_and_seeded() -> None:
    values = np.random.default_rng(0).integers(0, 2, (300, 2)).astype(float)
    values = np.column_stack([values, values[:, 0]])
    found = resampled_means(values, 200, (1, 2))
    assert found.shape == (200, 3)
    assert np.array_equal(found[:, 0], found[:, 2])
    assert not np.array_equal(found[:, 0], found[:, 1])
    assert np.array_equal(found, resampled_means(values, 200, (1, 2)))
    assert not np.array_equal(found, resampled_means(values, 200, (1, 3)))
    # Mean and standard error of a share.
    share = values[:, 0].mean()
    assert found[:, 0].mean() == pytest.approx(share, abs=0.01)
    assert found[:, 0].std() == pytest.approx(math.sqrt(share * (1 - share) / 300), rel=0.15)


def test_bounds_and_intervals() -> None:
    measured = np.array([90.0, 86.0, 89.0, 90.0])
    spread = np.linspace(-2, 2, 41)[:, np.newaxis] * np.array([0, 1, 1, 0])
    within, bound = bytes_at_losses(SIZES, measured, measured + spread, [1.0, 5.0])
    assert (within.bytes, within.is_bound) == (200, False)
    assert within.low is not None
    assert within.high is not None
    assert within.low < 200 < within.high
    assert (bound.bytes, bound.is_bound) == (100, True)
    (never,) = bytes_at_losses([100], np.array([90.0, 80.0]), np.array([[90.0, 80.0]]), [1.0])
    assert (never.bytes, never.low, never.high) == (None, None, None)


def test_without_spread_the_interval_is_the_value() -> None:
    measured = np.array([90.0, 80.0, 89.5])
    (found,) = bytes_at_losses([10, 20], measured, np.tile(measured, (30, 1)), [1.0])
    assert found.low == found.bytes == found.high

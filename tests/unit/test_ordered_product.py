"""Products whose sums are formed in a given order, the same on all paths."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from nnr_codec._core import allow_fast_paths
from nnr_codec.factorization.ordered_product import summed_by_rank


def plain(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One outer product after the other."""
    total = np.zeros((left.shape[0], right.shape[1]))
    for column, row in zip(left.T, right, strict=True):
        total += np.outer(column, row)
    return total


def of_any_size(seed: int, *shape: int) -> np.ndarray:
    """Numbers of which every sum is rounded: its order shows in the last bits."""
    rng = np.random.default_rng(seed)
    return np.ldexp(rng.normal(size=shape), rng.integers(-20, 20, shape))


@pytest.mark.parametrize(
    ("rows", "rank", "columns"),
    [
        (1, 1, 1),
        (1, 50_000, 1),
        (3, 70, 5),
        (16, 100, 32),
        (27, 100, 19),
        (1, 9, 40_000),
        (40_000, 9, 1),
        (300, 20, 200),
        (5, 3, 20_000),
    ],
)
def test_sums_are_in_the_order_of_the_rank(rows: int, rank: int, columns: int) -> None:
    left, right = of_any_size(1, rows, rank), of_any_size(2, rank, columns)
    product = summed_by_rank(left, right)
    assert product.shape == (rows, columns)
    assert np.array_equal(product, plain(left, right))
    if rows * rank * columns > 10_000:
        assert not np.array_equal(product, plain(left[:, ::-1], right[::-1]))


SHAPES = [
    (1, 3, 9),
    (3, 40, 5),
    (5, 257, 17),
    (20, 999, 25),
    (270, 300, 33),
    (4, 31, 8),
    (33, 5, 2),
]


@pytest.mark.parametrize(("rows", "rank", "columns"), SHAPES)
def test_both_ways_agree(rows: int, rank: int, columns: int) -> None:
    """The paths for newer processors and the plain one; strides of any kind, and a sum begun."""
    left, right = of_any_size(1, rows, rank), of_any_size(2, rank, columns)
    expected = plain(left, right)
    begun = of_any_size(3, rows, columns)
    for allowed in (False, True):
        allow_fast_paths(allowed)
        assert np.array_equal(summed_by_rank(left, right), expected)
        assert np.array_equal(summed_by_rank(np.asfortranarray(left), right), expected)
        assert np.array_equal(summed_by_rank(left, np.asfortranarray(right)), expected)
        wide = np.repeat(np.repeat(left, 2, axis=0), 3, axis=1)[::2, ::3]
        assert np.array_equal(summed_by_rank(wide[:, ::-1][:, ::-1], right), expected)
        half = rank // 2
        total = summed_by_rank(left[:, :half], right[:half])
        assert np.array_equal(summed_by_rank(left[:, half:], right[half:], total), expected)
        columnwise = begun.copy(order="F")
        summed_by_rank(left, right, columnwise)
        assert np.array_equal(columnwise, plain_from(begun, left, right))


def plain_from(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    for column, row in zip(left.T, right, strict=True):
        total = total + np.outer(column, row)
    return total


@pytest.mark.parametrize("shapes", [((2, 3), (4, 5)), ((2, 3), (3, 5), (2, 4))])
def test_sizes_that_do_not_fit(shapes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="wrong size"):
        summed_by_rank(*map(np.zeros, shapes))


def test_nothing_to_sum() -> None:
    assert np.array_equal(summed_by_rank(np.ones((2, 0)), np.ones((0, 3))), np.zeros((2, 3)))


def test_infinities_and_zeros() -> None:
    left = np.array([[np.inf, 1.0], [-0.0, 0.0]])
    right = np.array([[1.0, 0.0], [-np.inf, 5.0]])
    with np.errstate(invalid="ignore"):
        found = summed_by_rank(left, right)
    assert np.array_equal(found, [[np.nan, np.nan], [np.nan, 0.0]], equal_nan=True)
    assert not np.signbit(found[1, 1])


@pytest.mark.parametrize(("rows", "columns"), [(1000, 1000), (1, 10)])
def test_memory_is_that_of_the_product(rows: int, columns: int) -> None:
    left, right = np.ones((rows, 2000)), np.ones((2000, columns))
    tracemalloc.start()
    try:
        summed_by_rank(left, right)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * rows * columns + 2**20

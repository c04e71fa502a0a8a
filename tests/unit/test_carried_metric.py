"""The metric of a weight's errors, carried to its factors: against the errors written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnr_codec.bitstream.unit_layout import matrix_shape
from nnr_codec.factorization.carried_metric import ErrorMetric, carried_metric
from nnr_codec.factorization.factored_weight import FactoredWeight
from nnr_codec.factorization.forms import FORMS

WEIGHTS: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "lr": [((5, 6), (3,)), ((5, 4, 2, 3), (3,)), ((4, 2, 2, 2, 2), (3,))],
    "cp": [((5, 4, 3), (4,)), ((5, 4, 2, 3), (4,))],
    "tucker2": [((5, 4, 3), (3, 2)), ((5, 4, 2, 3), (3, 2))],
    "ht2": [((5, 4, 2, 3), (3, 4, 2))],
    "joint_right": [((5, 4), (3,)), ((5, 4, 2, 3), (3,))],
    "joint_left": [((5, 4, 2), (3,)), ((5, 4, 2, 3), (3,))],
    "joint_binary": [((5, 4), (3, 2)), ((5, 4, 2, 3), (3, 2))],
}
CASES = [(form, *case) for form, cases in WEIGHTS.items() for case in cases]
PRODUCTS = {"lr": (0, 1), "cp": (0,), "tucker2": (0, 1), "ht2": (3,)}
"""Factors whose metric is one of rows and of columns; of joint forms, all but those of 2-d taps."""


def _moments(size: int, rng: np.random.Generator) -> Any:
    """Return a positive definite matrix of trace 1."""
    root = rng.normal(size=(size, 2 * size))
    moments = root @ root.T
    return moments / np.trace(moments)


def _weight(form: str, shape: tuple[int, ...], ranks: tuple[int, ...]) -> FactoredWeight:
    rng = np.random.default_rng(1)
    kind = FORMS[form]
    return kind(shape, tuple(rng.normal(size=size) for size in kind.factor_shapes(shape, ranks)))


def _error_map(weight: FactoredWeight, index: int) -> Any:
    """Return the matrix that makes errors of the weight, flat, of those of a factor."""

    def product(factor: Any) -> Any:
        factors = [*weight.factors[:index], factor, *weight.factors[index + 1 :]]
        return type(weight)(weight.shape, tuple(factors)).to_dense().astype(np.float64).ravel()

    factor = weight.factors[index]
    units = np.eye(factor.size).reshape(-1, *factor.shape)
    nothing = product(np.zeros_like(factor))
    return np.stack([product(unit) - nothing for unit in units], axis=1)


@pytest.mark.parametrize(("form", "shape", "ranks"), CASES)
def test_the_metric_of_factors_is_that_of_the_errors_they_make(
    form: str, shape: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    weight = _weight(form, shape, ranks)
    rows, columns = matrix_shape(shape)
    of_rows, of_columns = _moments(rows, rng), _moments(columns, rng)
    metric = np.kron(of_rows, of_columns)
    for index, factor in enumerate(weight.factors):
        made = _error_map(weight, index)
        sizes = matrix_shape(factor.shape)
        exact = (made.T @ metric @ made).reshape(*sizes, *sizes)
        given = ErrorMetric.of_sides(of_columns[np.newaxis], of_rows, (rows, columns))
        columns_found, rows_found = carried_metric(weight, index, given).whole(*sizes)
        scale = np.einsum("pqpq->", exact)
        close = {"rtol": 1e-5, "atol": 1e-6 * scale}
        np.testing.assert_allclose(columns_found, np.einsum("pqpr->qr", exact), **close)
        np.testing.assert_allclose(rows_found, np.einsum("pqrq->pr", exact), **close)

        product = np.einsum("pr,qs->pqrs", rows_found, columns_found) / scale
        off = np.linalg.norm(product - exact) / np.linalg.norm(exact)
        is_product = index in PRODUCTS.get(form, ()) or (form not in PRODUCTS and len(shape) < 4)
        assert (off < 1e-5) == is_product, (index, off)
        # The nearest product of two matrices, by singular values, is hardly nearer.
        unfolded = exact.transpose(0, 2, 1, 3).reshape(sizes[0] ** 2, sizes[1] ** 2)
        values = np.linalg.svd(unfolded, compute_uv=False)
        nearest = np.sqrt(np.square(values[1:]).sum() / np.square(values).sum())
        assert off < 1.25 * nearest + 1e-5, (index, off, nearest)


@pytest.mark.parametrize(("form", "shape", "ranks"), CASES)
@pytest.mark.parametrize("known", ["blocks", "rows alone", "columns alone"])
def test_what_is_known_in_part_is_as_if_it_were_whole(
    form: str, shape: tuple[int, ...], ranks: tuple[int, ...], known: str
) -> None:
    rng = np.random.default_rng(2)
    weight = _weight(form, shape, ranks)
    rows, columns = matrix_shape(shape)
    blocks = np.stack([_moments(columns // 2, rng) for _ in range(2)])
    of_columns = None if known == "rows alone" else blocks
    of_rows = None if known == "columns alone" else 2 * _moments(rows, rng)
    part = ErrorMetric.of_sides(of_columns, of_rows, (rows, columns))
    all_columns, all_rows = part.whole(rows, columns)
    whole = ErrorMetric.of_sides(all_columns[np.newaxis], all_rows, (rows, columns))
    assert part.trace == pytest.approx(whole.trace)
    for index, factor in enumerate(weight.factors):
        sizes = matrix_shape(factor.shape)
        found, expected = (carried_metric(weight, index, metric) for metric in (part, whole))
        assert found.trace == pytest.approx(expected.trace)
        for one, other in zip(found.whole(*sizes), expected.whole(*sizes), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12 * expected.trace)


def test_wide_matrices_need_no_matrix_of_their_width() -> None:
    size = 200_000  # a square matrix of which would take 320 GB
    factors = np.ones((size, 2)), np.ones((2, size))
    weight = FORMS["lr"]((size, size), factors)
    alike = ErrorMetric.of_sides(None, None, (size, size))
    blocks = ErrorMetric.of_sides(np.full((size // 2, 2, 2), 0.5), None, (size, size))
    for metric in (alike, blocks):
        left, right = (carried_metric(weight, index, metric) for index in (0, 1))
        assert left.columns is not None
        assert left.columns.shape == (1, 2, 2)
        assert left.rows is None
        np.testing.assert_allclose(left.columns[0], np.full((2, 2), size))
        np.testing.assert_allclose(right.rows, np.full((2, 2), metric.trace))
        assert right.trace == pytest.approx(2 * metric.trace)
    assert carried_metric(weight, 1, alike).columns is None
    of_right = carried_metric(weight, 1, blocks).columns
    np.testing.assert_allclose(of_right, np.full((size // 2, 2, 2), 0.5 * 2))

"""Low rank: near the optimum, never by a full SVD, and data-aware."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from decompose_support import random_kernel, random_moment, relative_error, trained_kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from nnr_codec import InvalidModel, InvalidOptions
from nnr_codec.decompose.algorithms.svd import low_rank, squared_singular_values, truncated_svd


def least_error(matrix: np.ndarray, rank: int) -> float:
    """Return the norm of what the best approximation of this rank leaves (Eckart and Young)."""
    return float(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.data())
def test_optimal_at_every_shape_and_rank(shape: list[int], data: st.DataObject) -> None:
    weight = random_kernel(shape, seed=data.draw(st.integers(0, 99)))
    matrix = weight.reshape(shape[0], -1).astype(np.float64)
    rank = data.draw(st.integers(1, min(matrix.shape)))
    form = low_rank(weight, rank)
    assert (form.shape, form.ranks) == (tuple(shape), (rank,))
    error = np.linalg.norm(weight.astype(np.float64) - form.to_dense())
    assert error <= least_error(matrix, rank) * (1 + 1e-6) + 1e-6 * np.linalg.norm(weight)


@pytest.mark.parametrize("falling", [False, True])
def test_subspace_iteration_is_near_the_optimum(falling: bool) -> None:
    """Long sides and a small rank: even of a flat spectrum, the error is within 0.1 %."""
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(1400, 1300))
    if falling:
        matrix *= np.exp(-np.arange(1300) / 100)
    left, singular, right = truncated_svd(matrix, 24)
    optimum = least_error(matrix, 24)
    assert np.linalg.norm(matrix - (left * singular) @ right) <= 1.001 * optimum
    assert np.allclose(left.T @ left, np.eye(24), atol=1e-9)
    assert np.allclose(right @ right.T, np.eye(24), atol=1e-9)


def test_a_full_svd_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("full SVD")

    monkeypatch.setattr(np.linalg, "svd", refused)
    low_rank(random_kernel((1400, 1300)), 8)
    low_rank(random_kernel((64, 3000)), 8, moment=np.eye(3000))
    squared_singular_values(np.ones((30, 400)))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (12, 8, 3, 3)])
@pytest.mark.parametrize("with_moment", [False, True])
def test_full_rank_reproduces_and_errors_fall(shape: tuple[int, ...], with_moment: bool) -> None:
    weight = random_kernel(shape)
    moment = random_moment(math.prod(shape[1:])) if with_moment else None
    most = min(shape[0], math.prod(shape[1:]))
    errors = [
        relative_error(weight, low_rank(weight, rank, moment=moment).to_dense(), moment)
        for rank in range(1, most + 1)
    ]
    assert errors[-1] < 1e-6
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_singular_values_are_split_evenly() -> None:
    left, right = low_rank(random_kernel((20, 30)), 5).factors
    assert np.allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-5)
    assert left.dtype == right.dtype == np.float32


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 20), st.integers(2, 20), st.data())
def test_data_aware_is_never_worse_in_its_norm(rows: int, size: int, data: st.DataObject) -> None:
    """Nor where fewer inputs than dimensions were seen."""
    weight = random_kernel((rows, size), seed=data.draw(st.integers(0, 99)))
    moment = random_moment(size, samples=data.draw(st.sampled_from([1, size // 2, 4 * size])))
    rank = data.draw(st.integers(1, min(rows, size)))
    plain = relative_error(weight, low_rank(weight, rank).to_dense(), moment)
    aware = relative_error(weight, low_rank(weight, rank, moment=moment).to_dense(), moment)
    assert aware <= plain + 1e-6


def test_data_aware_is_the_optimum_in_its_norm() -> None:
    weight, moment = random_kernel((30, 20)), random_moment(20) + 0.1 * np.eye(20)
    form = low_rank(weight, 6, moment=moment)
    damped = moment + 0.01 * np.trace(moment) / 20 * np.eye(20)
    root = np.linalg.cholesky(damped)
    error = np.linalg.norm((weight.astype(np.float64) - form.to_dense()) @ root)
    assert error == pytest.approx(least_error(weight.astype(np.float64) @ root, 6), rel=1e-6)
    assert relative_error(weight, form.to_dense(), moment) < 0.9 * relative_error(
        weight, low_rank(weight, 6).to_dense(), moment
    )


def test_data_aware_of_long_sides() -> None:
    weight, moment = random_kernel((1400, 1500)), random_moment(1500)
    plain, aware = low_rank(weight, 10), low_rank(weight, 10, moment=moment)
    errors = [relative_error(weight, form.to_dense(), moment) for form in (plain, aware)]
    assert errors[1] < errors[0]
    moment += 0.01 * np.trace(moment) / 1500 * np.eye(1500)
    root = np.linalg.cholesky(moment)
    optimum = least_error(weight.astype(np.float64) @ root, 10)
    error = np.linalg.norm((weight.astype(np.float64) - aware.to_dense()) @ root)
    assert optimum * (1 - 1e-9) <= error <= 1.001 * optimum


def test_what_is_no_moment() -> None:
    with pytest.raises(InvalidOptions, match="positive definite"):
        low_rank(random_kernel((5, 3)), 2, moment=np.diag([1.0, 1.0, -1.0]))


def test_a_moment_of_zeros_weighs_all_the_same() -> None:
    weight = random_kernel((9, 7))
    aware = low_rank(weight, 3, moment=np.zeros((7, 7)))
    assert np.allclose(aware.to_dense(), low_rank(weight, 3).to_dense(), atol=1e-6)


def test_same_input_same_output() -> None:
    for weight, rank in [(random_kernel((1400, 1300)), 8), (trained_kernel(), 9)]:
        first, second = low_rank(weight, rank), low_rank(weight.copy(), rank)
        assert all(map(np.array_equal, first.factors, second.factors))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float(dtype: type) -> None:
    weight = random_kernel((6, 5)).astype(dtype)
    assert relative_error(weight.astype(np.float64), low_rank(weight, 5).to_dense()) < 1e-6


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.zeros((3, 3), np.float32), "zeros"),
        (np.array([[1, np.nan]], np.float32), "NaN"),
        (np.array([[1, np.inf]], np.float32), "infinities"),
        (np.ones((3, 3), np.int32), "floats"),
        (np.ones(3, np.float32), "no form of shape"),
        (np.ones((3, 0), np.float32), "no form of shape"),
    ],
)
def test_weights_that_cannot_be_decomposed(weight: np.ndarray, reason: str) -> None:
    with pytest.raises(InvalidModel, match=reason) as caught:
        low_rank(weight, 1, name="a.weight")
    assert caught.value.parameter == "a.weight"


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_impossible_ranks(rank: int) -> None:
    with pytest.raises(InvalidOptions, match=r"rank: 'a\.weight'"):
        low_rank(random_kernel((5, 3)), rank, name="a.weight")


@pytest.mark.parametrize("moment", [np.eye(4), np.full((3, 3), np.nan)])
def test_moments_that_do_not_fit(moment: np.ndarray) -> None:
    with pytest.raises(InvalidOptions, match=r"moment: 'a\.weight'"):
        low_rank(random_kernel((5, 3)), 2, moment=moment, name="a.weight")

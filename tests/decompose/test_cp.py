"""CP: exact where it can be, near plain ALS in error, and stable where that degenerates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from decompose_support import (
    Array,
    in_8_bits,
    random_kernel,
    random_moment,
    relative_error,
    trained_kernel,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nnr_codec import InvalidModel, InvalidOptions
from nnr_codec.decompose.algorithms.cp import ERROR_GROWTH, cp, fit, hybrid_cp, sliced_start
from nnr_codec.decompose.algorithms.cp_stability import bounded_sensitivity
from nnr_codec.decompose.algorithms.cp_terms import gram_product, sensitivity, solved
from nnr_codec.decompose.algorithms.tensors import khatri_rao
from nnr_codec.factorization.forms import CP

SHAPES = st.lists(st.integers(1, 7), min_size=3, max_size=4)


def plain_als(kernel: Array, rank: int, sweeps: int, seed: int) -> list[Array]:
    """Return the factors of textbook ALS from a random start."""
    rng = np.random.default_rng(seed)
    factors = [rng.normal(size=(size, rank)) for size in kernel.shape]
    for _, mode in itertools.product(range(sweeps), range(kernel.ndim)):
        unfolded = np.moveaxis(kernel, mode, 0).reshape(kernel.shape[mode], -1)
        others = khatri_rao(factors[:mode] + factors[mode + 1 :])
        factors[mode] = solved(gram_product(factors, mode), unfolded @ others)
    return factors


def dense(factors: list[Array]) -> Array:
    shape = tuple(map(len, factors))
    return CP(shape, tuple(factors)).to_dense()


def even(factors: list[Array]) -> list[Array]:
    """Scale each term's vectors to one norm."""
    norms = [np.linalg.norm(factor, axis=0) for factor in factors]
    level = np.prod(norms, axis=0) ** (1 / len(factors))
    return [factor * (level / norm) for factor, norm in zip(factors, norms, strict=True)]


def largest_term(factors: list[Array], kernel: Array) -> float:
    """Return the norm of the largest rank-one term, over the kernel's."""
    norms = np.prod([np.linalg.norm(factor, axis=0) for factor in factors], axis=0)
    return float(norms.max() / np.linalg.norm(kernel))


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.integers(0, 99), st.booleans())
def test_the_highest_rank_reproduces(shape: list[int], seed: int, with_moment: bool) -> None:
    weight = random_kernel(shape, seed)
    (rank,) = CP.max_ranks(shape)
    moment = random_moment(math.prod(shape[1:])) if with_moment else None
    form = cp(weight, rank, moment=moment)
    assert (form.shape, form.ranks) == (tuple(shape), (rank,))
    assert relative_error(weight, form.to_dense()) < 3e-6


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.data())
def test_any_rank_is_finite_and_no_worse_than_the_start(
    shape: list[int], data: st.DataObject
) -> None:
    weight = random_kernel(shape, data.draw(st.integers(0, 99)))
    rank = data.draw(st.integers(1, CP.max_ranks(shape)[0]))
    start = dense(sliced_start(weight.astype(np.float64), rank))
    error = relative_error(weight, cp(weight, rank).to_dense())
    assert error <= (1 + ERROR_GROWTH) * relative_error(weight, start) + 1e-5


def test_errors_fall_with_the_rank() -> None:
    weight = trained_kernel("conv2.weight")
    errors = [relative_error(weight, cp(weight, rank).to_dense()) for rank in (1, 4, 16, 48, 96)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_a_kernel_of_low_rank_is_found() -> None:
    factors = [
        np.random.default_rng(seed).normal(size=(n, 4)) for seed, n in enumerate((20, 15, 3))
    ]
    weight = dense(factors)
    assert relative_error(weight, cp(weight, 4).to_dense()) < 0.01


def test_trained_kernel_that_degenerates_in_plain_als() -> None:
    """Terms that cancel, in plain ALS, and their harm in 8 bits; ours lose 1 % of error at most."""
    kernel = trained_kernel("conv2.weight").astype(np.float64)
    plain = even(plain_als(kernel, 16, 400, seed=1))
    ours = list(cp(kernel, 16).factors)
    errors = {"plain": relative_error(kernel, dense(plain))}
    errors["ours"] = relative_error(kernel, dense(ours))
    assert errors["ours"] < 1.01 * errors["plain"]
    assert largest_term(plain, kernel) > 2
    assert largest_term(ours, kernel) < 0.2
    assert sensitivity(ours) < 0.1 * sensitivity(plain)
    harm = {
        name: relative_error(dense(in_8_bits(factors)), dense(factors))
        for name, factors in (("plain", plain), ("ours", ours))
    }
    assert harm["ours"] < 0.02
    assert harm["plain"] > 5 * harm["ours"]


def cancelling_terms(size: float) -> list[Array]:
    """Two terms of norms near `size`; their sum, of border rank 2, has a norm near 1."""
    rng = np.random.default_rng(5)
    bases = [np.linalg.qr(rng.normal(size=(n, 2)))[0] for n in (12, 10, 3)]
    first = [basis[:, 0] + basis[:, 1] / size for basis in bases]
    second = [basis[:, 0] for basis in bases]
    factors = [np.stack(pair, axis=1) for pair in zip(first, second, strict=True)]
    factors[0] = factors[0] * np.array([size, -size])
    return factors


def test_correction_of_huge_terms_keeps_its_bound() -> None:
    """An almost exact fit by terms 300 times too large, and what a bound of the error buys."""
    terms = cancelling_terms(300.0)
    kernel = np.asarray(khatri_rao(terms).sum(axis=1)).reshape([len(f) for f in terms])
    noisy = kernel + 0.02 * random_kernel(kernel.shape)
    energy = float(np.vdot(noisy, noisy))
    before = largest_term(terms, noisy)
    assert before > 100
    largest = [before]
    for allowed in (0.05, 0.1, 0.2):
        corrected = bounded_sensitivity(noisy, terms, allowed**2 * energy)
        assert relative_error(noisy, dense(corrected)) <= allowed * (1 + 1e-6)
        largest.append(largest_term(corrected, noisy))
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(largest))
    assert largest[-1] < 3


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.data())
def test_correction_lowers_the_sensitivity_within_the_bound(
    shape: list[int], data: st.DataObject
) -> None:
    kernel = random_kernel(shape, data.draw(st.integers(0, 99))).astype(np.float64)
    rank = data.draw(st.integers(1, CP.max_ranks(shape)[0]))
    factors, error = fit(kernel, sliced_start(kernel, rank), 20)
    growth = data.draw(st.floats(0, 0.5))
    corrected = bounded_sensitivity(kernel, factors, error * (1 + growth) ** 2)
    assert sensitivity(corrected) <= sensitivity(factors) * (1 + 1e-9)
    bound = error**0.5 * (1 + growth) / np.linalg.norm(kernel)
    assert relative_error(kernel, dense(corrected)) <= bound * (1 + 1e-6) + 1e-6


def test_sensitivity_is_the_mean_change_under_noise() -> None:
    """The definition, by simulation."""
    rng = np.random.default_rng(2)
    factors = [rng.normal(size=(size, 5)) for size in (8, 7, 3, 3)]
    step, trials = 1e-4, 3000
    total = 0.0
    for _ in range(trials):
        moved = [factor + step * rng.normal(size=factor.shape) for factor in factors]
        change = moved[0] @ khatri_rao(moved[1:]).T - factors[0] @ khatri_rao(factors[1:]).T
        total += float(np.vdot(change, change))
    assert total / trials / step**2 == pytest.approx(sensitivity(factors), rel=0.05)


def test_the_vectors_of_a_term_have_one_norm() -> None:
    form = cp(trained_kernel(), 20)
    norms = [np.linalg.norm(factor, axis=0) for factor in form.factors]
    assert all(np.allclose(norm, norms[0], rtol=1e-5) for norm in norms)
    assert {factor.dtype for factor in form.factors} == {np.dtype(np.float32)}


@settings(deadline=None, max_examples=20)
@given(SHAPES, st.data())
def test_data_aware_is_never_worse_in_its_norm(shape: list[int], data: st.DataObject) -> None:
    weight = random_kernel(shape, data.draw(st.integers(0, 99)))
    size = math.prod(shape[1:])
    moment = random_moment(size, samples=data.draw(st.sampled_from([1, size, 4 * size])))
    rank = data.draw(st.integers(1, CP.max_ranks(shape)[0]))
    plain = relative_error(weight, cp(weight, rank).to_dense(), moment)
    aware = relative_error(weight, cp(weight, rank, moment=moment).to_dense(), moment)
    assert aware <= plain


def test_data_aware_pays_and_stays_stable() -> None:
    weight = trained_kernel("conv2.weight")
    moment = random_moment(288)
    plain, aware = cp(weight, 32), cp(weight, 32, moment=moment)
    errors = [relative_error(weight, form.to_dense(), moment) for form in (plain, aware)]
    assert errors[1] < 0.9 * errors[0]
    quantized = relative_error(weight, dense(in_8_bits(aware.factors)), moment)
    assert quantized < 1.02 * errors[1]


def test_hybrid_lies_in_the_spaces_of_its_core() -> None:
    weight = trained_kernel()
    form = hybrid_cp(weight, 24, (20, 18))
    assert form.shape == weight.shape
    assert np.linalg.matrix_rank(form.factors[0], tol=1e-4) <= 20
    assert np.linalg.matrix_rank(form.factors[1], tol=1e-4) <= 18
    direct = relative_error(weight, cp(weight, 24).to_dense())
    assert relative_error(weight, form.to_dense()) < 1.05 * direct


def test_hybrid_with_a_full_core_is_as_good() -> None:
    weight = random_kernel((6, 5, 3, 3))
    assert relative_error(weight, hybrid_cp(weight, 45, (6, 5)).to_dense()) < 1e-5


def test_same_input_same_output() -> None:
    weight = trained_kernel("conv2.weight")
    first, second = cp(weight, 12), cp(weight.copy(), 12)
    assert all(map(np.array_equal, first.factors, second.factors))


def test_errors_name_the_layer() -> None:
    with pytest.raises(InvalidModel, match=r"'a\.weight'"):
        cp(random_kernel((4, 4)), 2, name="a.weight")
    with pytest.raises(InvalidModel, match="zeros"):
        cp(np.zeros((2, 2, 3, 3), np.float32), 2)
    for rank in (0, 37):
        with pytest.raises(InvalidOptions, match=r"'a\.weight'"):
            cp(random_kernel((4, 4, 3, 3)), rank, name="a.weight")
    with pytest.raises(InvalidOptions, match=r"core of a\.weight"):
        hybrid_cp(random_kernel((4, 4, 3, 3)), 30, (2, 2), name="a.weight")


@pytest.mark.parametrize("rank", [4, 12])
def test_no_worse_than_tensorly(rank: int) -> None:
    decomposition = pytest.importorskip("tensorly.decomposition")
    weight = trained_kernel("conv2.weight").astype(np.float64)
    theirs = decomposition.parafac(weight, rank, n_iter_max=100, init="svd", tol=1e-8)
    approximation = np.einsum("r,tr,sr,ir,jr->tsij", theirs[0], *theirs[1])
    ours = relative_error(weight, cp(weight, rank).to_dense())
    assert ours < 1.01 * relative_error(weight, approximation)

"""Tucker-2 and HT-2: exact at full rank, as good as a library's, data-aware, policy of layers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from decompose_support import (
    in_8_bits,
    random_kernel,
    random_moment,
    relative_error,
    trained_kernel,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nnr_codec import InvalidModel, InvalidOptions
from nnr_codec.decompose.algorithms.ht2 import ht2
from nnr_codec.decompose.algorithms.tucker import tucker2
from nnr_codec.factorization.forms import HT2, Tucker2

SHAPES = st.lists(st.integers(1, 8), min_size=3, max_size=4)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.integers(0, 99), st.booleans())
def test_full_rank_reproduces(shape: list[int], seed: int, with_moment: bool) -> None:
    weight = random_kernel(shape, seed)
    moment = random_moment(math.prod(shape[1:])) if with_moment else None
    form = tucker2(weight, Tucker2.max_ranks(shape), moment=moment)
    assert form.shape == tuple(shape)
    assert relative_error(weight, form.to_dense()) < 1e-6
    if len(shape) == 4 and not with_moment:
        assert relative_error(weight, ht2(weight, HT2.max_ranks(shape)).to_dense()) < 1e-6


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.data())
def test_any_ranks_and_data_aware_is_never_worse(shape: list[int], data: st.DataObject) -> None:
    weight = random_kernel(shape, data.draw(st.integers(0, 99)))
    ranks = [data.draw(st.integers(1, most)) for most in Tucker2.max_ranks(shape)]
    size = math.prod(shape[1:])
    samples = data.draw(st.sampled_from([1, size, 4 * size]))
    moment = random_moment(size, samples=samples)
    plain, aware = tucker2(weight, ranks), tucker2(weight, ranks, moment=moment)
    assert all(got <= asked for got, asked in zip(plain.ranks, ranks, strict=True))
    errors = [relative_error(weight, form.to_dense(), moment) for form in (plain, aware)]
    assert errors[1] <= min(errors[0], 1 + 1e-9)
    # Of one sample nothing can be said: the weight may give next to nothing for it.
    assert errors[0] <= 10 or samples == 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 8), min_size=4, max_size=4), st.data())
def test_any_ranks_of_ht2(shape: list[int], data: st.DataObject) -> None:
    """The error is within what the three truncations leave out together."""
    weight = random_kernel(shape, data.draw(st.integers(0, 99)))
    ranks = [data.draw(st.integers(1, most)) for most in HT2.max_ranks(shape)]
    error = relative_error(weight, ht2(weight, ranks).to_dense())
    ordered = weight.transpose(1, 2, 0, 3).astype(np.float64)
    channels, rows, total, taps = ordered.shape
    matrices = [
        ordered.reshape(channels, -1),
        ordered.reshape(channels * rows, total * taps),
        weight.reshape(total, -1),
    ]
    spectra = [np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in matrices]
    left_out = sum(s[rank:].sum() for s, rank in zip(spectra, ranks, strict=True))
    assert error**2 <= left_out / float(np.vdot(ordered, ordered)) + 1e-6


def test_errors_fall_with_the_ranks() -> None:
    weight = trained_kernel()
    for method, choices in (
        (tucker2, [(2, 2), (8, 8), (20, 20), (50, 40), (72, 64)]),
        (ht2, [(2, 2, 2), (8, 12, 8), (20, 40, 20), (50, 100, 50), (64, 192, 72)]),
    ):
        errors = [relative_error(weight, method(weight, ranks).to_dense()) for ranks in choices]
        assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_ht2_by_its_definition() -> None:
    """U1 and U3 are the leading left singular vectors of the original kernel's modes."""
    weight = random_kernel((7, 6, 3, 3)).astype(np.float64)
    form = ht2(weight, (3, 5, 4))
    ordered = weight.transpose(1, 2, 0, 3)
    u1 = np.linalg.svd(ordered.reshape(6, -1), full_matrices=False)[0][:, :3]
    u3 = np.linalg.svd(weight.reshape(7, -1), full_matrices=False)[0][:, :4]
    projected = np.einsum("sitj,sa,ba,tc,dc->sitjbd", ordered, u1, u1, u3, u3)
    kept = np.einsum("sitjbd->bidj", projected)
    left, singular, right = np.linalg.svd(kept.reshape(18, 21), full_matrices=False)
    expected = ((left[:, :5] * singular[:5]) @ right[:5]).reshape(6, 3, 7, 3)
    assert np.allclose(form.to_dense(), expected.transpose(2, 0, 1, 3), atol=1e-6)


def test_no_worse_than_tensorly() -> None:
    decomposition = pytest.importorskip("tensorly.decomposition")
    weight = trained_kernel("conv2.weight").astype(np.float64)
    (core, factors), _ = decomposition.partial_tucker(
        weight, rank=[14, 9], modes=[0, 1], init="svd", n_iter_max=100, tol=1e-8
    )
    theirs = np.einsum("abij,ta,sb->tsij", core, *factors)
    ours = relative_error(weight, tucker2(weight, (14, 9)).to_dense())
    assert ours < 1.001 * relative_error(weight, theirs)


def test_data_aware_pays() -> None:
    weight, moment = trained_kernel("conv2.weight"), random_moment(288)
    plain, aware = tucker2(weight, (20, 16)), tucker2(weight, (20, 16), moment=moment)
    errors = [relative_error(weight, form.to_dense(), moment) for form in (plain, aware)]
    assert errors[1] < 0.9 * errors[0]


def test_data_aware_ht2_pays() -> None:
    """Far more where channels and taps are correlated each for themselves; never less."""
    weight = trained_kernel("conv2.weight")
    channels, taps = random_moment(32), random_moment(9)
    ratios = []
    for moment in (np.kron(channels, taps), random_moment(288)):
        plain, aware = ht2(weight, (20, 30, 20)), ht2(weight, (20, 30, 20), moment=moment)
        errors = [relative_error(weight, form.to_dense(), moment) for form in (plain, aware)]
        ratios.append(errors[1] / errors[0])
    assert ratios[0] < 0.6
    assert ratios[1] <= 1


def test_data_aware_ht2_is_scaled_evenly() -> None:
    """An error of any element of any factor does the same harm to the output, on average."""
    weight, rng = trained_kernel("conv2.weight"), np.random.default_rng(0)
    taps = np.kron(random_moment(3, seed=1), random_moment(3, seed=2))
    moment = np.kron(random_moment(32), taps)
    made = ht2(weight, (20, 30, 20), moment=moment)
    harm = np.zeros(len(made.factors))
    for index, factor in enumerate(made.factors):
        for _ in range(60):  # correlated inputs make single draws differ
            factors = [f.astype(np.float64) for f in made.factors]
            factors[index] = factor + rng.normal(0, 1e-3, factor.shape)
            moved = HT2(made.shape, tuple(factors)).to_dense()
            harm[index] += relative_error(made.to_dense(), moved, moment) ** 2 / factor.size
    assert harm.max() < 1.3 * harm.min()


def test_ranks_that_nothing_can_fill_are_cut() -> None:
    weight = random_kernel((30, 4, 3))
    assert tucker2(weight, (12, 1)).ranks == (3, 1)
    assert ht2(random_kernel((8, 8, 3, 3)), (1, 20, 1)).ranks == (1, 3, 1)


@pytest.mark.parametrize("form", ["tucker2", "ht2"])
def test_an_error_of_any_element_weighs_the_same(form: str) -> None:
    weight = trained_kernel()
    made = tucker2(weight, (20, 16)) if form == "tucker2" else ht2(weight, (16, 40, 20))
    rng = np.random.default_rng(0)
    harm = []
    for index, factor in enumerate(made.factors):
        factors = [f.astype(np.float64) for f in made.factors]
        factors[index] = factor + rng.normal(0, 1e-3, factor.shape)
        moved = type(made)(made.shape, tuple(factors)).to_dense()
        harm.append(np.sum((moved - made.to_dense()) ** 2.0) / factor.size)
    assert max(harm) < 1.3 * min(harm)
    quantized = type(made)(made.shape, tuple(in_8_bits(made.factors)))
    assert relative_error(made.to_dense(), quantized.to_dense()) < 0.05


def test_same_input_same_output() -> None:
    weight = trained_kernel("conv2.weight")
    for method, ranks in ((tucker2, (9, 7)), (ht2, (7, 9, 9))):
        first, second = method(weight, ranks), method(weight.copy(), ranks)
        assert all(map(np.array_equal, first.factors, second.factors))


def test_errors_name_the_layer() -> None:
    kernel = random_kernel((4, 5, 3, 3))
    for method, ranks in ((tucker2, (5, 5)), (tucker2, (2,)), (ht2, (2, 2, 0)), (ht2, (6, 2, 2))):
        with pytest.raises(InvalidOptions, match=r"'a\.weight'"):
            method(kernel, ranks, name="a.weight")
    for method, ranks in ((tucker2, (1, 1)), (ht2, (1, 1, 1))):
        with pytest.raises(InvalidModel, match=r"'a\.weight'"):
            method(np.zeros((2, 2, 3, 3), np.float32), ranks, name="a.weight")
        with pytest.raises(InvalidModel, match="no form of shape"):
            method(random_kernel((4, 4)), ranks)

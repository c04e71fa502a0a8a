"""The algebra of tensors by tensorly, whatever backend is set."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
from decompose_support import random_kernel, random_moment

from nnr_codec.decompose.algorithms.conjugate_gradients import conjugate_gradients
from nnr_codec.decompose.algorithms.svd import leading_eigenvectors, mostly_negative, truncated_svd
from nnr_codec.decompose.algorithms.tensors import khatri_rao, projected, unfolded
from nnr_codec.decompose.fitting import decompose_to
from nnr_codec.factorization.forms import CP, HT2, FactoredWeight, Tucker2


@pytest.mark.parametrize(("form", "ranks"), [(CP, [6]), (Tucker2, [3, 3]), (HT2, [3, 4, 3])])
def test_the_backend_of_users_stays_and_does_not_matter(
    form: type[FactoredWeight], ranks: list[int]
) -> None:
    pytest.importorskip("torch")
    weight, moment = random_kernel((6, 5, 3, 3)), random_moment(45)
    expected = decompose_to(form, weight, ranks, moment)
    tensorly.set_backend("pytorch")
    try:
        made = decompose_to(form, weight, ranks, moment)
        assert tensorly.get_backend() == "pytorch"
    finally:
        tensorly.set_backend("numpy")
    for factor, other in zip(made.factors, expected.factors, strict=True):
        assert np.array_equal(factor, other)


def test_products_are_those_of_numpy() -> None:
    tensor = random_kernel((4, 5, 3, 2)).astype("f8")
    first, last = random_kernel((4, 3), 1).astype("f8"), random_kernel((2, 2), 2).astype("f8")
    expected = np.einsum("abcd,ax,dy->xbcy", tensor, first, last)
    np.testing.assert_allclose(projected(tensor, [first, last], [0, 3]), expected, atol=1e-14)
    assert np.array_equal(unfolded(tensor, 2), tensor.transpose(2, 0, 1, 3).reshape(3, -1))
    terms = np.einsum("ar,br->abr", first, random_kernel((5, 3), 3)).reshape(20, 3)
    np.testing.assert_allclose(khatri_rao([first, random_kernel((5, 3), 3)]), terms)


def test_few_eigenvectors_of_a_large_matrix_are_the_leading_ones() -> None:
    matrix = random_kernel((512, 600)).astype("f8")
    gram = matrix @ matrix.T
    few, all_of_them = leading_eigenvectors(gram, 5), leading_eigenvectors(gram, 512)
    np.testing.assert_allclose(np.abs(np.sum(few * all_of_them[:, :5], axis=0)), 1, atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_singular_vectors_are_mostly_negative(shape: tuple[int, int]) -> None:
    matrix = random_kernel(shape).astype("f8")
    first, singular, last = truncated_svd(matrix, 12)
    left, right = mostly_negative(first, last)
    scaled = left.mean(axis=0) * len(left) ** 0.5 + right.mean(axis=1) * right.shape[1] ** 0.5
    assert (scaled <= 0).all()
    np.testing.assert_allclose(left * singular @ right, matrix, atol=1e-12)


def test_conjugate_gradients_lower_the_quadratic_form_and_end_at_the_solution() -> None:
    matrix, target = random_moment(12) + np.eye(12), random_kernel((4, 3)).astype("f8")
    start = np.zeros((4, 3))

    def applied(x: np.ndarray) -> np.ndarray:
        return (matrix @ x.ravel()).reshape(4, 3)

    forms = []
    for steps in range(13):
        x = conjugate_gradients(applied, target, start, lambda r: r, steps)
        forms.append(float(np.vdot(x, applied(x)) / 2 - np.vdot(x, target)))
    assert (np.diff(forms) <= 1e-15).all()
    np.testing.assert_allclose(applied(x), target, atol=1e-10)
    assert np.array_equal(
        conjugate_gradients(applied, applied(start), start, lambda r: r, 5), start
    )

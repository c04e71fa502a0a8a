"""The algebra of tensors, by tensorly: on numpy's arrays, whatever backends users have set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tensorly
from tensorly.tenalg import core_tenalg as tenalg

from ...model import Float64
from .svd import leading_eigenvectors


@contextmanager
def _numpy_backend() -> Iterator[None]:
    backend = tensorly.get_backend()
    if backend == "numpy":
        yield
        return
    tensorly.set_backend("numpy", local_threadsafe=True)
    try:
        yield
    finally:
        tensorly.set_backend(backend, local_threadsafe=True)


def unfolded(tensor: Float64, mode: int = 0) -> Float64:
    """Return a tensor as a matrix, n_mode x all others in their order."""
    with _numpy_backend():
        matrix: Float64 = tensorly.unfold(tensor, mode)
    return matrix


def projected(tensor: Float64, matrices: Sequence[Float64], modes: Sequence[int]) -> Float64:
    """Return a tensor times the transposes of matrices (n_mode x r) in some modes: r instead."""
    with _numpy_backend():
        product = tenalg.multi_mode_dot(tensor, matrices, modes=modes, transpose=True)
    return np.ascontiguousarray(product)


def khatri_rao(factors: Sequence[Float64]) -> Float64:
    """Return the outer products of the columns of matrices (n_k x R): (∏ n_k) x R."""
    with _numpy_backend():
        product: Float64 = tenalg.khatri_rao(factors)
    return product


def leading_vectors(tensor: Float64, mode: int, count: int | None = None) -> Float64:
    """Return the `count` leading left singular vectors of an unfolding, as columns; None: all."""
    matrix = unfolded(tensor, mode)
    return leading_eigenvectors(matrix @ matrix.T, min(matrix.shape) if count is None else count)

"""The algebra of rank-one terms that the fits of CP share.

Factors are float64 matrices, one of each mode, n_k x R.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...model import Float64

_RIDGE = 1e-12  # of the mean diagonal: keeps equations solvable where terms are parallel


def contracted(tensor: Float64, factors: Sequence[Float64], kept: int) -> Float64:
    """Sum a tensor (n_1, …, n_N, R) times all factors but one over their modes: n_kept x R."""
    for mode in reversed(range(len(factors))):
        if mode != kept:
            shape = [1] * tensor.ndim
            shape[mode], shape[-1] = factors[mode].shape
            tensor = (tensor * factors[mode].reshape(shape)).sum(axis=mode)
    return tensor


def gram_product(factors: Sequence[Float64], left_out: int) -> Float64:
    """Return the Gram matrix of the Khatri-Rao product of all factors but one: R x R."""
    size = factors[0].shape[1]
    product = np.ones((size, size))
    for mode, factor in enumerate(factors):
        if mode != left_out:
            product *= factor.T @ factor
    return product


def solved(gram: Float64, target: Float64) -> Float64:
    """Return X with X·gram = target, gram (R x R) positive semidefinite, target n x R."""
    ridge = _RIDGE * max(float(np.trace(gram)) / len(gram), np.finfo(float).tiny)
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), target.T).T)


def weights_of_norms(factors: Sequence[Float64], mode: int) -> Float64:
    """Return what a squared norm of each column of factor `mode` adds to the sensitivity: (R,).

    That is Σ_k≠mode n_k·∏_m≠k,mode ‖u_m‖².
    """
    squares = [np.sum(factor**2, axis=0) for factor in factors]
    total = np.zeros(factors[0].shape[1])
    for other, factor in enumerate(factors):
        if other != mode:
            rest = [square for m, square in enumerate(squares) if m not in (other, mode)]
            total += len(factor) * np.prod(rest, axis=0)
    return total


def sensitivity(factors: Sequence[Float64]) -> float:
    """Return Σ_k n_k·Σ_r ∏_m≠k ‖u_m,r‖²: the mean squared change per variance of the factors.

    Source: Phan et al., ECCV 2020, "Stable low-rank tensor decomposition", definition 1.
    """
    squares = [np.sum(factor**2, axis=0) for factor in factors]
    return float(
        sum(
            len(factor) * np.prod([s for m, s in enumerate(squares) if m != mode], axis=0).sum()
            for mode, factor in enumerate(factors)
        )
    )

"""The algebra of rank-one terms that the fits of CP share.

Factors are float64 matrices, one of each mode, n_k x R.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...model import Float64
from .tensors import khatri_rao

_RIDGE = 1e-12  # of the mean diagonal: keeps equations solvable where terms are parallel


def contracted(tensor: Float64, factors: Sequence[Float64], kept: int) -> Float64:
    """Sum a tensor (n_1, …, n_N, R) times all factors but one over their modes: n_kept x R."""
    for mode in reversed(range(len(factors))):
        if mode != kept:
            shape = [1] * tensor.ndim
            shape[mode], shape[-1] = factors[mode].shape
            tensor = (tensor * factors[mode].reshape(shape)).sum(axis=mode)
    return tensor


def swept(
    kernel: Float64,
    factors: Sequence[Float64],
    improved: Callable[[Sequence[Float64], int, Float64], Float64],
) -> tuple[list[Float64], Float64]:
    """Return the factors, each improved after the other, and the target of the last.

    Args:
        kernel: T x …
        factors: to start from.
        improved: returns a better factor, from all factors, its mode and its target: the kernel
            times all other factors, n_mode x R.
    """
    current = list(factors)
    unfolded = kernel.reshape(len(kernel), -1)
    target = unfolded @ khatri_rao(current[1:])
    current[0] = improved(current, 0, target)
    partial = (unfolded.T @ current[0]).reshape(*kernel.shape[1:], -1)
    for mode in range(1, kernel.ndim):
        target = contracted(partial, current[1:], mode - 1)
        current[mode] = improved(current, mode, target)
    return current, target


def rescaled(factors: Sequence[Float64], sizes: Sequence[Float64]) -> list[Float64]:
    """Return the same terms, each one's vectors scaled from their sizes, (R,), to one size."""
    level = np.prod(sizes, axis=0) ** (1 / len(factors))
    return [f * (level / np.where(s > 0, s, 1.0)) for f, s in zip(factors, sizes, strict=True)]


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

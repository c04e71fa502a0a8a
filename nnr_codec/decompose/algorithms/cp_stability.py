"""Stabilization of CP: the least sensitivity within a bound of the error.

Source: Phan et al., ECCV 2020, "Stable low-rank tensor decomposition for compression of
convolutional neural network", the error-preserving correction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...model import Float64
from .cp_terms import gram_product, rescaled, sensitivity, swept, weights_of_norms

EXACT = 1e-13
"""Squared error per squared norm, up to which a fit has nothing to gain and nothing to trade."""

_MAX_SWEEPS = 40
_TOLERANCE = 1e-2  # of the sensitivity, gained in a sweep; less ends the correction
_BISECTIONS = 36  # of the multiplier's logarithm: to some 1e-9


def bounded_sensitivity(kernel: Float64, factors: Sequence[Float64], bound: float) -> list[Float64]:
    """Return factors of less sensitivity with a squared error of at most `bound`.

    One factor after the other: with the others fixed, minimizing the sensitivity is a weighted
    least-norm problem under a bound of the error, solved exactly.

    Args:
        kernel: T x …
        factors: of a fit, with a squared error of at most `bound`.
        bound: of the squared error. Next to 0 the factors are scaled, but not changed.
    """
    current = balanced(factors)
    energy = float(np.vdot(kernel, kernel))
    if bound <= EXACT * energy:
        return current

    def corrected(factors: Sequence[Float64], mode: int, target: Float64) -> Float64:
        gram, weights = gram_product(factors, mode), weights_of_norms(factors, mode)
        return _least_norms(gram, target, weights, energy, bound)

    reached = sensitivity(current)
    for _ in range(_MAX_SWEEPS):
        current = balanced(swept(kernel, current, corrected)[0])
        before, reached = reached, sensitivity(current)
        if before - reached <= _TOLERANCE * before:
            break
    return current


def balanced(factors: Sequence[Float64]) -> list[Float64]:
    """Return the same terms, each one's vectors scaled to the least sensitivity.

    That is where all elements of a term have the same mean square, whatever the vector.
    """
    return rescaled(factors, [np.sqrt(np.mean(factor**2, axis=0)) for factor in factors])


def _least_norms(
    gram: Float64, target: Float64, weights: Float64, energy: float, bound: float
) -> Float64:
    """Minimize Σ_r weights_r·‖x_r‖² over X (n x R) with a squared error of at most `bound`.

    The squared error is energy - 2·tr(X·targetᵀ) + tr(X·gram·Xᵀ). The minimum is
    X = target·(gram + μ·diag(weights))⁻¹ with the largest μ that the bound allows. In the
    eigenvectors of the scaled Gram matrix the error is a sum over R numbers, so μ is found by
    bisection. Where even μ = 0 exceeds the bound by rounding, μ stays tiny.
    """
    floor = np.finfo(float).eps * max(float(weights.max()), np.finfo(float).tiny)
    scale = 1 / np.sqrt(np.maximum(weights, floor))
    values, vectors = np.linalg.eigh(gram * np.outer(scale, scale))
    values = np.maximum(values, 0.0)
    rotated = (target * scale) @ vectors
    parts = np.sum(rotated**2, axis=0)

    def squared_error(mu: float) -> float:
        shifted = values + mu
        return energy + float(np.sum(parts * (values / shifted - 2) / shifted))

    top = float(values[-1])
    low, high = np.log(top * 1e-14), np.log(top * 1e6)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if squared_error(np.exp(middle)) <= bound else (low, middle)
    return np.asarray((rotated / (values + np.exp(low))) @ vectors.T * scale)

"""CP that minimizes the error of the layer's output: alternating least squares in its norm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ...model import Float64
from .conjugate_gradients import conjugate_gradients
from .cp_stability import balanced
from .cp_terms import contracted, gram_product, sensitivity, solved, weights_of_norms
from .tensors import khatri_rao

_MAX_SWEEPS = 30
_TOLERANCE = 1e-3  # of the penalized error, gained in a sweep; less ends the fit
_STEPS = 4  # of conjugate gradients for each factor in a sweep: the next sweep goes on
_PENALTY = 0.05  # of the starting error is the starting sensitivity's share


def weighted_fit(kernel: Float64, factors: Sequence[Float64], moment: Float64) -> list[Float64]:
    """Return factors that minimize the squared norm of (W - Ŵ)·moment^½, their sensitivity bounded.

    The sensitivity counts as a penalty, a small fraction of the error at the start. No step
    increases the sum. The factor of the outputs is solved for exactly, the others by a few steps
    of conjugate gradients, as their equations do not separate by rows.

    Args:
        kernel: T x …, unfolded to T x n.
        factors: to start from, such as a stable fit of the weight itself.
        moment: n x n, positive definite.
    """
    current = balanced(factors)
    unfolded = kernel.reshape(len(kernel), -1)
    weighted = unfolded @ moment  # T x n
    energy = float(np.vdot(unfolded, weighted))
    reached = _squared_error(current, weighted, moment, energy)
    penalty = _PENALTY * reached / sensitivity(current)
    reached *= 1 + _PENALTY
    for _ in range(_MAX_SWEEPS):
        before = reached
        rest = khatri_rao(current[1:])
        norms = penalty * np.diag(weights_of_norms(current, 0))
        current[0] = solved(rest.T @ moment @ rest + norms, weighted @ rest)
        target = (weighted.T @ current[0]).reshape(*kernel.shape[1:], -1)
        for mode in range(1, kernel.ndim):
            current[mode] = _improved(current, mode, target, moment, penalty)
        current = balanced(current)
        reached = _squared_error(current, weighted, moment, energy)
        reached += penalty * sensitivity(current)
        if before - reached <= _TOLERANCE * before:
            break
    return current


def _improved(
    factors: Sequence[Float64], mode: int, target: Float64, moment: Float64, penalty: float
) -> Float64:
    """Return factor `mode` after some steps towards the minimum over it alone.

    Args:
        factors: all factors; the first one is of the outputs; `mode` is 1 or more.
        target: moment·Wᵀ·A, folded to S x taps x R.
    """
    norms = penalty * weights_of_norms(factors, mode)
    outputs = factors[0].T @ factors[0]
    others = list(factors[1:])

    def applied(x: Float64) -> Float64:
        others[mode - 1] = x
        change = (moment @ (khatri_rao(others) @ outputs)).reshape(target.shape)
        return contracted(change, others, mode - 1) + norms * x

    # Were the moment a multiple of the identity, this would be all of the equations' matrix.
    plain = np.trace(moment) / len(moment) * gram_product(factors, mode) + np.diag(norms)
    projected = contracted(target, factors[1:], mode - 1)
    return conjugate_gradients(applied, projected, factors[mode], partial(solved, plain), _STEPS)


def _squared_error(
    factors: Sequence[Float64], weighted: Float64, moment: Float64, energy: float
) -> float:
    """Return the squared norm of (W - Ŵ)·moment^½ from W·moment and W's squared norm."""
    rest = khatri_rao(factors[1:])
    cross = float(np.vdot(weighted @ rest, factors[0]))
    square = float(np.sum((rest.T @ moment @ rest) * (factors[0].T @ factors[0])))
    return max(energy - 2 * cross + square, 0.0)

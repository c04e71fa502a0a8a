"""CP: a kernel as a sum of rank-one terms, stable enough to be quantized.

Alternating least squares (ALS) alone degenerates at the ranks of interest: huge terms that cancel.
So a fit is followed by a minimization of its sensitivity, the error not growing beyond a bound
(Phan et al., ECCV 2020; see ``cp_stability``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...factorization.forms import CP
from ...model import Array, Float64
from . import tucker
from .cp_stability import EXACT, bounded_sensitivity
from .cp_terms import gram_product, rescaled, solved, swept
from .cp_weighted import weighted_fit
from .kernel import checked_ranks, checked_weight, closest, damped, squared_error
from .svd import truncated_svd
from .tensors import khatri_rao, leading_vectors, projected

ERROR_GROWTH = 0.005
"""How much larger the error may become, for a smaller sensitivity, as a fraction of itself."""

_CYCLES = 4  # of fit and correction, at most
_CYCLE_TOLERANCE = 2e-3  # of the squared error, gained by a cycle; less ends the cycles
_SWEEPS = 50  # of ALS in a cycle, at most
_TOLERANCE = 1e-4  # of the squared error, gained in a sweep; less ends the fit


def cp(
    weight: Array,
    rank: int,
    *,
    moment: Float64 | None = None,
    name: str = "weight",
) -> CP:
    """Approximate a kernel by `rank` rank-one terms.

    Args:
        weight: (T, S, d) or (T, S, d1, d2), any float type. For matrices CP is low rank.
        rank: 1 to the number of elements over the largest dimension; that many reproduce it.
        moment: second moment of the unfolded input, n x n, n = S·d1·d2: then the error of the
            output is minimized, and is not larger than without.

    Returns:
        Factors in float32; the vectors of a term all have the same norm.

    Raises:
        InvalidModel, InvalidOptions: as `checked_weight` and `checked_ranks` say.
    """
    values = checked_weight(weight, CP, name, moment)
    checked_ranks(CP, weight.shape, (rank,), name)
    plain = stable_fit(values, rank)
    if moment is None:
        return _form(plain)
    aware = weighted_fit(values, plain, damped(moment))
    return closest(values, [_form(plain), _form(aware)], moment)


def hybrid_cp(weight: Array, rank: int, core_ranks: Sequence[int], *, name: str = "weight") -> CP:
    """Approximate a kernel by Tucker-2, and its core by `rank` rank-one terms.

    The terms lie in the spaces that Tucker-2 spans. That is faster than `cp`, as the core is
    smaller. The result is of the form CP: U_T·A and U_S·B are its first factors.

    Args:
        weight, name: as of `cp`.
        rank: as of `cp` of the core.
        core_ranks: r_T, r_S of Tucker-2.

    Raises:
        InvalidModel, InvalidOptions: as `checked_weight` and `checked_ranks` say.
    """
    values = checked_weight(weight, CP, name)
    core, outputs, inputs = tucker.orthonormal_tucker2(values, core_ranks, name)
    checked_ranks(CP, core.shape, (rank,), f"core of {name}")
    first, second, *rest = stable_fit(core, rank)
    return _form([outputs @ first, inputs @ second, *rest])


def fit(kernel: Float64, factors: Sequence[Float64], sweeps: int) -> tuple[list[Float64], float]:
    """Return the factors after sweeps of plain ALS, and their squared error.

    Args:
        kernel: (T, S, d) or (T, S, d1, d2).
        factors: to start from.
        sweeps: at most; a sweep that gains little is the last.
    """
    best = list(factors)
    last = kernel.ndim - 1
    energy = float(np.vdot(kernel, kernel))
    error = squared_error(kernel, best[0] @ khatri_rao(best[1:]).T)
    for _ in range(sweeps):
        if error <= EXACT * energy:
            break
        trial, target = swept(
            kernel, best, lambda f, mode, target: solved(gram_product(f, mode), target)
        )
        # The target of the last mode is all that the error needs: no product of all factors.
        gram = gram_product(trial, last) * (trial[last].T @ trial[last])
        reached = energy - 2 * float(np.vdot(trial[last], target)) + float(gram.sum())
        gain = error - reached
        if gain > 0:
            best, error = trial, max(reached, 0.0)
        if gain <= _TOLERANCE * error:
            break
    return best, error


def stable_fit(kernel: Float64, rank: int) -> list[Float64]:
    """Return `rank` terms of small sensitivity, within `ERROR_GROWTH` of the best fit's error.

    Fits and corrections alternate: a correction leads out of the narrow valleys in which ALS
    hardly moves, so the next fit soon is better than the last.
    """
    factors = sliced_start(kernel, rank)
    least = math.inf
    for _ in range(_CYCLES):
        factors, error = fit(kernel, factors, _SWEEPS)
        before, least = least, min(least, error)
        factors = bounded_sensitivity(kernel, factors, least * (1 + ERROR_GROWTH) ** 2)
        if before - least <= _CYCLE_TOLERANCE * least:
            break
    return factors


def sliced_start(kernel: Float64, rank: int) -> list[Float64]:
    """Return factors from the SVDs of slices, the strongest `rank` terms of all.

    The modes of taps are rotated to their principal axes first, which gathers the energy in few
    slices. The terms are orthogonal: they cannot cancel, and enough of them are exact. All of them
    are as many as the elements over the largest dimension, so the slices span the two largest.
    """
    order = sorted(range(kernel.ndim), key=lambda mode: (-kernel.shape[mode], mode))
    axes = {mode: leading_vectors(kernel, mode, kernel.shape[mode]) for mode in order[2:]}
    rotated = projected(kernel, list(axes.values()), list(axes))
    slices = np.moveaxis(rotated, order, range(kernel.ndim))
    terms: list[tuple[float, tuple[int, ...], Float64, Float64]] = []
    for index in np.ndindex(slices.shape[2:]):
        matrix = slices[(..., *index)]
        left, singular, right = truncated_svd(matrix, min(rank, *matrix.shape))
        terms += [(s, index, s * u, v) for s, u, v in zip(singular, left.T, right, strict=True)]
    strongest = sorted(terms, key=lambda term: -term[0])[:rank]
    factors: dict[int, Float64] = {
        order[0]: np.stack([term[2] for term in strongest], axis=1),
        order[1]: np.stack([term[3] for term in strongest], axis=1),
    }
    for position, mode in enumerate(order[2:]):
        factors[mode] = axes[mode][:, [term[1][position] for term in strongest]]
    return [factors[mode] for mode in range(kernel.ndim)]


def _form(factors: Sequence[Float64]) -> CP:
    """Return the form, each term's norm spread evenly over its vectors."""
    even = rescaled(factors, [np.linalg.norm(factor, axis=0) for factor in factors])
    return CP(tuple(map(len, factors)), tuple(factor.astype(np.float32) for factor in even))

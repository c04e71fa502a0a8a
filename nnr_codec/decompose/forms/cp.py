"""The fitting of CP. What to expect is fitted at a few ranks, and interpolated between them."""

from __future__ import annotations

import math

import numpy as np

from ...factorization.forms import CP
from ...model import Float64
from ..algorithms.cp import cp, fit, sliced_start
from ..algorithms.separable import in_separable_norm
from .fitting import OPERATIONS, Fitting, RankErrors, errors_of_energies

_FITTED_SHARES = (0.06, 0.25, 0.5, 1.0)
"""Of the highest rank that saves parameters: where it is fitted."""

_MOST_SWEEPS, _FEWEST_SWEEPS = 40, 4
"""Of such a fit, which only has to tell how much better than its start it gets."""


def _errors(kernel: Float64) -> RankErrors:
    """Return the errors of all ranks that save parameters.

    Those of the orthogonal terms that a fit starts from are known; how much a fit gains is
    computed at a few ranks.
    """
    (most,) = CP.max_ranks(kernel.shape)
    most = max(min(most, kernel.size // sum(kernel.shape)), 1)
    start = sliced_start(kernel, most)
    energy = float(np.vdot(kernel, kernel))
    before = errors_of_energies(np.cumsum(_squared_norms(start)), energy)
    fitted = sorted({max(int(share * most), 1) for share in _FITTED_SHARES})
    tiny = np.finfo(float).tiny
    gains = []
    for rank in fitted:
        sweeps = min(max(int(OPERATIONS / (4 * kernel.size * rank)), _FEWEST_SWEEPS), _MOST_SWEEPS)
        _, error = fit(kernel, [factor[:, :rank] for factor in start], sweeps)
        gains.append(math.log((error / energy + tiny) / (before[rank - 1] + tiny)))
    ranks = np.arange(1, most + 1)
    errors = before * np.exp(np.interp(ranks, fitted, np.minimum(gains, 0.0)))
    return ranks[:, None], np.minimum.accumulate(errors)


def _squared_norms(factors: list[Float64]) -> Float64:
    """Return the squared norm of each term."""
    return np.asarray(np.prod([np.sum(factor**2, axis=0) for factor in factors], axis=0))


FITTING = Fitting(
    fit=lambda weight, ranks, moment, name: cp(weight, *ranks, moment=moment, name=name),
    errors=_errors,
    spectra=lambda kernel: (_squared_norms(sliced_start(kernel, *CP.max_ranks(kernel.shape))),),
    in_norm=in_separable_norm,
)

"""The fitting of Tucker-2. What to expect is told by leading singular vectors, not iterated."""

from __future__ import annotations

import math

import numpy as np

from ...model import Float64
from ..algorithms.separable import in_separable_norm
from ..algorithms.svd import squared_singular_values
from ..algorithms.tensors import leading_vectors, projected, unfolded
from ..algorithms.tucker import tucker2
from .fitting import Fitting, RankErrors, errors_of_energies, spread_sizes

_MOST_RANKS = 128
"""Of each side for which errors are told, about."""


def _errors(kernel: Float64) -> RankErrors:
    """Return the errors of all pairs of ranks, or of many.

    With all singular vectors of both unfoldings, the core of any two ranks is a corner of one core.
    """
    outputs, inputs = leading_vectors(kernel, 0), leading_vectors(kernel, 1)
    core = projected(kernel, [outputs, inputs], [0, 1])
    squares = (core**2).reshape(*core.shape[:2], -1).sum(axis=2)
    kept = squares.cumsum(axis=0).cumsum(axis=1)
    taps = math.prod(kernel.shape[2:])
    sides = np.meshgrid(*(spread_sizes(most, _MOST_RANKS) for most in kept.shape), indexing="ij")
    ranks = np.stack(sides, axis=-1).reshape(-1, 2)
    ranks = ranks[(ranks[:, 0] <= ranks[:, 1] * taps) & (ranks[:, 1] <= ranks[:, 0] * taps)]
    return ranks, errors_of_energies(kept[ranks[:, 0] - 1, ranks[:, 1] - 1], kept[-1, -1])


def _unfoldings(kernel: Float64) -> tuple[Float64, Float64]:
    return unfolded(kernel, 0), unfolded(kernel, 1)


FITTING = Fitting(
    fit=lambda weight, ranks, moment, name: tucker2(weight, ranks, moment=moment, name=name),
    errors=_errors,
    spectra=lambda kernel: tuple(map(squared_singular_values, _unfoldings(kernel))),
    in_norm=in_separable_norm,
    vbmf_matrices=_unfoldings,
)

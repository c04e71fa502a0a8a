"""Moments of few samples, made as large in each direction as they are for other samples.

The largest directions of what was seen are larger there than elsewhere, and the smallest smaller;
feedback relies on their ratios. So directions are taken from one half of the samples, and their
sizes from the other (NERCOME: C. Lam, Annals of Statistics 44, 2016).
"""

from __future__ import annotations

import numpy as np

from ..model import Float64
from ..support.blas_threads import on_one_blas_thread


@on_one_blas_thread
def cross_validated(first: Float64, second: Float64) -> Float64:
    """Return moments for the sum of those of two halves of the samples.

    Args:
        first, second: (..., indices, indices), symmetric, positive semidefinite.
    """
    found = np.empty_like(first)
    for index in np.ndindex(first.shape[:-2]):  # one by one: they may be large
        found[index] = _resized(first[index], second[index])
        found[index] += _resized(second[index], first[index])
    return found


def _resized(moments: Float64, others: Float64) -> Float64:
    """Return the other half's moments along the directions of this one's."""
    directions = np.linalg.eigh(moments)[1]
    sizes = np.einsum("ij,ij->j", directions, others @ directions)
    directions *= np.sqrt(np.maximum(sizes, 0))
    found: Float64 = directions @ directions.T
    return found

"""Unfoldings of a kernel, their leading vectors, and the errors of what is cut off."""

from __future__ import annotations

import numpy as np

from ...model import Float64
from .svd import leading_eigenvectors

OPERATIONS = 1e11
"""About what a kernel's errors by ranks may take: of large ones, less is tried. Some seconds."""


def unfolded(tensor: Float64, mode: int = 0) -> Float64:
    """Return a tensor as a matrix, n_mode x all others in their order."""
    return np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


def leading_vectors(tensor: Float64, mode: int, count: int | None = None) -> Float64:
    """Return the `count` leading left singular vectors of an unfolding, as columns; None: all."""
    matrix = unfolded(tensor, mode)
    return leading_eigenvectors(matrix @ matrix.T, min(matrix.shape) if count is None else count)


def errors_of_energies(kept: Float64, energy: float) -> Float64:
    """Return the relative squared errors at which these squared norms are kept of `energy`."""
    return np.clip(1 - kept / energy, 0.0, 1.0)


def spread_sizes(most: int, count: int) -> list[int]:
    """Return `count` numbers up to `most`, evenly spaced, and the halves of the least down to 1.

    Or all numbers, if there are no more. The halves hardly count where large sizes cost the most.
    """
    count = min(count, most)
    sizes = {max(round(most * step / count), 1) for step in range(1, count + 1)}
    least = min(sizes)
    sizes |= {least >> half for half in range(1, least.bit_length())}
    return sorted(sizes)

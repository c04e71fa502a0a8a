"""The product of two matrices, each of its sums in the order of the rank (spec/bitstream.md)."""

from __future__ import annotations

import numpy as np

from ..model import Float64

_TILE = 2**14
"""Elements that are summed at a time: they stay in a processor's cache."""

_FEW = 512
"""Elements up to which whole sums are formed by one call, as each call takes longer than a term."""


def summed_by_rank(left: Float64, right: Float64) -> Float64:
    """Return `left` @ `right` in binary64, each sum from 0 on in ascending order of the rank.

    Neither is empty. Beside the result it takes memory for two tiles. A BLAS would add in an order
    of its own.
    """
    rows, columns = left.shape[0], right.shape[1]
    if rows * columns <= _FEW:
        return _accumulated(left, right)
    product = np.empty((rows, columns))
    width = min(columns, _TILE)
    height = _TILE // width
    for top in range(0, rows, height):
        band = left[top : top + height]
        for start in range(0, columns, width):
            tile = _tile(band, right[:, start : start + width])
            product[top : top + height, start : start + width] = tile
    return product


def _tile(left: Float64, right: Float64) -> Float64:
    """Add up the outer products, one after the other."""
    total = np.zeros((left.shape[0], right.shape[1]))
    term = np.empty_like(total)
    for column, row in zip(left.T[:, :, np.newaxis], right, strict=True):
        np.multiply(column, row, out=term)
        total += term
    return total


def _accumulated(left: Float64, right: Float64) -> Float64:
    """Sum many terms of each element by one call; `np.sum` would add them in another order."""
    rows, rank = left.shape
    total = np.zeros((rows, right.shape[1]))
    step = _TILE // total.size
    for start in range(0, rank, step):
        terms = np.empty((*total.shape, min(step, rank - start) + 1))
        terms[..., 0] = total
        columns, lines = left[:, start : start + step], right[start : start + step].T
        np.multiply(columns[:, np.newaxis], lines, out=terms[..., 1:])
        total = np.add.accumulate(terms, axis=-1)[..., -1]
    return total

"""The product of two matrices, each of its sums in the order of the rank (spec/bitstream.md)."""

from __future__ import annotations

import numpy as np

from .._core import add_product
from ..model import Float64


def summed_by_rank(left: Float64, right: Float64, total: Float64 | None = None) -> Float64:
    """Return `left` @ `right` in binary64, each sum from 0 on in ascending order of the rank.

    The result is the same on every processor, infinities included (but which NaN a NaN is). A BLAS
    would add in an order of its own, by fused multiplications where there are such.

    Args:
        left: float64 matrix, rows x rank.
        right: float64 matrix, rank x columns.
        total: rows x columns, if the terms are to be added to it, in place, instead of 0.
    """
    if total is None:
        total = np.zeros((left.shape[0], right.shape[1]))
    add_product(total, left, right)
    return total

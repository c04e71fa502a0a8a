"""Error feedback: how the error of a quantized weight is made up for by later ones.

A weight's error D, as the matrix that is coded, costs about tr(R D C Dᵀ): with the moments C of
the inputs of its layer alone, R being 1, it is the squared error of the outputs; with those of
gradients it is what the network's result loses. Weights are quantized column after column: with U,
the upper Cholesky factor of C⁻¹, an error e of column j is best made up for by -e U_ji / U_jj at
the columns i behind it, and what then is left of it counts e² / U_jj² (OPTQ, arXiv 2210.17323).
Rows likewise with R (YAQA, arXiv 2505.22988).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import Float64
from ..support.blas_threads import on_one_blas_thread
from ..support.pieces import pieces

_DAMPING = 0.01
"""Of the mean diagonal, added to the diagonal: errors elsewhere than on the samples count, too."""

_DAMPING_OF_FEW = 0.1
"""The same, more, where there are as many vectors as indices, and no more is known of them."""

_PIECE = 1 << 22
"""Elements of an error that are looked at together, in float64."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ErrorFeedback:
    """Where errors go, and how they count.

    Attributes:
        columns: (groups, blocks, size, size), above the diagonals: by how much of an error of a
            column each later one of its block is lowered.
        column_weights: (groups, columns), of squared errors; 1 in the mean.
        rows: (rows, rows), the same of rows; None: rows know nothing of each other.
        row_weights: (rows,), 1 in the mean; None: all 1.
        left: what errors cost that are made up for as well as can be, of what they would cost
            otherwise, in the mean; above 0, at most about 1.
    """

    columns: Float32
    column_weights: Float32
    rows: Float32 | None = None
    row_weights: Float32 | None = None
    left: float = 1.0

    def loss(self, error: npt.NDArray[np.floating[Any]]) -> float:
        """Return what an error, (rows, columns), costs, where a squared error of 1 costs 1 if
        nothing is made up for: tr(R D C Dᵀ), the mean diagonals of R and C being 1."""
        groups, blocks, size, _ = self.columns.shape
        parts = error.reshape(groups, -1, blocks, size)
        weights = np.sqrt(self.column_weights.reshape(groups, 1, blocks, size))
        total = 0.0
        for together in pieces(blocks, _PIECE // max(1, size * groups * parts.shape[1])):
            part = parts[:, :, together]
            left = np.empty(part.shape)
            for group, block in np.ndindex(groups, part.shape[2]):
                fed = self.columns[group, together.start + block]
                for rows in pieces(part.shape[1], _PIECE // max(1, size)):
                    errors = part[group, rows, block].T
                    left[group, rows, block] = _behind(errors, fed).T
            left *= weights[:, :, together]
            total += self._loss_of_rows(left.reshape(-1, part.shape[2] * size))
        return self.left * total

    @on_one_blas_thread
    def felt(self, values: npt.NDArray[np.floating[Any]], size: float) -> float:
        """Return how much squared errors cost where values are as large as `size`, over what they
        cost in the mean; smaller values count by their squares.

        Rows and columns that are all but zero have no errors, and so count for nothing.
        """
        groups, columns = self.column_weights.shape
        parts = values.reshape(groups, -1, columns)
        row_weights = self.row_weights
        if row_weights is None:
            row_weights = np.ones(len(parts) * parts.shape[1], np.float32)
        row_weights = row_weights.reshape(groups, -1)
        count = cost = 0.0
        for group, weights in enumerate(self.column_weights):
            for rows in pieces(parts.shape[1], _PIECE // columns):
                with np.errstate(over="ignore"):
                    counted = np.square(parts[group, rows].astype(np.float32) / np.float32(size))
                np.minimum(counted, 1, out=counted)
                count += float(counted.sum(dtype=np.float64))
                cost += float(row_weights[group, rows] @ counted @ weights)
        return cost / count if cost > 0 else 1.0  # of nothing but zeros, no values count

    def _loss_of_rows(self, left: Float64) -> float:
        """Return what is left of errors behind the feedback between rows, squared."""
        if self.rows is None or self.row_weights is None:
            return float(np.square(left).sum())
        weights = np.sqrt(self.row_weights)[:, np.newaxis]
        return sum(
            float(np.square(_behind(left[:, columns], self.rows) * weights).sum())
            for columns in pieces(left.shape[1], _PIECE // max(1, left.shape[0]))
        )


def _behind(errors: npt.NDArray[np.floating[Any]], feedback: Float32) -> Float64:
    """Return (1 + Fᵀ)⁻¹ of errors along their first dimension."""
    from scipy.linalg import solve_triangular  # which decoders do without

    found: Float64 = solve_triangular(
        feedback.T.astype(np.float64), errors.astype(np.float64), lower=True, unit_diagonal=True
    )
    return found


@on_one_blas_thread
def error_feedback(
    columns: Float64, rows: Float64 | None = None, few: int | None = None
) -> ErrorFeedback | None:
    """Return the feedback for moments of columns, and of rows if they are known.

    Args:
        columns: (groups, blocks, size, size), symmetric, positive semidefinite.
        rows: (rows, rows) likewise, or None.
        few: number of vectors that the moments are of, if these are all that is known of how far
            they can be trusted.

    Returns:
        None if moments are all 0, or not finite: then nothing is known.
    """
    of_columns = _factors(columns, few)
    of_rows = None if rows is None else _factors(rows[np.newaxis], few)
    if of_columns is None:
        return None
    feedback, weights = of_columns
    weights = weights.reshape(len(columns), -1)
    left = float(weights.mean())
    of_weights: Float32 = (weights / left).astype(np.float32)
    if of_rows is None:
        return ErrorFeedback(feedback, of_weights, left=left)
    left_of_rows = float(of_rows[1].mean())
    row_weights = (of_rows[1][0] / left_of_rows).astype(np.float32)
    return ErrorFeedback(feedback, of_weights, of_rows[0][0], row_weights, left * left_of_rows)


def _factors(moments: Float64, few: int | None) -> tuple[Float32, Float64] | None:
    """Return the feedback between the indices of moments, and the weights of what is left, the mean
    of their diagonals being 1; None: nothing is known.

    Args:
        moments: (..., indices, indices).
        few: number of vectors that they are of, if they are damped by it.
    """
    indices = moments.shape[-1]
    scale = np.trace(moments, axis1=-2, axis2=-1).mean() / indices
    if not np.isfinite(scale) or scale <= 0 or not np.isfinite(moments).all():
        return None
    damping = _DAMPING if few is None else _DAMPING + _DAMPING_OF_FEW * indices / few
    feedback = np.empty(moments.shape, np.float32)
    weights = np.empty(moments.shape[:-1])
    for index in np.ndindex(moments.shape[:-2]):  # one by one: they may be large
        damped = moments[index] / scale
        damped.flat[:: indices + 1] += damping
        damped /= 1 + damping
        try:
            # The upper factor of the inverse, by the lower one of the moments in reversed order.
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            return None
        np.copyto(damped, lower[::-1, ::-1])
        del lower
        upper = _inverse(damped)
        diagonal = np.diagonal(upper).copy()
        upper /= diagonal[:, np.newaxis]
        np.fill_diagonal(upper, 0)
        feedback[index] = upper
        weights[index] = 1 / diagonal**2
    return feedback, weights


def _inverse(upper: Float64) -> Float64:
    """Return the inverse of an upper triangular matrix, in its place."""
    from scipy.linalg.lapack import dtrtri  # which decoders do without

    # Transposed it is the lower one that LAPACK expects in the order of Fortran.
    inverse, _ = dtrtri(upper.T, lower=1, overwrite_c=1)
    found: Float64 = inverse.T
    return found

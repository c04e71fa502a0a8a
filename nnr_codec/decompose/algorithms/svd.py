"""Low rank: the truncated SVD of a matrix or of an unfolded kernel, plain and data-aware."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from ...factorization.forms import LowRank
from ...model import Array, Float64
from .kernel import checked_ranks, checked_weight, damped, triangular_root

_DENSE_EIGENPROBLEM = 1280  # rows up to which all eigenvectors are computed, in some 0.5 s
_FEW, _LARGE = 4, 512  # a fourth of the eigenvectors, of so many, is sooner computed alone
_FEWEST = 10  # times the rank is the number of rows from which iteration is faster still
_OVERSAMPLING = 0.5  # of the rank; at least:
_LEAST_OVERSAMPLING = 16
_MAX_ITERATIONS = 30
_ENERGY_TOLERANCE = 1e-4  # of what the subspace still gains in an iteration, of what it leaves
_SEED = 20210705


def low_rank(
    weight: Array, rank: int, *, moment: Float64 | None = None, name: str = "weight"
) -> LowRank:
    """Approximate a weight, unfolded to shape[0] x n, by a product of rank `rank`.

    Args:
        weight: at least 2-d, any float type.
        rank: 1 to min(shape[0], n).
        moment: second moment of the unfolded input, n x n: then the error of the output is
            minimized, not of the weight. In that norm it is never larger than without. For
            transposed convolutions there is none, as shape[0] is the input there.

    Returns:
        Factors in float32, the singular values split evenly between them.

    Raises:
        InvalidModel, InvalidOptions: as `checked_weight` and `checked_ranks` say.
    """
    values = checked_weight(weight, LowRank, name, moment)
    checked_ranks(LowRank, weight.shape, (rank,), name)
    matrix = values.reshape(len(values), -1)
    if moment is None:
        left, singular, right = truncated_svd(matrix, rank)
    else:
        left, singular, right = weighted_svd(matrix, rank, damped(moment))
    left, right = mostly_negative(left, right)
    root = np.sqrt(singular)
    return LowRank(
        tuple(weight.shape),
        ((left * root).astype(np.float32), (right * root[:, None]).astype(np.float32)),
    )


def truncated_svd(matrix: Float64, rank: int) -> tuple[Float64, Float64, Float64]:
    """Return U (m x rank), s (rank, falling) and Vᵀ (rank x n) with U·s·Vᵀ ≈ matrix.

    Never by a full SVD: from the eigenvectors of the Gram matrix of the short side, or, if that is
    long and the rank small, by subspace iteration from a seeded random start. The error is within
    0.1 % of the least possible, and mostly far nearer. Full rank reproduces the matrix.
    """
    rows, columns = matrix.shape
    if rows > columns:
        left, singular, right = truncated_svd(matrix.T, rank)
        return right.T, singular, left.T
    return _in_basis(matrix, _leading_left(matrix, rank))


def weighted_svd(matrix: Float64, rank: int, moment: Float64) -> tuple[Float64, Float64, Float64]:
    """Return U, s, Vᵀ as `truncated_svd`, minimizing the norm of (matrix - U·s·Vᵀ)·moment^½.

    With the leading left singular vectors U of matrix·L, L·Lᵀ = moment, the best approximation is
    U·Uᵀ·matrix: nothing has to be inverted.

    Args:
        matrix: m x n.
        rank: 1 to min(m, n).
        moment: n x n, symmetric, positive definite.

    Raises:
        InvalidOptions: the moment is not positive definite.
    """
    if len(matrix) > matrix.shape[1]:  # an eigenproblem of the short side is enough
        basis, small = np.linalg.qr(matrix)
        left, singular, right = weighted_svd(small, rank, moment)
        return basis @ left, singular, right
    return _in_basis(matrix, _leading_left(matrix @ triangular_root(moment), rank))


def mostly_negative(left: Float64, right: Float64) -> tuple[Float64, Float64]:
    """Return singular vectors (columns of `left`, rows of `right`) with signs of one kind.

    Their signs are arbitrary. Where most elements are negative, whatever LAPACK gave, their
    streams are some 0.03 % smaller than with signs by chance.
    """
    means = left.mean(axis=0) * len(left) ** 0.5 + right.mean(axis=1) * right.shape[1] ** 0.5
    signs = np.where(means > 0, -1.0, 1.0)
    return left * signs, right * signs[:, None]


def leading_eigenvectors(gram: Float64, count: int) -> Float64:
    """Return the eigenvectors of a symmetric matrix's largest eigenvalues, falling, as columns."""
    size = len(gram)
    if size >= _LARGE and _FEW * count <= size:
        vectors = scipy.linalg.eigh(gram, subset_by_index=(size - count, size - 1))[1]
    else:
        vectors = np.linalg.eigh(gram)[1]
    return np.ascontiguousarray(vectors[:, : -count - 1 : -1])


def squared_singular_values(matrix: Float64) -> Float64:
    """Return the min(m, n) squared singular values, falling; none is negative."""
    short = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    return np.asarray(np.maximum(np.linalg.eigvalsh(short @ short.T)[::-1], 0.0), np.float64)


def _in_basis(matrix: Float64, basis: Float64) -> tuple[Float64, Float64, Float64]:
    """Return the SVD of basis·basisᵀ·matrix, `basis` having few orthonormal columns.

    Its factors are rotated by the eigenvectors of a small Gram matrix: an SVD proper is slower.
    """
    projected = basis.T @ matrix
    rotation = leading_eigenvectors(projected @ projected.T, len(projected))
    right = rotation.T @ projected
    singular = np.linalg.norm(right, axis=1)
    return basis @ rotation, singular, right / np.where(singular > 0, singular, 1.0)[:, None]


def _leading_left(matrix: Float64, rank: int) -> Float64:
    """Return the leading left singular vectors of a matrix that is not higher than wide."""
    if len(matrix) <= _DENSE_EIGENPROBLEM or _FEWEST * rank > len(matrix):
        return leading_eigenvectors(matrix @ matrix.T, rank)
    return _leading_subspace(matrix, rank)


def _leading_subspace(matrix: Float64, rank: int) -> Float64:
    """Return the leading left singular vectors by subspace iteration (Halko et al., 2011)."""
    rows, columns = matrix.shape
    width = min(rows, rank + max(_LEAST_OVERSAMPLING, int(_OVERSAMPLING * rank)))
    start = np.random.default_rng(_SEED).standard_normal((columns, width))
    basis = np.linalg.qr(matrix @ start)[0]
    energy, kept = float(np.vdot(matrix, matrix)), 0.0
    for _ in range(_MAX_ITERATIONS):
        projected = basis.T @ matrix
        values, vectors = np.linalg.eigh(projected @ projected.T)
        before, kept = kept, float(values[-rank:].sum())
        if kept - before <= _ENERGY_TOLERANCE * (energy - kept):
            break
        basis = np.linalg.qr(matrix @ projected.T)[0]
    return np.asarray(basis @ vectors[:, : -rank - 1 : -1])

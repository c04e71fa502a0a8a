"""Joint decomposition of layers that share a factor (Chen et al., Neurocomputing 516, 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ...errors import InvalidModel, InvalidOptions
from ...factorization.forms import FactoredWeight, JointBinary, JointLeft, JointRight
from ...factorization.joint_forms import unfold, unfolded_size
from ...model import Array, Float64
from .kernel import checked_ranks, checked_weight
from .svd import truncated_svd

Scheme = Literal["right", "left", "binary"]

_FORMS: Mapping[str, type[JointRight | JointLeft | JointBinary]] = {
    "right": JointRight,
    "left": JointLeft,
    "binary": JointBinary,
}
_ROUNDS = 30  # of alternation in the binary scheme, as published
_TOLERANCE = 1e-6  # of the squared error, gained in a round; less ends the alternation

Branch = tuple[list[Float64], Float64]
"""Own factors of the members, and the shared one."""


def joint(weights: Mapping[str, Array], rank: int, scheme: Scheme) -> dict[str, FactoredWeight]:
    """Approximate the weights of a group by products with shared factors.

    Args:
        weights: at least two, by name, float; of one shape, but that the number of input channels
            may differ in the scheme "right".
        rank: of each product, at least 1; not above what the shared factor can use.
        scheme: "right" shares V, "left" shares U, "binary" one of each in a sum of two products.

    Returns:
        By name, in the order given. A shared factor is one and the same array in all of them.

    Raises:
        InvalidModel: a weight cannot be decomposed, or not jointly with the first.
        InvalidOptions: there is no such scheme or rank, or only one weight.
    """
    if scheme not in get_args(Scheme):
        raise InvalidOptions("joint_scheme", f"{scheme!r} is none of {list(get_args(Scheme))}")
    form = _FORMS[scheme]
    if len(weights) < 2:
        raise InvalidOptions("joint_scheme", f"only {len(weights)} weights to share a factor")
    first = next(iter(weights))
    matrices = []
    for name, weight in weights.items():
        matrices.append(np.ascontiguousarray(unfold(checked_weight(weight, form, name))))
        if not _fits(weight.shape, weights[first].shape, scheme):
            shapes = f"{list(weight.shape)} shares no factor with {list(weights[first].shape)}"
            raise InvalidModel(name, f"{shapes} of {first!r}")
        checked_ranks(form, weight.shape, (rank,) * (2 if scheme == "binary" else 1), name)
    factors = _factors(matrices, rank, scheme)
    return {
        name: form(tuple(weight.shape), own)
        for (name, weight), own in zip(weights.items(), factors, strict=True)
    }


def joint_parameters(shapes: Sequence[Sequence[int]], rank: int, scheme: Scheme) -> int:
    """Return the elements of all factors of a group, shared ones counted once."""
    sizes = [unfolded_size(shape) for shape in shapes]
    rows, columns = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
    right, left = rank * (rows + sizes[0][1]), rank * (sizes[0][0] + columns)
    return {"right": right, "left": left, "binary": right + left}[scheme]


def joint_rank(shapes: Sequence[Sequence[int]], fraction: float, scheme: Scheme) -> int:
    """Return the highest rank at which a group keeps at most a fraction of its parameters.

    It is at least 1, whatever that takes, and not above what the shared factor can use.

    Raises:
        InvalidOptions: the fraction is not above 0.
    """
    if not fraction > 0:
        raise InvalidOptions("rank", f"{fraction}: a fraction of parameters is above 0")
    dense = sum(int(np.prod(shape)) for shape in shapes)
    rank = int(fraction * dense / joint_parameters(shapes, 1, scheme))
    most = min(min(_FORMS[scheme].max_ranks(shape)) for shape in shapes)
    return min(max(rank, 1), most)


def _fits(shape: Sequence[int], first: Sequence[int], scheme: Scheme) -> bool:
    same = tuple(shape) == tuple(first)
    return same or (scheme == "right" and (shape[0], *shape[2:]) == (first[0], *first[2:]))


def _factors(
    matrices: list[Float64], rank: int, scheme: Scheme
) -> list[tuple[npt.NDArray[np.float32], ...]]:
    """Return the factors of each member, in the form's order."""
    if scheme == "binary":
        (own_left, shared_right), (own_right, shared_left) = _binary(matrices, rank)
        v, u = shared_right.astype(np.float32), shared_left.astype(np.float32)
        pairs = zip(own_left, own_right, strict=True)
        return [(a.astype(np.float32), v, u, b.astype(np.float32)) for a, b in pairs]
    own, shared = (_right_shared if scheme == "right" else _left_shared)(matrices, rank)
    single = shared.astype(np.float32)
    members = [factor.astype(np.float32) for factor in own]
    return [(m, single) if scheme == "right" else (single, m) for m in members]


def _right_shared(matrices: Sequence[Float64], rank: int) -> Branch:
    """Return the best Uⁿ and V with Wⁿ ≈ Uⁿ·V: the truncated SVD of the members stacked."""
    stack = np.concatenate(matrices)
    left, singular, right = truncated_svd(stack, min(rank, *stack.shape))
    root = np.sqrt(singular)
    ends = np.cumsum([len(matrix) for matrix in matrices])[:-1]
    return np.split(_widened(left * root, rank), ends), _widened((right.T * root), rank).T


def _left_shared(matrices: Sequence[Float64], rank: int) -> Branch:
    """Return the best Vⁿ and U with Wⁿ ≈ U·Vⁿ."""
    own, shared = _right_shared([matrix.T for matrix in matrices], rank)
    return [factor.T for factor in own], shared.T


def _widened(columns: Float64, rank: int) -> Float64:
    """Return the matrix with columns of zeros up to `rank`: a stack may be too small for it."""
    return np.pad(columns, ((0, 0), (0, rank - columns.shape[1])))


def _binary(matrices: Sequence[Float64], rank: int) -> tuple[Branch, Branch]:
    """Return both branches of Wⁿ ≈ Uⁿ·V + U·Vⁿ.

    As U·Vⁿ can hold all of Wⁿ in the space of U, and Uⁿ·V all in the space of V, the error is what
    lies outside both. So each space in turn is the best for what the other leaves; the published
    alternation on residuals gets there more slowly.
    """
    error = np.inf
    outside_u: list[Float64] = list(matrices)
    for _ in range(_ROUNDS):
        _, v = _right_shared(outside_u, rank)
        rows = _unit_rows(v)
        outside_v = [m - (m @ rows.T) @ rows for m in matrices]
        _, u = _left_shared(outside_v, rank)
        columns = _unit_rows(u.T).T
        outside_u = [m - columns @ (columns.T @ m) for m in matrices]
        before = error
        error = sum(float(np.sum((m - (m @ rows.T) @ rows) ** 2)) for m in outside_u)
        if before - error <= _TOLERANCE * error:
            break
    own_left, v = _right_shared(outside_u, rank)
    rest = [m - own @ v for m, own in zip(matrices, own_left, strict=True)]
    own_right, u = _left_shared(rest, rank)
    return (own_left, v), (own_right, u)


def _unit_rows(matrix: Float64) -> Float64:
    """Return orthogonal rows scaled to unit norm; rows of zeros stay."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(norms > 0, norms, 1.0)

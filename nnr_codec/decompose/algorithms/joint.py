"""Joint decomposition of layers that share a factor (Chen et al., Neurocomputing 516, 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InvalidModel, InvalidOptions
from ...factorization.forms import FactoredWeight, JointBinary, JointLeft, JointRight
from ...factorization.joint_forms import unfold
from ...model import Array, Float64
from ...options.decomposition import JointScheme
from .kernel import checked_ranks, checked_weight
from .svd import truncated_svd

_ROUNDS = 30  # of alternation in the binary scheme, as published
_TOLERANCE = 1e-6  # of the squared error, gained in a round; less ends the alternation

Factors = tuple[Float64, ...]


def joint(
    weights: Mapping[str, Array], rank: int, scheme: JointScheme
) -> dict[str, FactoredWeight]:
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
    if scheme not in JOINT_FITTINGS:
        raise InvalidOptions("joint_scheme", f"{scheme!r} is none of {list(JOINT_FITTINGS)}")
    fitting = JOINT_FITTINGS[scheme]
    form = fitting.form
    if len(weights) < 2:
        raise InvalidOptions("joint_scheme", f"only {len(weights)} weights to share a factor")
    first, first_shape = next((name, weight.shape) for name, weight in weights.items())
    matrices = []
    for name, weight in weights.items():
        matrices.append(np.ascontiguousarray(unfold(checked_weight(weight, form, name))))
        depth = weight.shape[1] if fitting.mixes_depths else first_shape[1]
        if weight.shape != (first_shape[0], depth, *first_shape[2:]):
            shapes = f"{list(weight.shape)} shares no factor with {list(first_shape)}"
            raise InvalidModel(name, f"{shapes} of {first!r}")
        checked_ranks(form, weight.shape, fitting.ranks(rank), name)
    fitted = fitting.fit(matrices, rank)
    shared = {index: fitted[0][index].astype(np.float32) for index in form.shared}
    return {
        name: form(
            weight.shape,
            tuple(shared.get(i, factor.astype(np.float32)) for i, factor in enumerate(factors)),
        )
        for (name, weight), factors in zip(weights.items(), fitted, strict=True)
    }


def joint_parameters(shapes: Sequence[Sequence[int]], rank: int, scheme: JointScheme) -> int:
    """Return the elements of all factors of a group, shared ones counted once."""
    form, ranks = JOINT_FITTINGS[scheme].form, JOINT_FITTINGS[scheme].ranks(rank)
    factors = [form.factor_shapes(shape, ranks) for shape in shapes]
    shared = sum(math.prod(factors[0][index]) for index in form.shared)
    alone = [i for i in range(len(factors[0])) if i not in form.shared]
    return shared + sum(math.prod(member[i]) for member in factors for i in alone)


def joint_rank(shapes: Sequence[Sequence[int]], fraction: float, scheme: JointScheme) -> int:
    """Return the highest rank at which a group keeps at most a fraction of its parameters.

    It is at least 1, even if that keeps more, and not above what the shared factor can use.

    Raises:
        InvalidOptions: the fraction is not above 0.
    """
    if not fraction > 0:
        raise InvalidOptions("rank", f"{fraction}: a fraction of parameters is above 0")
    dense = sum(int(np.prod(shape)) for shape in shapes)
    rank = int(fraction * dense / joint_parameters(shapes, 1, scheme))
    most = min(min(JOINT_FITTINGS[scheme].form.max_ranks(shape)) for shape in shapes)
    return min(max(rank, 1), most)


def _right(matrices: Sequence[Float64], rank: int) -> list[Factors]:
    """Return the best Uⁿ, V with Wⁿ ≈ Uⁿ·V: the truncated SVD of the members stacked."""
    stack = np.concatenate(matrices)
    left, singular, right = truncated_svd(stack, min(rank, *stack.shape))
    root = np.sqrt(singular)
    ends = np.cumsum([len(matrix) for matrix in matrices])[:-1]
    v = _widened(right.T * root, rank).T
    return [(u, v) for u in np.split(_widened(left * root, rank), ends)]


def _left(matrices: Sequence[Float64], rank: int) -> list[Factors]:
    """Return the best U, Vⁿ with Wⁿ ≈ U·Vⁿ."""
    return [(u.T, v.T) for v, u in _right([matrix.T for matrix in matrices], rank)]


def _widened(columns: Float64, rank: int) -> Float64:
    """Return the matrix with columns of zeros up to `rank`: a stack may be too small for it."""
    return np.pad(columns, ((0, 0), (0, rank - columns.shape[1])))


def _binary(matrices: Sequence[Float64], rank: int) -> list[Factors]:
    """Return Uⁿ, V, U, Vⁿ with Wⁿ ≈ Uⁿ·V + U·Vⁿ.

    As U·Vⁿ can hold all of Wⁿ in the space of U, and Uⁿ·V all in the space of V, the error is what
    lies outside both. So each space in turn is the best for what the other leaves; the published
    alternation on residuals gets there more slowly.
    """
    error = np.inf
    outside_u: list[Float64] = list(matrices)
    for _ in range(_ROUNDS):
        _, v = _right(outside_u, rank)[0]
        rows = _unit_rows(v)
        outside_v = [m - (m @ rows.T) @ rows for m in matrices]
        u, _ = _left(outside_v, rank)[0]
        columns = _unit_rows(u.T).T
        outside_u = [m - columns @ (columns.T @ m) for m in matrices]
        before = error
        error = sum(float(np.sum((m - (m @ rows.T) @ rows) ** 2)) for m in outside_u)
        if before - error <= _TOLERANCE * error:
            break
    first = _right(outside_u, rank)
    rest = [m - left @ v for m, (left, v) in zip(matrices, first, strict=True)]
    second = _left(rest, rank)
    return [(*uv, *shared_uv) for uv, shared_uv in zip(first, second, strict=True)]


def _unit_rows(matrix: Float64) -> Float64:
    """Return orthogonal rows scaled to unit norm; rows of zeros stay."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(norms > 0, norms, 1.0)


@dataclass(frozen=True)
class JointFitting:
    """How the layers of a group get a joint form.

    Attributes:
        form: its algebra.
        fit: returns the factors of each member, from their unfoldings and the rank; those that
            the form shares are the same in all.
        mixes_depths: whether members may differ in the number of input channels.
    """

    form: type[FactoredWeight]
    fit: Callable[[Sequence[Float64], int], list[Factors]]
    mixes_depths: bool = False

    def ranks(self, rank: int) -> tuple[int, ...]:
        """Return the ranks of the form, one of each product, which shares one factor."""
        return (rank,) * len(self.form.shared)


JOINT_FITTINGS: Mapping[str, JointFitting] = {
    "right": JointFitting(JointRight, _right, mixes_depths=True),
    "left": JointFitting(JointLeft, _left),
    "binary": JointFitting(JointBinary, _binary),
}
"""By the scheme, as in `DecompositionOptions`."""

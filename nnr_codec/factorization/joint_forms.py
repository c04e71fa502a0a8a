"""Joint forms: layers of equal shape share a factor (Chen et al., Neurocomputing 516, 2023).

They unfold a kernel to a matrix of (d1·S) x (d2·T), element (i·S + s, j·T + t) being that of output
t, input s and tap (i, j). A matrix has d1 = d2 = 1, a kernel (T, S, d) has d1 = d and d2 = 1. A
product U·V of (d1·S) x r and r x (d2·T) is executed as a d1x1 convolution S→r and a 1xd2
convolution r→T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..model import Float64
from .factored_weight import FactoredWeight, Ranks, Shape
from .ordered_product import summed_by_rank


def unfolded_size(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns, d1·S and d2·T, of the unfolding of a weight of `shape`."""
    outputs, inputs, rows, columns = (*shape, 1, 1)[:4]
    return rows * inputs, columns * outputs


def unfold(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the (d1·S) x (d2·T) matrix of a weight (T, S), (T, S, d) or (T, S, d1, d2)."""
    kernel = weight.reshape((*weight.shape, 1, 1)[:4])
    return kernel.transpose(2, 1, 3, 0).reshape(unfolded_size(weight.shape))


def fold(matrix: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Return the weight of `shape` that `unfold` makes this matrix of."""
    outputs, inputs, rows, columns = (*shape, 1, 1)[:4]
    kernel = matrix.reshape(rows, inputs, columns, outputs)
    return kernel.transpose(3, 1, 0, 2).reshape(shape)


class _Joint(FactoredWeight):
    """A sum of products U·V; its factors are U, V, U, V, …"""

    axes: ClassVar[tuple[tuple[str, str], ...]] = (("is", "a"), ("a", "jt"))
    _dimensions = range(2, 5)
    _rank_axes: ClassVar[tuple[tuple[int, int], ...]] = ((0, 1),)

    def _product(self, factors: list[Float64]) -> Float64:
        products = [summed_by_rank(u, v) for u, v in zip(factors[::2], factors[1::2], strict=True)]
        total: Float64 = np.asarray(fold(sum(products[1:], start=products[0]), self.shape))
        return total

    @classmethod
    def product_operations(cls, shape: Sequence[int], ranks: Sequence[int]) -> int:
        return sum(ranks) * math.prod(shape)

    def _macs(self, before: int, between: int, after: int) -> int:
        first = sum(factor.size for factor in self.factors[::2])
        return first * between + (self.parameter_count - first) * after

    @classmethod
    def _shapes(cls, shape: Shape, ranks: Ranks) -> tuple[Shape, ...]:
        rows, columns = unfolded_size(shape)
        return tuple(factor for rank in ranks for factor in ((rows, rank), (rank, columns)))


class JointRight(_Joint):
    """W ≈ U·V, V (r x d2·T) shared; one rank.

    Members whose S differs may share V: it does not depend on S.
    """

    form = "joint_right"
    shared = (1,)

    @classmethod
    def _max_ranks(cls, shape: Shape) -> Ranks:
        return (unfolded_size(shape)[1],)


class JointLeft(_Joint):
    """W ≈ U·V, U (d1·S x r) shared; one rank."""

    form = "joint_left"
    shared = (0,)

    @classmethod
    def _max_ranks(cls, shape: Shape) -> Ranks:
        return (unfolded_size(shape)[0],)


class JointBinary(_Joint):
    """W ≈ U₀·V₁ + U₂·V₃, V₁ and U₂ shared; two ranks, one of each branch.

    Both branches are executed and summed. The published scheme gives them the same rank.
    """

    form = "joint_binary"
    shared = (1, 2)
    axes = (("is", "a"), ("a", "jt"), ("is", "b"), ("b", "jt"))
    terms = ((0, 1), (2, 3))
    _rank_axes = ((0, 1), (2, 1))

    @classmethod
    def _max_ranks(cls, shape: Shape) -> Ranks:
        rows, columns = unfolded_size(shape)
        return columns, rows

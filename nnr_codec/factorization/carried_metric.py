"""The metric of a weight's errors, carried to those of its factors.

An error D of a weight, as the matrix that is coded (its first dimension, and all others), costs
tr(R D C Dᵀ). A weight depends on each of its factors linearly, so that an error of one of them
costs a quadratic form of it, too. The factor is coded as a matrix as well: the form is taken for
one of rows and of columns, R' and C'. It is exactly that where rows and columns of the factor meet
different axes of the weight's metric (of W = G H: tr(Gᵀ R G E C Eᵀ) for H, tr(R E H C Hᵀ Eᵀ) for G,
and likewise the core and the outputs of Tucker-2); else R' and C' are its partial traces, which are
the nearest product after one step of the power iteration, as moments of gradients are (YAQA,
arXiv 2505.22988).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..model import Float64
from ..support.block_diagonal import block_diagonal
from .factored_weight import FactoredWeight
from .forms import LowRank

_WEIGHT_AXES, _RANK_AXES = "tsij", "abc"
_COLUMNS = _WEIGHT_AXES[1:]

_TWO_BY_TWO = ("greedy", 1 << 40)
"""How arrays are contracted: where intermediate results may not be larger than the arrays, which is
numpy's own limit, it sums several at once, a thousand times as slow."""


@dataclass(frozen=True)
class ErrorMetric:
    """What the errors D of a matrix cost: about tr(R D C Dᵀ) / tr C, C and R having one trace.

    Matrices of as many rows and columns as wide layers have may be too large for memory: C is known
    in blocks, and where all count alike there is no matrix.

    Attributes:
        columns: the blocks along the diagonal of C, float64, (count, size, size); None: C is a
            multiple of the identity.
        rows: R, (rows, rows); None likewise.
        trace: of C, and of R.
    """

    columns: Float64 | None
    rows: Float64 | None
    trace: float

    @classmethod
    def of_sides(
        cls, columns: Float64 | None, rows: Float64 | None, shape: tuple[int, int]
    ) -> Self:
        """Return the metric of a matrix of this shape by C and R, which have the same trace: sums
        of Sᵀ S and of S Sᵀ do."""
        if columns is not None:
            trace = float(np.trace(columns, axis1=1, axis2=2).sum())
        else:
            trace = float(shape[1] if rows is None else np.trace(rows))
        return cls(columns, rows, trace)

    def whole(self, rows: int, columns: int) -> tuple[Float64, Float64]:
        """Return C, with zeros where nothing is known, and R, of a matrix of this shape."""
        of_rows = np.eye(rows) * (self.trace / rows) if self.rows is None else self.rows
        if self.columns is None:
            return np.eye(columns) * (self.trace / columns), of_rows
        return block_diagonal(self.columns), of_rows


def carried_metric(weight: FactoredWeight, index: int, metric: ErrorMetric) -> ErrorMetric:
    """Return the metric of the errors of one factor, the others being what they are.

    Args:
        weight: in factors.
        index: of the factor.
        metric: of the dense weight, as the matrix that is coded; its trace is above 0.
    """
    if isinstance(weight, LowRank):
        return _of_product(weight, index, metric)
    columns, rows = metric.whole(weight.shape[0], math.prod(weight.shape[1:]))
    columns = columns / metric.trace
    of_rows, of_columns = weight.axes[index]
    kernel = weight.kernel_shape
    sizes = dict(zip(_WEIGHT_AXES + _RANK_AXES, (*kernel, *weight.ranks), strict=False))
    both = [columns.reshape(*kernel[1:], *kernel[1:]), rows]
    axes = [_COLUMNS, "t"]
    partners = next((term for term in weight.terms if index in term), range(len(weight.factors)))
    for partner in partners:
        if partner != index:
            axes.append("".join(weight.axes[partner]))
            factor = weight.factors[partner].astype(np.float64)
            both.append(factor.reshape([sizes[axis] for axis in axes[-1]]))

    def side(kept: str, traced: str) -> Float64:
        size = int(np.prod([sizes[axis] for axis in kept]))
        return _traced(both, axes, kept, traced).reshape(size, size)

    found = side(of_columns, of_rows)
    return ErrorMetric(found[np.newaxis], side(of_rows, of_columns), float(np.trace(found)))


def _of_product(weight: LowRank, index: int, metric: ErrorMetric) -> ErrorMetric:
    """Return the metric of G or H, of a weight G·H."""
    left, right = (factor.astype(np.float64) for factor in weight.factors)
    if index == 0:
        if metric.columns is None:
            columns = right @ right.T * (metric.trace / right.shape[1])
        else:
            count, size, _ = metric.columns.shape
            parts = right.reshape(-1, count, size).swapaxes(0, 1)
            columns = np.tensordot(parts @ metric.columns, parts, ((0, 2), (0, 2)))
        trace = float(np.trace(columns))
        rows = None if metric.rows is None else metric.rows * (trace / metric.trace)
        return ErrorMetric(columns[np.newaxis], rows, trace)
    if metric.rows is None:
        rows = left.T @ left * (metric.trace / left.shape[0])
    else:
        rows = left.T @ metric.rows @ left
    trace = float(np.trace(rows))
    share = trace / metric.trace
    return ErrorMetric(None if metric.columns is None else metric.columns * share, rows, trace)


def _traced(arrays: list[Float64], axes: list[str], kept: str, traced: str) -> Float64:
    """Return the sum of metrics times factors on either side of them, over all axes but `kept`.

    Args:
        arrays: two metrics, then factors.
        axes: of each; metrics have theirs twice.
        kept: axes of the result, which has them twice.
        traced: axes along whose diagonal the sum goes.
    """

    def other_side(names: str) -> str:
        return "".join(name if name in traced else name.upper() for name in names)

    operands: list[Float64] = []
    terms: list[str] = []
    for number, (array, names) in enumerate(zip(arrays, axes, strict=True)):
        is_metric = number < 2
        operands += [array] if is_metric else [array, array]
        terms += [names + other_side(names)] if is_metric else [names, other_side(names)]
    subscripts = f"{','.join(terms)}->{kept}{other_side(kept)}"
    result: Float64 = np.einsum(subscripts, *operands, optimize=_TWO_BY_TWO)
    return result

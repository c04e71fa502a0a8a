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

from dataclasses import dataclass

import numpy as np

from ..model import Float64
from .factored_weight import FactoredWeight

_WEIGHT_AXES, _RANK_AXES = "tsij", "abc"
_COLUMNS = _WEIGHT_AXES[1:]

_TWO_BY_TWO = ("greedy", 1 << 40)
"""How arrays are contracted: where intermediate results may not be larger than the arrays, which is
numpy's own limit, it sums several at once, a thousand times as slow."""


@dataclass(frozen=True)
class CarriedMetric:
    """The metric of the errors E of one factor: they cost about tr(R' E C' Eᵀ) / tr C'.

    Attributes:
        columns: C', float64, (columns, columns) of the factor as the matrix that is coded.
        rows: R', (rows, rows), whose trace is that of C'.
    """

    columns: Float64
    rows: Float64


def carried_metric(
    weight: FactoredWeight, index: int, columns: Float64, rows: Float64
) -> CarriedMetric:
    """Return the metric of the errors of one factor, the others being what they are.

    Args:
        weight: in factors.
        index: of the factor.
        columns: C, float64, (columns, columns) of the dense weight as the matrix that is coded.
        rows: R, (rows, rows).
    """
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

    return CarriedMetric(side(of_columns, of_rows), side(of_rows, of_columns))


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

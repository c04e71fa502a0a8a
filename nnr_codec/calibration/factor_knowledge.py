"""What is known of the factors of a weight, from what is known of the weight.

A calibration knows dense weights. Errors of a factor cost what the errors of the weight do that
they make (:mod:`nnr_codec.factorization.carried_metric`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce

from ..bitstream.unit_layout import matrix_shape
from ..factorization.carried_metric import ErrorMetric, carried_metric
from ..factorization.factored_weight import FactoredWeight
from ..model import Float64
from ..support.blas_threads import on_one_blas_thread
from .moments import ResultMoments, TensorKnowledge


@on_one_blas_thread
def factor_knowledge(
    weight: FactoredWeight, index: int, known: TensorKnowledge | None
) -> TensorKnowledge | None:
    """Return what is known of one factor of a weight, from what is known of the weight.

    Args:
        weight: in factors.
        index: of the factor.
        known: of the dense weight; None: nothing.

    Returns:
        How much the network's result, or without gradients the layer's output, feels errors of the
        factor; None: that is not known.
    """
    if known is None:
        return None
    result = _result_of(known, weight.shape)
    rows, columns = matrix_shape(weight.shape)
    metric = ErrorMetric.of_sides(*_sides(result), (rows, columns))
    if not metric.trace > 0:
        return None
    carried = carried_metric(weight, index, metric)
    share = carried.trace / metric.trace
    if not 0 < share < math.inf:
        return None
    moments, sensitivity = None, known.sensitivity
    if result is not None:
        of_columns = None if carried.columns is None else carried.columns[None]
        moments = replace(result, columns=of_columns, rows=carried.rows)
    if sensitivity is not None:
        sensitivity *= share * rows * columns / weight.factors[index].size
    return TensorKnowledge(result=moments, sensitivity=sensitivity)


def shared_knowledge(parts: Iterable[TensorKnowledge | None]) -> TensorKnowledge | None:
    """Return what is known of a factor that several weights share, from what is known by each.

    What its errors do by one weight and by another adds up, as if they had nothing in common.
    """
    known = [part for part in parts if part is not None]
    return reduce(_together, known) if known else None


def _result_of(known: TensorKnowledge, shape: tuple[int, ...]) -> ResultMoments | None:
    """Return how much errors of a weight of this shape are felt: by the network's result, or else
    by the output of its layer; None: not known."""
    if known.result is not None and known.result.fits(*matrix_shape(shape)):
        return known.result
    inputs = known.inputs
    if inputs is None or inputs.layout.transposed or inputs.layout.shape != shape:
        return None
    return ResultMoments(inputs.blocks, None, inputs.positions, is_checked=False)


def _sides(result: ResultMoments | None) -> tuple[Float64 | None, Float64 | None]:
    """Return moments of columns, in blocks, and of rows; None: not known. Groups share their
    factors: these are felt as in the sum of the groups."""
    if result is None:
        return None, None
    return None if result.columns is None else result.columns.sum(axis=0), result.rows


def _together(first: TensorKnowledge, second: TensorKnowledge) -> TensorKnowledge:
    """Return what is known of a factor of two weights."""
    moments = [known.result for known in (first, second) if known.result is not None]
    sensitivities = [k.sensitivity for k in (first, second) if k.sensitivity is not None]
    return TensorKnowledge(
        result=reduce(_sum, moments) if moments else None,
        sensitivity=sum(sensitivities) if sensitivities else None,
    )


def _sum(first: ResultMoments, second: ResultMoments) -> ResultMoments:
    return ResultMoments(
        _added(first.columns, second.columns),
        _added(first.rows, second.rows),
        max(first.count, second.count),
        first.is_checked and second.is_checked,
    )


def _added(first: Float64 | None, second: Float64 | None) -> Float64 | None:
    return None if first is None or second is None else first + second

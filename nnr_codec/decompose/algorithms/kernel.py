"""What every decomposition starts from: checked weights, moments of their inputs, scales.

A weight of a convolution with groups cannot be told from one without: its array has S / groups
input channels. It is decomposed as the array that it is; who knows of groups judges the form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ...errors import InvalidModel, InvalidOptions
from ...factorization.forms import FactoredWeight
from ...model import Array, Float64, is_float

FormT = TypeVar("FormT", bound=FactoredWeight)

_DAMPING = 0.01
"""Share of the mean diagonal; that of OPTQ (Frantar et al., arXiv 2210.17323)."""


def checked_weight(
    weight: Array, form: type[FactoredWeight], name: str, moment: Float64 | None = None
) -> Float64:
    """Return a weight in float64, or say why it cannot be decomposed.

    Args:
        weight: any float type, of a shape that the form has.
        form: the form to come.
        name: the weight's name in the model, for errors.
        moment: of the layer's unfolded input, if there is one.

    Raises:
        InvalidModel: the weight is not of floats, not finite, all zeros, of values that float32
            has none near, or of a shape that the form does not have.
        InvalidOptions: the moment does not fit the weight, or is not finite.
    """
    if not is_float(weight.dtype):
        raise InvalidModel(name, f"{weight.dtype}: only weights of floats are decomposed")
    try:
        form.max_ranks(weight.shape)
    except ValueError as error:
        raise InvalidModel(name, str(error)) from error
    values = weight.astype(np.float64)
    if not np.isfinite(values).all():
        raise InvalidModel(name, "holds NaN or infinities: it cannot be decomposed")
    largest = float(np.abs(values).max())
    if largest > float(np.finfo(np.float32).max):
        raise InvalidModel(name, "holds values that are too large for factors in float32")
    if not largest:
        raise InvalidModel(name, "holds zeros alone: there is nothing to decompose")
    if largest < float(np.finfo(np.float32).smallest_subnormal):
        raise InvalidModel(name, "holds values that are too small for factors in float32")
    size = math.prod(weight.shape[1:])
    if moment is not None and moment.shape != (size, size):
        reason = f"{name!r}: a moment of shape {list(moment.shape)}, not {[size, size]}"
        raise InvalidOptions("moment", reason)
    if moment is not None and not np.isfinite(moment).all():
        raise InvalidOptions("moment", f"{name!r}: the moment is not finite")
    return values


def checked_ranks(
    form: type[FactoredWeight], shape: Sequence[int], ranks: Sequence[int], name: str
) -> tuple[int, ...]:
    """Return the ranks, if a weight of `shape` can have them in this form.

    Raises:
        InvalidOptions: it cannot.
    """
    try:
        form.factor_shapes(shape, ranks)
    except ValueError as error:
        raise InvalidOptions("rank", f"{name!r}: {error}") from error
    return tuple(int(rank) for rank in ranks)


def damped(moment: Float64) -> Float64:
    """Return the moment with 0.01 times its mean diagonal added to the diagonal.

    What no calibration input has excited so keeps some weight. A moment of zeros becomes the
    identity: then all directions count the same. All is scaled by the power of two that brings the
    mean between 1/2 and 1, which no minimum depends on: squares of inputs may be minute.
    """
    mean, exponent = math.frexp(float(np.trace(moment)) / len(moment))
    symmetric = np.ldexp((moment + moment.T) / 2, -exponent)
    return symmetric + (_DAMPING * mean if mean > 0 else 1.0) * np.eye(len(moment))


def triangular_root(moment: Float64) -> Float64:
    """Return the lower triangular matrix whose product with its transpose is a moment.

    Raises:
        InvalidOptions: the moment is not positive definite.
    """
    try:
        return np.asarray(np.linalg.cholesky(moment), np.float64)
    except np.linalg.LinAlgError as error:
        raise InvalidOptions("moment", "not positive definite, so it is no moment") from error


def squared_error(weight: Array, approximation: Array, moment: Float64 | None = None) -> float:
    """Return the squared error of a weight, or of the layer's output.

    That is the squared Frobenius norm of W - Ŵ or, with a second moment Σ = E[x xᵀ] of the unfolded
    input, of (W - Ŵ)·Σ^½: the expectation of the squared error of the output.

    Args:
        weight, approximation: of one shape, but that either may be unfolded to shape[0] x n.
        moment: n x n.
    """
    rows = len(weight)
    matrix, other = weight.reshape(rows, -1), approximation.reshape(rows, -1)
    difference = np.subtract(matrix, other, dtype=np.float64)
    weighted = difference if moment is None else difference @ moment
    return float(np.vdot(difference, weighted))


def relative_error(weight: Array, approximation: Array, moment: Float64 | None = None) -> float:
    """Return `squared_error` relative to that of zeros; 0 for a weight without any effect."""
    error = squared_error(weight, approximation, moment)
    whole = squared_error(weight, np.zeros_like(weight), moment)
    return error / whole if whole > 0 else 0.0


def closest(weight: Array, forms: Sequence[FormT], moment: Float64 | None = None) -> FormT:
    """Return the form of least `squared_error`, the first one of equal ones."""
    return min(forms, key=lambda form: squared_error(weight, form.to_dense(), moment))


def evenly_scaled(
    factors: Sequence[Float64], effects: Sequence[float]
) -> tuple[npt.NDArray[np.float32], ...]:
    """Scale the factors of one product, so that an error of any element weighs the same.

    All factors are quantized with one step. Rate and error are then spent best where the same
    error in any element does the same harm.

    Args:
        factors: scaled by one number each, the product of which is 1.
        effects: mean squared error of the product per squared error of one element, of each
            factor; greater than 0.

    Returns:
        The factors in float32.
    """
    level = math.exp(sum(math.log(effect) for effect in effects) / len(effects))
    return tuple(
        (factor * math.sqrt(effect / level)).astype(np.float32)
        for factor, effect in zip(factors, effects, strict=True)
    )

"""Quantization of one tensor by its options: weights to integers, and what that does to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import TensorSyntax, TensorToEncode, choose_unary_length, dequantize, quantize
from ..bitstream.qp import qp_delta_bits, step_size
from ..bitstream.unit_layout import Integers, matrix_shape
from ..errors import InvalidModel, QuantizationOverflow
from ..model import Parameter
from ..options import EncodeOptions
from ..quantize.distortion import Distortion, distortion, largest_magnitude
from ..quantize.rate import lambda_of

_LEVEL_LIMIT = 2**31 - 8  # of |weight / step|: the integer, and those tried beside it, fit 32 bits


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A tensor's integers.

    Attributes:
        parameter: the tensor.
        options: its own.
        levels: int32, before the doubling of dependent quantization; flat.
        qp: the quantization parameter; greater than `asked` where integers would not fit 32 bits.
        asked: the one that was asked for.
        distortion: what quantization does to the values.
    """

    parameter: Parameter
    options: EncodeOptions
    levels: Integers
    qp: int
    asked: int
    distortion: Distortion


def asked_qp(parameter: Parameter, options: EncodeOptions) -> int:
    """Return the quantization parameter that a tensor's options ask for."""
    return options.qp if parameter.role == "weight" else options.nonweight_qp


def quantize_tensor(
    parameter: Parameter, values: npt.NDArray[Any], options: EncodeOptions, profile: int
) -> QuantizedTensor:
    """Quantize a tensor.

    Args:
        parameter: the tensor, not empty.
        values: its values.
        options: its own.
        profile: of the stream, on which the rates of its integers depend.

    Raises:
        InvalidModel: it holds what cannot be quantized.
        QuantizationOverflow: a decoded value would be beyond the tensor's type.
    """
    asked = asked_qp(parameter, options)
    with np.errstate(over="ignore"):
        weights = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    largest = largest_magnitude(weights)
    if not math.isfinite(largest):
        _check_finite(parameter.name, values)
        raise InvalidModel(parameter.name, "holds values beyond binary32")
    qp = _coarse_enough(parameter.name, asked, largest, options.qp_density)
    step = step_size(qp, options.qp_density)
    levels = _levels(parameter.shape, options, weights, step, profile)
    # No tool changes what is decoded. Measured before there is a code, it needs less memory.
    syntax = _syntax(parameter.shape, options, 1, profile)
    found = distortion(values.reshape(-1), levels, syntax, step)
    if found.overflows:
        reason = f"at qp {qp} some values become too large for {values.dtype}"
        raise QuantizationOverflow(parameter.name, reason)
    return QuantizedTensor(parameter, options, levels, qp, asked, found)


def decoded_values(quantized: QuantizedTensor, profile: int) -> npt.NDArray[np.float32]:
    """Return what decoders make of a quantized tensor, in a stream of this profile."""
    shape, options = quantized.parameter.shape, quantized.options
    coded = TensorToEncode(_syntax(shape, options, 1, profile), quantized.levels)
    step = step_size(quantized.qp, options.qp_density)
    return dequantize(coded.reconstruct(), step).reshape(shape)


def _check_finite(name: str, values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "infinity"
        raise InvalidModel(name, f"holds {kind}; excluded from quantization it travels losslessly")


def _coarse_enough(name: str, qp: int, largest: float, density: int) -> int:
    """Return qp, or the least greater one at which the integers of a tensor fit 32 bits."""
    highest = (1 << qp_delta_bits(density) - 1) - 1
    for candidate in range(qp, highest + 1):
        if largest / step_size(candidate, density) < _LEVEL_LIMIT:
            return candidate
    raise InvalidModel(name, f"values as large as {largest:g} fit no step size")


def _levels(
    shape: tuple[int, ...],
    options: EncodeOptions,
    weights: npt.NDArray[np.float32],
    step: float,
    profile: int,
) -> Integers:
    """Return the integers of weights; flat."""
    lambda_ = lambda_of(options.lambda_scale, options.dq)
    unary_length = options.unary_length
    if unary_length == "auto":  # rates depend on it, which without lambda are not asked for
        unary_length = (
            _likely_unary_length(shape, options, weights, step, profile) if lambda_ else 1
        )
    return quantize(_syntax(shape, options, unary_length, profile), weights, step, lambda_)


def _likely_unary_length(
    shape: tuple[int, ...],
    options: EncodeOptions,
    weights: npt.NDArray[np.float32],
    step: float,
    profile: int,
) -> int:
    """Return N for the integers of weights before there are any: as rounding makes them."""
    syntax = _syntax(shape, replace(options, dq=False), 1, profile)
    # Dependent quantization takes every other multiple of the step for one integer.
    return choose_unary_length(quantize(syntax, weights, 2 * step if options.dq else step))


def _syntax(
    shape: tuple[int, ...], options: EncodeOptions, unary_length: int, profile: int
) -> TensorSyntax:
    rows, cols = matrix_shape(shape)
    return TensorSyntax(
        rows,
        cols,
        unary_length=unary_length,
        dependent_quantization=options.dq,
        scan_order=options.scan_order,
        second_edition=profile == 1,
    )

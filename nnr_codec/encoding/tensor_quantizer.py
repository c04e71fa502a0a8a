"""Quantization of one tensor by its options: weights to integers, and what that does to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .._core import TensorToEncode, dequantize, largest_magnitude
from ..bitstream.qp import step_size
from ..bitstream.unit_layout import Integers
from ..decoding.updates.open_stream import QuantizerStep
from ..decoding.updates.sums import summed
from ..errors import InvalidModel, QuantizationOverflow
from ..model import Parameter
from ..options import EncodeOptions
from ..quantize.distortion import Distortion, distortion
from ..quantize.feedback import ErrorFeedback
from ..quantize.quantizer import CodingRates, InputKnowledge, Weights, quantizer_of
from ..support.blas_threads import on_one_blas_thread
from .unit_encoder import CodedLevels
from .updates.difference import FloatDifference, reported

LARGEST_ERROR = 0.35
"""Of an element, in squares of the step: a quarter, or with a trellis a little more."""

_CLIPPED_STEPS = (0.5, 1, 2, 4)
_LEVEL_LIMIT = 2**31 - 8  # of |weight / step|: the integer, and those tried beside it, fit 32 bits
_DIFFERENCE_LAMBDA_SCALE = 1.0
"""Of a difference whose options leave it at 0: a bit costs the slope of the error at high rate."""

_FEEDBACK_LIMIT = 2**29  # likewise; the search refuses twice as many


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A tensor's integers.

    Attributes:
        parameter: the tensor.
        options: those of the tensor.
        levels: int32, before the doubling of dependent quantization; flat.
        qp: the quantization parameter.
        distortion: what quantization does to the values.
    """

    parameter: Parameter
    options: EncodeOptions
    levels: Integers
    qp: int
    distortion: Distortion

    @property
    def coded_levels(self) -> CodedLevels:
        """The integers and how they are coded, where no tools are tried."""
        search = self.options.search_initialization
        return CodedLevels(self.levels, self.qp, search_initialization=search)

    def integers(self, profile: int = 0) -> npt.NDArray[np.int32]:
        """Return the multiples of the step that decoders have, in a stream of a profile; flat."""
        rates = _rates(self.parameter.shape, self.options, profile)
        syntax = rates.syntax(dependent=self.options.dq)
        return TensorToEncode(syntax, self.levels).reconstruct()

    def decoded(self) -> npt.NDArray[np.float32]:
        """Return what decoders make of it, before that is put in the tensor's type; flat."""
        return dequantize(self.integers(), step_size(self.qp, self.options.qp_density))


@dataclass(frozen=True, slots=True)
class QuantizedFactor:
    """A factor as decoders have it.

    Attributes:
        shape: its dimensions.
        integers: multiples of the step, in the smallest type that holds them; flat.
        step: the step size.
        base: what they are added to, if it is a difference.
    """

    shape: tuple[int, ...]
    integers: npt.NDArray[np.signedinteger[Any]]
    step: float
    base: Parameter | None = None

    @classmethod
    def of(cls, quantized: QuantizedTensor, profile: int) -> QuantizedFactor:
        """Return what decoders have of a factor in a stream of this profile."""
        options, shape = quantized.options, quantized.parameter.shape
        integers: npt.NDArray[np.signedinteger[Any]] = quantized.integers(profile)
        low, high = int(integers.min()), int(integers.max())
        for smaller in (np.int8, np.int16):
            if np.iinfo(smaller).min <= low and high <= np.iinfo(smaller).max:
                integers = integers.astype(smaller)
                break
        parameter = quantized.parameter
        base = parameter.base.loaded() if isinstance(parameter, FloatDifference) else None
        return cls(shape, integers, step_size(quantized.qp, options.qp_density), base)

    def read(self) -> npt.NDArray[Any]:
        """Return the decoded values."""
        values = dequantize(self.integers.astype(np.int32, copy=False), self.step)
        values = values.reshape(self.shape)
        return values if self.base is None else summed(self.base.read(), values)


def nominal_qp(parameter: Parameter, options: EncodeOptions) -> int:
    """Return the quantization parameter that a tensor's options have for it."""
    return options.qp if parameter.role == "weight" else options.nonweight_qp


def nominal_step(parameter: Parameter, options: EncodeOptions) -> float:
    """Return the step size of that quantization parameter."""
    return step_size(nominal_qp(parameter, options), options.qp_density)


def with_qp(parameter: Parameter, options: EncodeOptions, qp: int) -> EncodeOptions:
    """Return options of a tensor with another quantization parameter for it."""
    if parameter.role == "weight":
        return replace(options, qp=qp)
    return replace(options, nonweight_qp=qp)


def largest_value(values: npt.NDArray[Any]) -> float:
    """Return the largest magnitude in binary32: infinite, or NaN, if no step can say the values."""
    return largest_magnitude(_binary32(values))


def why_unquantizable(values: npt.NDArray[Any]) -> str:
    """Say what values hold whose largest magnitude in binary32 is not finite, or 0."""
    if np.isfinite(values).all():
        return "values beyond binary32" if np.abs(values).max() > 1 else "values below binary32"
    return "NaN" if np.isnan(values).any() else "infinities"


def fits_step(parameter: Parameter, options: EncodeOptions, largest: float) -> bool:
    """Whether the integers of a tensor, of this largest magnitude, fit 32 bits at its qp."""
    return largest / nominal_step(parameter, options) < _LEVEL_LIMIT


def feeds_nothing_back(parameter: Parameter, options: EncodeOptions, largest: float) -> str:
    """Say why the quantizer cannot feed errors of a tensor back at its qp; empty: it can."""
    if options.scan_order:
        return "scanned in blocks, which end in the middle of rows"
    if largest / nominal_step(parameter, options) >= _FEEDBACK_LIMIT:
        return "integers of 30 bits, whose errors binary32 cannot say"
    return ""


def quantize_tensor(
    parameter: Parameter,
    options: EncodeOptions,
    largest: float,
    profile: int,
    feedback: ErrorFeedback | None = None,
) -> QuantizedTensor:
    """Quantize a tensor.

    Args:
        parameter: the tensor, not empty.
        options: those of the tensor.
        largest: its largest magnitude, as `largest_value` gives it.
        profile: of the stream, on which the rates of its integers depend.
        feedback: of its errors, if anything is known of the inputs that it is multiplied with.

    Raises:
        InvalidModel: it cannot be read, or its integers do not fit 32 bits.
        QuantizationOverflow: a decoded value would be beyond the tensor's type, and those next to
            it are no better.
    """
    qp = nominal_qp(parameter, options)
    if not fits_step(parameter, options, largest):
        reason = f"values as large as {largest:g} are too large for qp {qp}: give it a greater one"
        raise InvalidModel(parameter.name, reason)
    step = step_size(qp, options.qp_density)
    if isinstance(parameter, FloatDifference):
        return _quantized_difference(parameter, options, qp, profile)
    values, original = parameter.read(), reported(parameter)
    wanted = values if original is parameter else original.read()
    rates = _rates(parameter.shape, options, profile)
    if feeds_nothing_back(parameter, options, largest):
        feedback = None
    # No tool changes what is decoded. Measured before there is a code, it needs less memory.
    syntax = rates.syntax(dependent=options.dq)
    quantizer, weights = quantizer_of(dependent=options.dq), _binary32(values)
    for bound in (math.inf, *_bounds(values.dtype, step)):
        bounded = weights if bound == math.inf else np.clip(weights, -bound, bound)
        levels = quantizer.integers(bounded, step, rates, InputKnowledge(feedback=feedback))
        error = distortion(wanted.reshape(-1), levels, syntax, step)
        if not error.overflows:
            return QuantizedTensor(parameter, options, levels, qp, error)
    reason = f"at qp {qp} some values become too large for {values.dtype}"
    raise QuantizationOverflow(parameter.name, reason)


@on_one_blas_thread
def _quantized_difference(
    parameter: FloatDifference, options: EncodeOptions, qp: int, profile: int
) -> QuantizedTensor:
    """Quantize what is added to a tensor of the base; raises what `quantize_tensor` raises.

    Rates count, as most of its integers are zeros, for which a quantizer that does not know what
    they cost has no preference.
    """
    step = step_size(qp, options.qp_density)
    known = parameter.with_known_base()
    values = known.beyond(QuantizerStep(step, options.dq)).reshape(-1)
    scale = options.lambda_scale or _DIFFERENCE_LAMBDA_SCALE
    rates = replace(_rates(parameter.shape, options, profile), lambda_scale=scale)
    quantizer = quantizer_of(dependent=options.dq)
    levels = quantizer.integers(values, step, rates, InputKnowledge())
    integers = TensorToEncode(rates.syntax(dependent=options.dq), levels).reconstruct()
    error = known.distortion(dequantize(integers, step))
    if error.overflows:
        reason = f"at qp {qp} some sums become too large for {parameter.new.dtype}"
        raise QuantizationOverflow(parameter.name, reason)
    return QuantizedTensor(parameter, options, levels, qp, error)


def _bounds(dtype: np.dtype[Any], step: float) -> Iterator[float]:
    """Yield what values are clipped to, in turn, where decoded ones would leave their type."""
    most = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    for steps in _CLIPPED_STEPS:
        yield max(most - steps * step, 0.0)


def _binary32(values: npt.NDArray[Any]) -> Weights:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)


def _rates(shape: tuple[int, ...], options: EncodeOptions, profile: int) -> CodingRates:
    return CodingRates(
        shape,
        unary_length=None if options.unary_length == "auto" else options.unary_length,
        scan_order=options.scan_order,
        second_edition=profile == 1,
        lambda_scale=options.lambda_scale,
    )

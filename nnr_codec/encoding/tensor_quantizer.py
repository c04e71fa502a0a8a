"""Quantization of one tensor by its options: weights to integers, and what that does to them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import TensorToEncode, dequantize, largest_magnitude
from ..bitstream.qp import qp_delta_bits, step_size
from ..bitstream.unit_layout import Integers
from ..errors import InvalidModel, QuantizationOverflow
from ..model import Parameter
from ..options import EncodeOptions
from ..quantize.distortion import Distortion, distortion
from ..quantize.quantizer import CodingRates, InputKnowledge, Weights, quantizer_of
from .unit_encoder import CodedLevels

_LEVEL_LIMIT = 2**31 - 8  # of |weight / step|: the integer, and those tried beside it, fit 32 bits


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
    def qp_raised(self) -> bool:
        """Whether the qp exceeds that of the options, at which integers would not fit 32 bits."""
        return self.qp != nominal_qp(self.parameter, self.options)

    @property
    def coded_levels(self) -> CodedLevels:
        """The integers and how they are coded, where no tools are tried."""
        search = self.options.search_initialization
        return CodedLevels(self.levels, self.qp, search_initialization=search)


@dataclass(frozen=True, slots=True)
class QuantizedFactor:
    """A factor as decoders have it.

    Attributes:
        shape: its dimensions.
        integers: multiples of the step, in the smallest type that holds them; flat.
        step: the step size.
    """

    shape: tuple[int, ...]
    integers: npt.NDArray[np.signedinteger[Any]]
    step: float

    @classmethod
    def of(cls, quantized: QuantizedTensor, profile: int) -> QuantizedFactor:
        """Return what decoders have of a factor in a stream of this profile."""
        options, shape = quantized.options, quantized.parameter.shape
        syntax = _rates(shape, options, profile).syntax(dependent=options.dq)
        integers = TensorToEncode(syntax, quantized.levels).reconstruct()
        low, high = int(integers.min()), int(integers.max())
        for smaller in (np.int8, np.int16):
            if np.iinfo(smaller).min <= low and high <= np.iinfo(smaller).max:
                integers = integers.astype(smaller)
                break
        return cls(shape, integers, step_size(quantized.qp, options.qp_density))

    def read(self) -> npt.NDArray[np.float32]:
        """Return the decoded values."""
        return dequantize(self.integers.astype(np.int32, copy=False), self.step).reshape(self.shape)


def nominal_qp(parameter: Parameter, options: EncodeOptions) -> int:
    """Return the quantization parameter that a tensor's options have for it."""
    return options.qp if parameter.role == "weight" else options.nonweight_qp


def largest_quantizable(name: str, values: npt.NDArray[Any]) -> float:
    """Return the largest magnitude of a tensor that is to be quantized.

    Raises:
        InvalidModel: it holds what cannot be quantized.
    """
    largest = largest_magnitude(_binary32(values))
    if not math.isfinite(largest):
        if np.isfinite(values).all():
            raise InvalidModel(name, "holds values beyond binary32")
        kind = "NaN" if np.isnan(values).any() else "infinity"
        raise InvalidModel(name, f"holds {kind}; excluded from quantization it travels losslessly")
    return largest


def quantize_tensor(
    parameter: Parameter, options: EncodeOptions, largest: float, profile: int
) -> QuantizedTensor:
    """Quantize a tensor.

    Args:
        parameter: the tensor, not empty.
        options: those of the tensor.
        largest: its largest magnitude, as `largest_quantizable` gives it.
        profile: of the stream, on which the rates of its integers depend.

    Raises:
        InvalidModel: it cannot be read, or fits no step size.
        QuantizationOverflow: a decoded value would be beyond the tensor's type.
    """
    values = parameter.read()
    qp = _coarse_enough(parameter, options, largest)
    step = step_size(qp, options.qp_density)
    rates = _rates(parameter.shape, options, profile)
    quantizer = quantizer_of(dependent=options.dq)
    levels = quantizer.integers(_binary32(values), step, rates, InputKnowledge())
    # No tool changes what is decoded. Measured before there is a code, it needs less memory.
    syntax = rates.syntax(dependent=options.dq)
    error = distortion(values.reshape(-1), levels, syntax, step)
    if error.overflows:
        reason = f"at qp {qp} some values become too large for {values.dtype}"
        raise QuantizationOverflow(parameter.name, reason)
    return QuantizedTensor(parameter, options, levels, qp, error)


def _binary32(values: npt.NDArray[Any]) -> Weights:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)


def _coarse_enough(parameter: Parameter, options: EncodeOptions, largest: float) -> int:
    """Return the tensor's qp, or the least greater one at which its integers fit 32 bits."""
    density = options.qp_density
    highest = (1 << qp_delta_bits(density) - 1) - 1
    for candidate in range(nominal_qp(parameter, options), highest + 1):
        if largest / step_size(candidate, density) < _LEVEL_LIMIT:
            return candidate
    raise InvalidModel(parameter.name, f"values as large as {largest:g} fit no step size")


def _rates(shape: tuple[int, ...], options: EncodeOptions, profile: int) -> CodingRates:
    return CodingRates(
        shape,
        unary_length=None if options.unary_length == "auto" else options.unary_length,
        scan_order=options.scan_order,
        second_edition=profile == 1,
        lambda_scale=options.lambda_scale,
    )

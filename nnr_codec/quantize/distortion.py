"""What quantization does to a tensor, measured piece by piece, which needs little memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import TensorSyntax, TensorToEncode, dequantize, measure_distortion
from ..support.pieces import pieces

_PIECE = 1 << 15
"""Elements looked at together: what is computed of them in binary64 stays in the cache."""


@dataclass(frozen=True, slots=True)
class Distortion:
    """The error of a tensor that does not come back as it was.

    Attributes:
        squared_error: sum of the squared differences.
        energy: sum of the squared weights.
        overflows: whether a value becomes infinite in the tensor's element type.
    """

    squared_error: float
    energy: float
    overflows: bool


def distortion(
    values: npt.NDArray[Any], levels: npt.NDArray[np.int32], syntax: TensorSyntax, step: float
) -> Distortion:
    """Compare a tensor with what a decoder makes of its integers.

    Args:
        values: flat, of the element type in which they come back.
        levels: integers as they are coded, before the doubling of dependent quantization; flat.
        syntax: of the tensor.
        step: the step size.
    """
    dtype = values.dtype
    if dtype == np.float32:
        squared_error, energy, largest = measure_distortion(syntax, levels, step, values)
        return Distortion(squared_error, energy, not np.isfinite(largest))
    integers = TensorToEncode(syntax, levels).reconstruct()
    return _difference(values, lambda piece: dequantize(integers[piece], step))


def _difference(
    values: npt.NDArray[Any], decoded: Callable[[slice], npt.NDArray[np.floating[Any]]]
) -> Distortion:
    """Compare a tensor with what comes back.

    Args:
        values: flat, of the element type in which they come back.
        decoded: gives a piece of what comes back, flat, before it has that type.
    """
    squared_error = energy = 0.0
    overflows = False
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in pieces(values.size, _PIECE):
            original = values[piece].astype(np.float64)
            result = decoded(piece).astype(values.dtype, copy=False)
            error = result.astype(np.float64) - original
            squared = float(error @ error)
            squared_error += squared
            energy += float(original @ original)
            # Without a finite error there may be an infinity.
            overflows |= not math.isfinite(squared) and not np.isfinite(result).all()
    return Distortion(squared_error, energy, bool(overflows))


def weight_error(weight: npt.NDArray[Any], made: npt.NDArray[Any]) -> Distortion:
    """Compare a weight with what decoders, or its factors, make of it, of the same shape.

    Sums over values that are not finite are not finite either.
    """
    flat = made.reshape(-1)
    return _difference(weight.reshape(-1), lambda piece: flat[piece])

"""Grids: tensors whose values are integer multiples of one number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bitstream.qp import qp_delta_bits, step_size
from ..bitstream.unit_layout import Integers
from ..factorization.words import mantissa_bits, words_of
from ..model import Float64
from .integer_rate import sampled

_FIRST_SAMPLE = 32
_SAMPLE = 1024
_MAX_MULTIPLE = 2**16
"""A grid with larger integers is none: the values would hardly share it by more than chance."""

_MAX_ROUNDS = 64  # of Euclid's algorithm


def exact_step(values: npt.NDArray[Any], density: int) -> tuple[int, Integers] | None:
    """Return a qp, and the integers that times its step are the values, bit by bit.

    Args:
        values: of a floating-point type.
        density: qp_density.

    Returns:
        None if there is no such step, or only one of integers beyond 16 bits; of NaN, infinities
        and negative zeros, too. The integers are flat.
    """
    narrow = as_binary32(values.reshape(-1)) if _may_be_on_step(values) else None
    unit = None if narrow is None else _common_unit(narrow)
    if narrow is None or unit is None:
        return None
    qp = _qp_of(*unit, density)
    limit = 1 << (qp_delta_bits(density) - 1)
    if qp is None or not -limit <= qp < limit:
        return None
    levels = levels_on_step(narrow, qp, density)
    return None if levels is None else (qp, levels)


def levels_on_step(values: npt.NDArray[Any], qp: int, density: int) -> Integers | None:
    """Return the integers that times the step of `qp` are the values, bit by bit; None without.

    The values are of a floating-point type, the integers flat.
    """
    narrow = as_binary32(values.reshape(-1))
    if narrow is None:
        return None
    step = step_size(qp, density)
    with np.errstate(all="ignore"):
        levels = (narrow.astype(np.float64) / step).astype(np.int32)
        exact = levels.astype(np.float64) * step
    return levels if _same_bits(exact.astype(np.float32), narrow) else None


def as_binary32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32] | None:
    """Return the values as binary32 if that keeps every bit of them, else None."""
    if values.dtype == np.float32:
        return values
    with np.errstate(all="ignore"):
        narrow = values.astype(np.float32)
        return narrow if _same_bits(narrow.astype(values.dtype), values) else None


def _same_bits(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> bool:
    return np.array_equal(words_of(first), words_of(second))


def _may_be_on_step(values: npt.NDArray[Any]) -> bool:
    """Whether samples of the values are multiples of one number."""
    with np.errstate(all="ignore"):
        samples = (sampled(values, size).astype(np.float32) for size in (_FIRST_SAMPLE, _SAMPLE))
        return all(_common_unit(sample) is not None for sample in samples)


def _common_unit(values: npt.NDArray[Any]) -> tuple[int, int] | None:
    """Return (odd factor, power of two) of the greatest number that divides all values.

    None if that is too small for the largest of them, or they are not finite.
    """
    if not np.isfinite(values).all():
        return None
    mantissas, exponents = np.frexp(values[values != 0].astype(np.float64))
    if mantissas.size == 0:
        return 1, 0
    whole = np.abs(mantissas * 2**24).astype(np.int64)
    zeros = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    lowest = int((exponents - 24 + zeros).min())
    if int(exponents.max()) - lowest > math.log2(_MAX_MULTIPLE):
        return None
    shifts = exponents - 24 - lowest
    odd = int(np.gcd.reduce(np.where(shifts < 0, whole >> -shifts, whole << np.maximum(shifts, 0))))
    return odd, lowest


def _qp_of(odd: int, power: int, density: int) -> int | None:
    """Return the qp whose step is odd * 2**power, or if no step is, that of 2**power."""
    fraction, base = 1 << density, odd
    octave = base.bit_length() - 1
    if octave > density:
        base, octave = 1, 0
    scaled = base << (density - octave)  # of 2**density up to below twice that
    return ((power + octave) << density) + scaled - fraction


def scale_of(values: npt.NDArray[Any]) -> float | None:
    """Return a number of which all values are integer multiples, rounded to their type.

    The caller compares them nevertheless. None if there is no such number; a sample shows
    that of ordinary values.
    """
    magnitudes = _magnitudes(sampled(values, _SAMPLE))
    if magnitudes is None:
        return None
    rough = _approximate_divisor(magnitudes, float(half_ulps(magnitudes, values.dtype)[-1]))
    if rough is None:
        return None
    magnitudes = _magnitudes(values)
    if magnitudes is None or magnitudes.size > _MAX_MULTIPLE:
        return None
    return _refined(magnitudes, half_ulps(magnitudes, values.dtype), rough)


def _magnitudes(values: npt.NDArray[Any]) -> npt.NDArray[np.float64] | None:
    """Return the distinct magnitudes but 0 in ascending order; None without any, or infinite."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        distinct: npt.NDArray[np.float64] = np.unique(np.abs(values.astype(np.float64)))
    distinct = distinct[distinct != 0]
    return distinct if distinct.size and np.isfinite(distinct).all() else None


def half_ulps(magnitudes: Float64, dtype: np.dtype[Any]) -> Float64:
    """Return half of what the last bit of values of a type is worth."""
    exponents = np.frexp(magnitudes)[1]
    halves: Float64 = np.ldexp(1.0, exponents - 2 - mantissa_bits(dtype))
    return halves


def _approximate_divisor(magnitudes: npt.NDArray[np.float64], error: float) -> float | None:
    """Euclid's algorithm on all values at once, which are uncertain by `error`."""
    largest = float(magnitudes[-1])
    divisor = float(magnitudes[0])
    for _ in range(_MAX_ROUNDS):
        if divisor * _MAX_MULTIPLE < largest or divisor < 4 * error:
            return None
        multiples = np.rint(magnitudes / divisor)
        rest = np.abs(magnitudes - multiples * divisor)
        # The divisor's own uncertainty grows with the multiple.
        left = rest[rest > error * (2 + multiples)]
        if left.size == 0:
            return divisor
        divisor = float(left.min())
    return None


def _refined(
    magnitudes: npt.NDArray[np.float64], half_ulp: npt.NDArray[np.float64], scale: float
) -> float | None:
    """Return the shortest number near `scale` whose multiples round to the magnitudes."""
    # The scale of the smaller magnitudes is exact enough to count the multiples of the larger.
    for end in np.unique(np.geomspace(1, magnitudes.size, 24).astype(np.int64)):
        multiple = np.rint(magnitudes[end - 1] / scale)
        if multiple < 1:  # a sample without the smallest ones gave too large a scale
            return None
        scale = float(magnitudes[end - 1] / multiple)
    multiples = np.rint(magnitudes / scale)
    if float(multiples[0]) < 1 or float(multiples[-1]) > _MAX_MULTIPLE:
        return None
    low = float(((magnitudes - half_ulp) / multiples).max())
    high = float(((magnitudes + half_ulp) / multiples).min())
    if low > high:
        return None
    middle = (low + high) / 2
    for digits in range(1, 18):
        rounded = float(f"{middle:.{digits - 1}e}")
        if low <= rounded <= high:
            return rounded
    return middle

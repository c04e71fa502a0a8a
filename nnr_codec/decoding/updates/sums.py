"""The sum of a tensor of the base and the coded tensor of an update: the one place that adds them.

spec/model_map.md, "Updates of a base", has the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...factorization.map_checks import MapError
from ...factorization.words import words_of
from ...model import Array, is_signed_float

Shape = tuple[int, ...]


def check_sum(
    shape: Shape, dtype: np.dtype[Any], coded_shape: Shape, coded_dtype: np.dtype[Any], xor: bool
) -> None:
    """Check by shapes and types that a coded tensor can be added to one of the base.

    Args:
        shape, dtype: of the base's tensor.
        coded_shape, coded_dtype: of the update's.
        xor: whether it says which bits change.

    Raises:
        MapError: it cannot.
    """
    if coded_shape != (shape or (1,)):  # a scalar is coded as a vector of one element
        raise MapError(f"of the shape {coded_shape} is added to one of {shape}")
    is_float = coded_dtype == np.float32
    if not is_float and coded_dtype != np.int32:
        raise MapError(f"is a difference in {coded_dtype}, which is neither float32 nor int32")
    if is_float and (xor or not is_signed_float(dtype)):
        raise MapError(f"is a difference in float32 to a tensor of {dtype}, or to its bits")


def summed(base: Array, coded: Array, xor: bool = False) -> Array:
    """Return the tensor that an update makes of a base's, in the base's shape and element type.

    Args:
        base: the base's tensor.
        coded: of as many elements: float32, and the base's type is a floating-point one; or int32.
        xor: whether integers say which bits change; else they are added to the bits as to a number.
    """
    flat = np.ascontiguousarray(base).reshape(-1)
    difference = coded.reshape(-1)
    if coded.dtype == np.float32:
        return _float_sum(flat, difference).reshape(base.shape)
    words = words_of(flat)
    # Integers of 32 bits say the low bits of narrower words, and with their sign those of wider.
    moved = difference.astype(np.int64).view(np.uint64).astype(words.dtype)
    made = words ^ moved if xor else words + moved  # modulo 2**n
    if base.dtype == np.bool_:
        made &= np.uint8(1)
    values: Array = made.view(base.dtype).reshape(base.shape)
    return values


def _float_sum(base: Array, difference: npt.NDArray[np.float32]) -> Array:
    """Add in binary32, or for float64 in binary64, and round to the base's type."""
    wide = np.float64 if base.dtype == np.float64 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large is infinite
        total: Array = base.astype(wide)
        total += difference
        return total.astype(base.dtype, copy=False)

"""Integers that, times a scale, are values: one scale for a tensor, or one for each group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import Float64, dtype_of, is_float
from .map_checks import MapError, shortened
from .meanings import Integers, Meaning

LEAST_SCALE, GREATEST_SCALE = 2.0**-126, 2.0**128  # of normal binary32 numbers
_SCALE_TYPES = ("float16", "float32")
_AT_ONCE = 1 << 16
"""Values that are multiplied in one go: their products take 8 bytes each."""


@dataclass(frozen=True, slots=True)
class Grid(Meaning):
    """The integers times `scale` are the values; `negative_zero` is the integer that stands for
    -0, if one does."""

    scale: float
    negative_zero: int | None = None

    kind = "grid"

    def check(self, dtype: np.dtype[Any]) -> None:
        _check_type("scale", dtype)
        is_scale = LEAST_SCALE <= self.scale < GREATEST_SCALE
        # Whole numbers just below the greatest are rounded to it.
        if not is_scale or float(self.scale) >= GREATEST_SCALE:
            what = "a positive, normal binary32 number's size"
            raise MapError(f"{shortened(self.scale)} is no scale: {what}")
        _check_negative_zero(self.negative_zero)

    def values(
        self, integers: Integers, part: Integers | None, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        values = scaled(integers, self.scale, dtype, self.negative_zero)
        if not np.isfinite(values).all():
            raise MapError(f"a multiple of the scale {self.scale:g} is beyond {dtype}")
        return values


@dataclass(frozen=True, slots=True)
class GroupedGrid(Meaning):
    """The integers times the scale of their group are the values.

    The part `scales` has the bits of the scales, of the type `scale_dtype`. A run of elements
    shares a scale: element i has that of the index (i // run) modulo the number of scales.
    """

    scales: str
    run: int
    scale_dtype: str | None = None
    negative_zero: int | None = None

    kind = "groups"
    part_key = "scales"

    def check(self, dtype: np.dtype[Any]) -> None:
        _check_type("scales", dtype)
        if self.run < 1:
            raise MapError(f"run: {shortened(self.run)} is no number of elements")
        if self.scale_dtype not in (None, *_SCALE_TYPES):
            raise MapError(f"scale_dtype: {shortened(self.scale_dtype)} is no type of scales")
        _check_negative_zero(self.negative_zero)

    def values(
        self, integers: Integers, part: Integers | None, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        if part is None:
            raise MapError("its part does not come before it")
        scales = self._scales(part)
        if integers.size % (self.run * scales.size):
            sizes = f"{scales.size} scales of runs of {self.run}"
            raise MapError(f"{sizes} do not fit {integers.size} elements")
        values = np.empty(integers.size, dtype)
        for some, of_groups in _pieces(integers.size, self.run, scales):
            piece = integers.reshape(-1)[some]
            values[some] = scaled(piece, of_groups, dtype, self.negative_zero)
        if not np.isfinite(values).all():
            raise MapError(f"a multiple of a scale is beyond {dtype}")
        return values

    def _scales(self, part: Integers) -> Float64:
        if part.ndim != 1:
            raise MapError(f"scales of shape {part.shape}")
        kind = dtype_of(self.scale_dtype or "float32")
        words = part.view(np.uint32).copy()
        words[1:] += words[0]  # modulo 2**32
        with np.errstate(invalid="ignore"):  # signalling NaNs
            scales = words.astype(f"u{kind.itemsize}").view(kind).astype(np.float64)
        if not ((scales >= LEAST_SCALE) & (scales < GREATEST_SCALE)).all():
            raise MapError("a scale that is no positive, normal binary32 number")
        return scales


def scaled(
    integers: Integers,
    scale: float | Float64,
    dtype: np.dtype[Any],
    negative_zero: int | None = None,
) -> npt.NDArray[Any]:
    """Multiply in binary64, round to binary32 (but for float64), then to `dtype`.

    What is beyond the type is not finite. The integer `negative_zero` gives -0 instead.
    """
    with np.errstate(all="ignore"):
        product = integers.astype(np.float64) * scale
        values = product if dtype == np.float64 else product.astype(np.float32).astype(dtype)
    if negative_zero is not None:
        values[integers == negative_zero] = -0.0
    return values


def _pieces(size: int, run: int, scales: Float64) -> Iterator[tuple[slice, Float64]]:
    """Yield pieces of a flat tensor, and the scale of each of their elements."""
    for start in range(0, size, _AT_ONCE):
        some = slice(start, min(start + _AT_ONCE, size))
        yield some, scales[np.arange(some.start, some.stop) // run % scales.size]


def _check_negative_zero(value: int | None) -> None:
    if value is not None and not -(2**31) <= value < 2**31:
        raise MapError(f"negative_zero: {shortened(value)} is no integer of 32 bits")


def _check_type(key: str, dtype: np.dtype[Any]) -> None:
    if not is_float(dtype):
        raise MapError(f"{key} does not go with {dtype}")

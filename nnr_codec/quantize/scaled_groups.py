"""Tensors that were quantized already, with a scale for each channel or group of elements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import common_divisors
from ..bitstream.unit_layout import Integers
from ..factorization.grid_meanings import GREATEST_SCALE, LEAST_SCALE
from ..factorization.words import mantissa_bits
from ..model import Float64
from .grids import half_ulps

_GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Elements of a row that usually share a scale."""

_LEAST_ELEMENTS = 8
"""Of a group: fewer might be multiples of one number by chance."""

_MAX_MULTIPLE = 2**12
"""Groups with larger integers are none: a scale would hardly save anything."""

_GLANCE = 16  # elements of one group
_SAMPLE_GROUPS = 6
_SAMPLE_OF_GROUP = 256  # elements
_SCALE_TYPES = (np.float16, np.float32)  # in the order in which they are tried


@dataclass(frozen=True, slots=True)
class Groups:
    """Which elements share a scale: element i has that of the index (i // run) % count.

    Attributes:
        run: elements in a row, flat, that share a scale.
        count: number of scales.
    """

    run: int
    count: int

    def in_rows(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values with those of one scale in a row, in the order of scales."""
        parts = values.reshape(-1, self.count, self.run)
        return parts.transpose(1, 0, 2).reshape(self.count, -1)

    def sample(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return some of what `in_rows` gives, and of each row as many as tell of its scale."""
        parts = values.reshape(-1, self.count, self.run)
        count = min(self.count, _SAMPLE_GROUPS)
        some = np.arange(count) * self.count // count
        long_enough = -(-_SAMPLE_OF_GROUP // self.run)
        rows = parts[:long_enough, some, :_SAMPLE_OF_GROUP].transpose(1, 0, 2)
        return rows.reshape(count, -1)

    def flat(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what `in_rows` made rows of, flat."""
        parts = rows.reshape(self.count, -1, self.run)
        return parts.transpose(1, 0, 2).reshape(-1)


@dataclass(frozen=True, slots=True)
class ScaledGroups:
    """Integers and scales whose products are the values of a tensor, once rounded.

    Attributes:
        groups: which elements share a scale.
        levels: the integers, flat.
        scales: binary16 or binary32, one for each group.
    """

    groups: Groups
    levels: Integers
    scales: npt.NDArray[np.floating[Any]]


def scaled_groups(values: npt.NDArray[Any]) -> Iterator[ScaledGroups]:
    """Yield the ways to write values as integers times scales of channels or groups.

    A sample tells of ordinary values that there are none. The caller compares the products, which
    are near the values, with them.

    Args:
        values: of a floating-point type, in their shape.
    """
    for groups in _candidates(values.shape):
        if _scales(groups.sample(values)) is None:
            continue
        found = _scales(groups.in_rows(values))
        if found is not None:
            scales, levels = found
            yield ScaledGroups(groups, groups.flat(levels), scales)


def may_have_scales(values: npt.NDArray[Any]) -> bool:
    """Tell in little time whether a group or a channel may be integers times a scale."""
    if values.ndim < 2:
        return False
    for axis in range(values.ndim):  # a channel of each; that of the first begins with a group
        part = values[(slice(None),) * axis + (0,)].flat[:_GLANCE]
        if part.size >= _LEAST_ELEMENTS and _scales(part[None]) is not None:
            return True
    return False


def _candidates(shape: tuple[int, ...]) -> Iterator[Groups]:
    """Yield the groups that tensors of a shape usually have: channels, and parts of rows."""
    size = math.prod(shape)
    for axis, count in enumerate(shape):
        if 1 < count <= size // _LEAST_ELEMENTS:
            yield Groups(math.prod(shape[axis + 1 :]), count)
    for run in _GROUP_SIZES:
        if shape and shape[-1] % run == 0 and shape[-1] > run:
            yield Groups(run, size // run)


def _scales(
    rows: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.int32]] | None:
    """Return the scales of rows and their integers; None if a row has no scale."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        wide: Float64 = np.ascontiguousarray(rows, np.float64)
    rough = common_divisors(wide, mantissa_bits(rows.dtype), _MAX_MULTIPLE)
    if not rough.all():
        return None
    has_values = np.isfinite(rough)
    if not has_values.any():
        return None
    rough[~has_values] = rough[has_values][0]
    magnitudes = np.abs(wide)
    half_ulp = half_ulps(magnitudes, rows.dtype)
    multiples = np.rint(magnitudes / rough[:, None])
    if multiples.max() > _MAX_MULTIPLE:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(multiples > 0, (magnitudes - half_ulp) / multiples, 0).max(axis=1)
        high = np.where(multiples > 0, (magnitudes + half_ulp) / multiples, np.inf).min(axis=1)
    middle = np.where(np.isfinite(high), (low + high) / 2, rough)
    for kind in _SCALE_TYPES:
        with np.errstate(over="ignore"):
            scales: npt.NDArray[np.floating[Any]] = middle.astype(kind)
        wide_scales = scales.astype(np.float64)
        is_normal = (wide_scales >= LEAST_SCALE) & (wide_scales < GREATEST_SCALE)
        if is_normal.all() and ((wide_scales >= low) & (wide_scales <= high)).all():
            levels = np.copysign(multiples, wide).astype(np.int32)
            return scales, levels
    return None

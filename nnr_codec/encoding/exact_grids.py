"""Values on grids: candidates for coding a tensor exactly, and the integers of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bitstream.unit_layout import Integers
from ..factorization.grid_meanings import (
    GREATEST_SCALE,
    LEAST_SCALE,
    Grid,
    GroupedGrid,
    scaled,
)
from ..factorization.words import words_of
from ..model import Float64
from ..quantize.codebook import codebook_of
from ..quantize.grids import exact_step, scale_of
from ..quantize.integer_rate import estimated_bits
from ..quantize.scaled_groups import ScaledGroups, scaled_groups
from .representation import BITS_OF_PART, UNNAMED, Representation, of_meaning

_BITS_OF_CODEBOOK_VALUE = 8  # about: the gaps between values are small


def on_step(values: npt.NDArray[Any], density: int, codebook: bool) -> Iterator[Representation]:
    """Yield the representation by a step of the standard, with a codebook or without."""
    found = exact_step(values, density)
    if found is None:
        return
    qp, levels = found
    bits, length = estimated_bits(levels)
    indexed = codebook_of(levels) if codebook else None
    if indexed is not None:
        book, indices = indexed
        index_bits, index_length = estimated_bits(indices)
        index_bits += _BITS_OF_CODEBOOK_VALUE * len(book.values)
        bits, length = min((bits, length), (index_bits, index_length))
    yield Representation("step", bits, unary_length=length, qp=qp)


def on_grid(values: npt.NDArray[Any]) -> Iterator[Representation]:
    """Yield the representation by integers and one scale."""
    scale = scale_of(values)
    if scale is None or not LEAST_SCALE <= scale < GREATEST_SCALE:
        return
    levels = _on_grid(values.reshape(-1), scale)
    meaning = Grid(scale, _negative_zero(values, levels))
    integers = _with_negative_zeros(levels, values.reshape(-1), meaning.negative_zero)
    if _are_products(values, integers, scale, meaning.negative_zero):
        yield of_meaning(meaning, values, *estimated_bits(integers))


def grid_integers(meaning: Grid, values: npt.NDArray[Any]) -> Integers:
    """Return the integers of values on a grid, flat."""
    flat = values.reshape(-1)
    return _with_negative_zeros(_on_grid(flat, meaning.scale), flat, meaning.negative_zero)


def _on_grid(flat: npt.NDArray[Any], scale: float) -> Integers:
    return np.rint(flat.astype(np.float64) / scale).astype(np.int32)


def in_groups(values: npt.NDArray[Any]) -> Iterator[Representation]:
    """Yield the representations by integers and scales of channels or groups."""
    for found in scaled_groups(values):
        levels, scales = found.levels, found.scales
        negative_zero = _negative_zero(values, levels)
        integers = _with_negative_zeros(levels, values.reshape(-1), negative_zero)
        wide: Float64 = scales.astype(np.float64)
        of_elements = np.broadcast_to(wide[:, None], (wide.size, values.size // wide.size))
        if _are_products(values, integers, found.groups.flat(of_elements), negative_zero):
            yield _of_groups(values, found, integers, negative_zero)


def _of_groups(
    values: npt.NDArray[Any], found: ScaledGroups, integers: Integers, negative_zero: int | None
) -> Representation:
    kind = found.scales.dtype.name
    meaning = GroupedGrid(
        UNNAMED, found.groups.run, kind if kind != "float32" else None, negative_zero
    )
    bits, length = estimated_bits(integers)
    more, part_length = estimated_bits(_scale_integers(found.scales))
    bits += more + BITS_OF_PART
    # How many scales there are stands with the part.
    return of_meaning(meaning, values, bits, length, part_length)


def group_integers(
    meaning: GroupedGrid, values: npt.NDArray[Any]
) -> tuple[Integers, Integers] | None:
    """Return the integers of values, and those of their scales; None if they have no scales."""
    flat = values.reshape(-1)
    for found in scaled_groups(values):
        kind = found.scales.dtype.name
        if (found.groups.run, kind) == (meaning.run, meaning.scale_dtype or "float32"):
            levels = _with_negative_zeros(found.levels, flat, meaning.negative_zero)
            return levels, _scale_integers(found.scales)
    return None


def _scale_integers(scales: npt.NDArray[Any]) -> Integers:
    """Return the bits of the first scale, and the differences to it of those of the others."""
    words = words_of(scales).astype(np.uint32)
    words[1:] -= words[0]  # modulo 2**32
    return words.view(np.int32)


def _are_products(
    values: npt.NDArray[Any],
    integers: Integers,
    scale: float | Float64,
    negative_zero: int | None,
) -> bool:
    """Whether decoders get just these values from integers and scales."""
    products = scaled(integers, scale, values.dtype, negative_zero)
    return np.array_equal(words_of(products), words_of(values.reshape(-1)))


def _negative_zero(values: npt.NDArray[Any], levels: Integers) -> int | None:
    """Return an unused integer for -0, if that occurs."""
    flat = values.reshape(-1)
    has_any = bool((np.signbit(flat) & (flat == 0)).any())
    return int(levels.max()) + 1 if has_any else None


def _with_negative_zeros(
    levels: Integers, flat: npt.NDArray[Any], negative_zero: int | None
) -> Integers:
    if negative_zero is None:
        return levels
    return np.where(np.signbit(flat) & (flat == 0), np.int32(negative_zero), levels)

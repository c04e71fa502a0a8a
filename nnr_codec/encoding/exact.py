"""Exact representations: what a tensor is coded as so that every bit of it comes back.

The model map stands before the data units, and says what integers mean. So the representations
are chosen by estimates, one tensor at a time (`represent`), and coded later (`integers_of`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bitstream.unit_layout import Integers
from ..errors import InvalidModel
from ..factorization.grid_meanings import Grid, GroupedGrid
from ..factorization.word_meanings import Bits, Fields, Halves, Mantissas, Table
from ..factorization.words import is_rotated, signed_from_words, words_of
from ..model import is_float
from ..quantize.grids import as_binary32
from ..quantize.integer_rate import estimated_bits, sampled
from ..quantize.scaled_groups import may_have_scales
from .exact_grids import grid_integers, group_integers, in_groups, on_grid, on_step
from .exact_words import (
    fields_of,
    halves_of,
    mantissas_of,
    table_of,
    words_of_floats,
    words_of_integers,
)
from .representation import Representation

_GLANCE = 256  # values
_MOST_DISTINCT = 0.9  # of them
_SURELY_FEW = 32  # of them
_BITS_OF_TABLE_VALUE = 20  # about
_CLEARLY = 0.87
_LOW_BITS = np.uint32(2**12 - 1)
"""Of binary32, which are zeros in values of 16 bits."""

_STEM = 1000
"""Characters of a tensor's name that its part's begins with: names have at most 4096 bytes."""


def represent(
    values: npt.NDArray[Any], density: int, codebook: bool = True
) -> Representation | None:
    """Return what is expected to be the smallest exact representation of a tensor.

    Args:
        values: of any type that can be coded, not empty.
        density: qp_density.
        codebook: whether the integers of a step may be coded by a codebook.

    Returns:
        None for integers that INT holds as they are.
    """
    if is_float(values.dtype):
        return min(_of_floats(values, density, codebook), key=_expected_bits)
    candidates = (
        [] if values.dtype == bool else list(words_of_integers(values.reshape(-1), values.shape))
    )
    if _fits_int(values):
        sample = sampled(values)
        as_they_are = estimated_bits(sample.astype(np.int64))[0] * values.size / sample.size
        candidates = [c for c in candidates if c.kind == "fields" and c.bits < as_they_are]
    return min(candidates, key=_expected_bits, default=None)


def seems_quantized(values: npt.NDArray[Any], step: float) -> bool:
    """Tell in little time whether floats may be few distinct values, or integers times scales, and
    exact coding smaller than that of integers.

    Args:
        values: of a floating-point type.
        step: of the integers.
    """
    return _may_be_smaller_in_table(sampled(values, _GLANCE), step, values.size) or may_have_scales(
        values
    )


def _may_be_smaller_in_table(sample: npt.NDArray[Any], step: float, size: int) -> bool:
    """Tell of a sample of `size` values whether a table of them may be smaller than integers."""
    if sample.size < _GLANCE:
        return False
    ordered = np.sort(words_of(sample))
    if np.count_nonzero(ordered[1:] != ordered[:-1]) >= _MOST_DISTINCT * _GLANCE - 1:
        return False
    counts = np.unique_counts(ordered).counts
    if counts.size <= _SURELY_FEW:
        return True
    # Per value; what a sample this small tells of the entropy is too little (Miller and Madow).
    indices = -float((counts * np.log2(counts / _GLANCE)).sum()) + 0.72 * counts.size
    table = _BITS_OF_TABLE_VALUE * counts.size * _GLANCE / size
    with np.errstate(all="ignore"):
        integers = np.rint(sample.astype(np.float64) / step)
    if not np.abs(integers).max() < 2**31:
        return True
    return indices + table < _CLEARLY * estimated_bits(integers, (1, 11))[0]


def holds_short_values(values: npt.NDArray[Any]) -> bool:
    """Tell in little time whether floats have so few digits that a shorter type may hold them."""
    sample = as_binary32(sampled(values, _GLANCE))
    return sample is not None and not (words_of(sample) & _LOW_BITS).any()


def _of_floats(values: npt.NDArray[Any], density: int, codebook: bool) -> Iterator[Representation]:
    flat = values.reshape(-1)
    if as_binary32(flat) is not None:
        yield Representation("raw", 32.0 * values.size)
    yield from words_of_floats(flat)
    yield from on_step(flat, density, codebook)
    yield from on_grid(flat)
    yield from in_groups(values)


def _expected_bits(candidate: Representation) -> float:
    return candidate.bits


def _fits_int(values: npt.NDArray[Any]) -> bool:
    return int(values.min()) >= -(2**31) and int(values.max()) < 2**31


def integers_of(
    representation: Representation, name: str, values: npt.NDArray[Any]
) -> tuple[Integers, Integers | None]:
    """Return a tensor's integers, and those of its second tensor, flat.

    Args:
        representation: one with a meaning in the map.
        name: of the tensor, for messages.
        values: of the tensor.

    Raises:
        InvalidModel: the values are others than when the representation was found.
    """
    meaning, flat = representation.entry.meaning, values.reshape(-1)
    both: tuple[Integers, Integers | None] | None = None
    if isinstance(meaning, Grid):
        both = grid_integers(meaning, flat), None
    elif isinstance(meaning, GroupedGrid):
        both = group_integers(meaning, values)
    elif isinstance(meaning, Table):
        both = table_of(flat)
    elif isinstance(meaning, Bits):
        words = words_of(flat)
        both = signed_from_words(words, meaning.bits, is_rotated(values.dtype)), None
    elif isinstance(meaning, Halves):
        both = halves_of(meaning, flat)
    elif isinstance(meaning, Mantissas):
        both = mantissas_of(meaning, flat)
    elif isinstance(meaning, Fields):
        both = fields_of(meaning, flat), None
    if both is None:
        raise InvalidModel(name, "was changed while it was encoded")
    return both


def name_parts(
    representations: Mapping[str, Representation], names: Iterable[str]
) -> dict[str, Representation]:
    """Give the second tensors names that none of the model's `names` has."""
    used = set(names)
    named = {}
    for name, representation in representations.items():
        suffix = representation.part_suffix
        if suffix is not None:
            stem = name[:_STEM] + suffix
            part, number = stem, 1
            while part in used:
                part, number = f"{stem}{number}", number + 1
            used.add(part)
            representation = representation.with_part(part)
        named[name] = representation
    return named

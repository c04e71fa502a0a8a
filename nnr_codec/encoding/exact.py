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
        as_they_are = estimated_bits(sampled(values).astype(np.int64))[0]
        as_they_are *= values.size / sampled(values).size
        candidates = [c for c in candidates if c.kind == "fields" and c.bits < as_they_are]
    return min(candidates, key=_expected_bits, default=None)


def seems_quantized(values: npt.NDArray[Any]) -> bool:
    """Tell in little time whether floats may be few distinct values, or integers times scales."""
    sample = words_of(sampled(values, _GLANCE))
    few = sample.size == _GLANCE and np.unique(sample).size < _MOST_DISTINCT * _GLANCE
    return few or may_have_scales(values)


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

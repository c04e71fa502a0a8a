"""Values as words of bits: candidates for coding a tensor exactly, and the integers of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bitstream.unit_layout import Integers
from ..factorization.word_meanings import MAX_TABLE, Bits, Fields, Halves, Mantissas, Table
from ..factorization.words import (
    is_rotated,
    mantissa_bits,
    rotated_left,
    signed_from_words,
    words_of,
)
from ..model import is_signed_float
from ..quantize.integer_rate import estimated_bits, sampled
from .representation import BITS_OF_PART, UNNAMED, Representation, of_meaning

_TABLE_SAMPLE = 4096
_MOST_DISTINCT = 0.7  # of a sample, beyond which a table would not pay
_BIAS_QUANTILES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
_BIAS_SAMPLE = 2**12
_FIELD_BITS = (4, 2)
_FIELD_SAMPLE = 2**14


def words_of_floats(values: npt.NDArray[Any]) -> Iterator[Representation]:
    """Yield the representations of floats, flat, that are made of their bits."""
    yield _in_words(values)
    if values.dtype.itemsize < 8:
        yield from _in_table(values)
        if is_signed_float(values.dtype):
            yield _with_mantissas(values)


def words_of_integers(values: npt.NDArray[Any], shape: tuple[int, ...]) -> Iterator[Representation]:
    """Yield the representations of integers, flat, that are made of their bits."""
    if values.dtype.itemsize == 8:
        yield of_meaning(Halves(UNNAMED), values, 64.0 * values.size + BITS_OF_PART, 1, 1)
        return
    bias = int(np.median(sampled(values).astype(np.int64)))
    bias &= (1 << 8 * values.itemsize) - 1
    words = sampled(words_of(values))
    bits, length = estimated_bits(signed_from_words(words, bias, rotated=False))
    yield of_meaning(Bits(bias), values, bits * values.size / words.size, length)
    yield from _in_fields(values, shape)


def _in_words(values: npt.NDArray[Any]) -> Representation:
    """Price the values as words, the halves of 64-bit ones apart."""
    words, is_wide = words_of(values), values.dtype.itemsize == 8
    high = (words >> 32).astype(np.uint32) if is_wide else words
    bits, bias, length = _best_bias(high, is_rotated(values.dtype))
    if not is_wide:
        return of_meaning(Bits(bias), values, bits, length)
    low = sampled(words).astype(np.uint32).view(np.int32)
    bits += estimated_bits(low, (1,))[0] * words.size / low.size + BITS_OF_PART
    return of_meaning(Halves(UNNAMED, bias), values, bits, length, 1)


def _best_bias(words: npt.NDArray[Any], rotated: bool) -> tuple[float, int, int]:
    """Return (bits, bias, unary length) of the bias around which words take the fewest bits."""
    sample = sampled(words, _BIAS_SAMPLE)
    centers: npt.NDArray[Any] = rotated_left(sample) if rotated else sample
    centers = centers[centers > 1] if np.any(centers > 1) else centers  # not the zeros
    lengths = (1, 11, 48) if words.itemsize == 1 else (1,)
    costs = []
    for quantile in _BIAS_QUANTILES:
        bias = int(np.quantile(centers, quantile, method="nearest")) & ~int(rotated)
        bits, length = estimated_bits(signed_from_words(sample, bias, rotated), lengths)
        costs.append((bits * words.size / sample.size, bias, length))
    return min(costs)


def _in_table(values: npt.NDArray[Any]) -> Iterator[Representation]:
    sample = sampled(words_of(values), _TABLE_SAMPLE)
    if sample.size > 16 and np.unique(sample).size > _MOST_DISTINCT * sample.size:
        return
    # Those of up to 16 bits fit the table; the others, which take time, are counted.
    some = sampled(values) if values.itemsize <= 2 else values
    indices, differences = table_of(some)
    if differences.size > MAX_TABLE:
        return
    bits, length = estimated_bits(indices)
    bits *= values.size / some.size
    bits += estimated_bits(differences, (1,))[0] + BITS_OF_PART
    yield of_meaning(Table(UNNAMED), values, bits, length, 1)


def table_of(values: npt.NDArray[Any]) -> tuple[Integers, Integers]:
    """Return the indices into a table of the distinct values, and the table's differences.

    The values are sorted by size, and the most frequent one is index 0; those below it have
    negative indices, which count from the table's end.
    """
    words = words_of(values)
    distinct = np.unique(words)
    inverse = np.searchsorted(distinct, words)  # quicker than np.unique's, which sorts indices
    counts = np.bincount(inverse)
    sign = distinct >> (8 * words.itemsize - 1)
    magnitudes = distinct.astype(np.int64) & ((1 << (8 * words.itemsize - 1)) - 1)
    order = np.argsort(np.where(sign == 1, ~magnitudes, magnitudes))
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    center = int(rank[counts.argmax()])
    table = np.roll(distinct[order], -center).astype(np.uint32)
    differences = np.diff(table, prepend=np.uint32(0)).view(np.int32)
    return (rank[inverse] - center).astype(np.int32), differences


def halves_of(meaning: Halves, values: npt.NDArray[Any]) -> tuple[Integers, Integers]:
    """Return the integers of the high halves of 64-bit values, and those of the low halves."""
    words = words_of(values)
    high, low = (words >> 32).astype(np.uint32), words.astype(np.uint32)
    if meaning.bits is None:
        return high.view(np.int32), low.view(np.int32)
    signed = signed_from_words(high, meaning.bits, is_rotated(values.dtype))
    return signed, low.view(np.int32)


def _with_mantissas(values: npt.NDArray[Any]) -> Representation:
    sample = sampled(values)
    exponents = _exponents(sample)
    # Zeros, if there are many, are a peak apart from the others.
    counted = exponents[exponents > 0] if np.any(exponents > 0) else exponents
    meaning = Mantissas(UNNAMED, int(np.bincount(counted).argmax()))
    integers, signed = mantissas_of(meaning, sample)
    (bits, length), (more, part_length) = estimated_bits(integers), estimated_bits(signed)
    bits = (bits + more) * values.size / sample.size + BITS_OF_PART
    return of_meaning(meaning, values, bits, length, part_length)


def _exponents(values: npt.NDArray[Any]) -> Integers:
    bits, width = mantissa_bits(values.dtype), 8 * values.dtype.itemsize - 1
    words = words_of(values).astype(np.uint32)
    exponents = (words >> np.uint32(bits)) & np.uint32((1 << (width - bits)) - 1)
    return exponents.view(np.int32)


def mantissas_of(meaning: Mantissas, values: npt.NDArray[Any]) -> tuple[Integers, Integers]:
    """Return the exponents less their bias, and the mantissas, inverted where values are
    negative."""
    words = words_of(values).astype(np.uint32)
    mantissas = (words & np.uint32((1 << mantissa_bits(values.dtype)) - 1)).view(np.int32)
    is_negative = words >> np.uint32(8 * values.dtype.itemsize - 1) == 1
    signed = np.where(is_negative, ~mantissas, mantissas)
    return _exponents(values) - np.int32(meaning.bits), signed


def _in_fields(values: npt.NDArray[Any], shape: tuple[int, ...]) -> Iterator[Representation]:
    """Price integers as fields, which weights of few bits are packed in."""
    sample = sampled(values, _FIELD_SAMPLE)
    for bits in _FIELD_BITS:
        meaning = Fields(bits)
        cost, length = estimated_bits(fields_of(meaning, sample))
        found = of_meaning(meaning, values, cost * values.size / sample.size, length)
        yield replace(found, entry=replace(found.entry, shape=shape))


def fields_of(meaning: Fields, values: npt.NDArray[Any]) -> Integers:
    """Return the fields of integers, less half of their range."""
    words = words_of(values).astype(np.uint32)
    shifts = np.arange(meaning.integers_in(values.dtype), dtype=np.uint32) * meaning.fields
    mask = np.uint32((1 << meaning.fields) - 1)
    fields = ((words[:, None] >> shifts) & mask).astype(np.int32)
    return fields.reshape(-1) - (1 << (meaning.fields - 1))

"""Exact representations: what a tensor is coded as so that every bit of it comes back.

The model map stands before the data units, and says what integers mean. So the representations
are chosen by estimates in the survey, one tensor at a time (`represent`), and coded later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..bitstream.unit_layout import Integers
from ..factorization.tensor_rules import MAX_TABLE, TensorRule, scaled
from ..factorization.words import is_rotated, rotated_left, signed_from_words, words_of
from ..model import is_float
from ..quantize.codebook import codebook_of
from ..quantize.grids import as_binary32, exact_step, scale_of
from ..quantize.integer_rate import estimated_bits, sampled

Kind = Literal["raw", "step", "grid", "table", "bits", "halves"]

_TABLE_SAMPLE = 4096
_MOST_DISTINCT = 0.7  # of a sample, beyond which a table would not pay
_BIAS_QUANTILES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
_BIAS_SAMPLE = 2**12
_BITS_OF_ENTRY = 8 * 50  # in the model map: name, dtype, key
_BITS_OF_PART = 8 * 60  # the second unit's header, and its name in the map
_BITS_OF_CODEBOOK_VALUE = 8  # about: the gaps between values are small
_PART_FIELDS = {"table": "table", "halves": "low"}
"""By the kind of what has a second tensor: where the map names that, and what its name ends in."""

_STEM = 1000
"""Characters of a tensor's name that its part's begins with: names have at most 4096 bytes."""


@dataclass(frozen=True, slots=True)
class Representation:
    """How one tensor is coded exactly.

    Attributes:
        kind: "raw" binary32 as it is; "step" integers times the step of `qp`; or integers whose
            meaning the map has: "grid", "table", "bits", "halves".
        entry: what the map says; `name_parts` adds the name of a second tensor.
        unary_length: greater-than flags that suit the integers.
        qp: quantization parameter, of "step" alone.
    """

    kind: Kind
    entry: TensorRule = field(default_factory=TensorRule)
    unary_length: int = 11
    qp: int | None = None

    def integers(self, values: npt.NDArray[Any]) -> tuple[Integers, Integers | None]:
        """Return the tensor's integers, and those of its second tensor, flat."""
        flat = values.reshape(-1)
        if self.kind == "grid":
            return _integers_on_grid(flat, float(self.entry.scale or 0)), None
        if self.kind == "table":
            return _table(flat)
        words = words_of(flat)
        if self.kind == "bits":
            return signed_from_words(
                words, int(self.entry.bits or 0), is_rotated(values.dtype)
            ), None
        high, low = (words >> 32).astype(np.uint32), words.astype(np.uint32)
        if self.entry.bits is None:
            return high.view(np.int32), low.view(np.int32)
        return signed_from_words(high, self.entry.bits, rotated=True), low.view(np.int32)


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
    if not is_float(values.dtype):
        return _of_integers(values)
    flat = values.reshape(-1)
    candidates = [
        _in_words(flat),
        _raw(flat),
        _step(flat, density, codebook),
        _on_grid(flat),
        _in_table(flat),
    ]
    return min((c for c in candidates if c is not None), key=lambda candidate: candidate[0])[1]


def _of_integers(values: npt.NDArray[Any]) -> Representation | None:
    low, high = int(values.min()), int(values.max())
    if low >= -(2**31) and high < 2**31:
        return None
    name = values.dtype.name
    if values.dtype.itemsize == 8:
        return Representation("halves", TensorRule(name), unary_length=1)
    bias = int(np.median(sampled(values).astype(np.int64)))
    length = estimated_bits(signed_from_words(values.reshape(-1), bias, rotated=False))[1]
    return Representation("bits", TensorRule(name, bits=bias), length)


def _raw(values: npt.NDArray[Any]) -> tuple[float, Representation] | None:
    narrow = as_binary32(values)
    return None if narrow is None else (32.0 * values.size, Representation("raw"))


def _step(
    values: npt.NDArray[Any], density: int, codebook: bool
) -> tuple[float, Representation] | None:
    on_step = exact_step(values, density)
    if on_step is None:
        return None
    qp, levels = on_step
    bits, length = estimated_bits(levels)
    indexed = codebook_of(levels) if codebook else None
    if indexed is not None:
        book, indices = indexed
        index_bits, index_length = estimated_bits(indices)
        index_bits += _BITS_OF_CODEBOOK_VALUE * len(book.values)
        bits, length = min((bits, length), (index_bits, index_length))
    return bits, Representation("step", TensorRule(), length, qp)


def _on_grid(values: npt.NDArray[Any]) -> tuple[float, Representation] | None:
    scale = scale_of(values)
    if scale is None or not 2.0**-126 <= scale < 2.0**128:
        return None
    integers = _integers_on_grid(values, scale)
    exact = scaled(integers, scale, values.dtype)
    if not np.array_equal(words_of(exact), words_of(values)):
        return None
    bits, length = estimated_bits(integers)
    entry = TensorRule(values.dtype.name, scale=scale)
    return bits + _BITS_OF_ENTRY, Representation("grid", entry, length)


def _integers_on_grid(values: npt.NDArray[Any], scale: float) -> Integers:
    return np.rint(values.astype(np.float64) / scale).astype(np.int32)


def _in_table(values: npt.NDArray[Any]) -> tuple[float, Representation] | None:
    if values.dtype.itemsize == 8:
        return None
    sample = sampled(words_of(values), _TABLE_SAMPLE)
    if sample.size > 16 and np.unique(sample).size > _MOST_DISTINCT * sample.size:
        return None
    indices, differences = _table(values)
    if differences.size > MAX_TABLE:
        return None
    bits, length = estimated_bits(indices)
    bits += estimated_bits(differences, (1,))[0] + _BITS_OF_ENTRY + _BITS_OF_PART
    return bits, Representation("table", TensorRule(values.dtype.name), length)


def _table(values: npt.NDArray[Any]) -> tuple[Integers, Integers]:
    """Return the indices into a table of the distinct values, and the table's differences.

    The values are sorted by size, and the most frequent one is index 0; those below it have
    negative indices, which count from the table's end.
    """
    words = words_of(values)
    distinct, inverse, counts = np.unique(words, return_inverse=True, return_counts=True)
    sign = distinct >> (8 * words.itemsize - 1)
    magnitudes = distinct.astype(np.int64) & ((1 << (8 * words.itemsize - 1)) - 1)
    order = np.argsort(np.where(sign == 1, ~magnitudes, magnitudes))
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    center = int(rank[counts.argmax()])
    table = np.roll(distinct[order], -center).astype(np.uint32)
    differences = np.diff(table, prepend=np.uint32(0)).view(np.int32)
    return (rank[inverse.reshape(-1)] - center).astype(np.int32), differences


def _in_words(values: npt.NDArray[Any]) -> tuple[float, Representation]:
    """Price the values as words, the halves of 64-bit ones apart."""
    words, is_wide = words_of(values), values.dtype.itemsize == 8
    high = (words >> 32).astype(np.uint32) if is_wide else words
    bits, bias, length = _best_bias(high, is_rotated(values.dtype))
    entry = TensorRule(values.dtype.name, bits=bias)
    if not is_wide:
        return bits + _BITS_OF_ENTRY, Representation("bits", entry, length)
    bits += estimated_bits(words.astype(np.uint32).view(np.int32), (1,))[0]
    return bits + _BITS_OF_ENTRY + _BITS_OF_PART, Representation("halves", entry, length)


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


def name_parts(
    representations: Mapping[str, Representation], names: Iterable[str]
) -> dict[str, Representation]:
    """Give the second tensors names that none of the model's `names` has."""
    used = set(names)
    named = {}
    for name, representation in representations.items():
        field_of_part = _PART_FIELDS.get(representation.kind)
        if field_of_part is not None:
            stem = f"{name[:_STEM]}.{field_of_part}"
            part, number = stem, 1
            while part in used:
                part, number = f"{stem}{number}", number + 1
            used.add(part)
            change: dict[str, Any] = {field_of_part: part}
            entry = replace(representation.entry, **change)
            representation = replace(representation, entry=entry)
        named[name] = representation
    return named

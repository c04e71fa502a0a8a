"""Codebooks: tensors of few distinct integers, coded as indices (spec/bitstream.md, "Codebook")."""

from __future__ import annotations

import numpy as np

from ..bitstream import Codebook
from ..bitstream.unit_layout import Integers

_MAX_RANGE = 1 << 20
"""Integers further apart are not counted."""

_MAX_SIZE = 1024
"""Entries beyond which no codebook is tried: its own code would outweigh what it saves."""


def promises_codebook(integers: Integers) -> bool:
    """Whether a codebook may pay: few integers occur, and most of those between them do not.

    Takes little time beside coding, unlike the codebook itself.
    """
    low, high = min(int(integers.min()), 0), max(int(integers.max()), 0)
    if high - low >= _MAX_RANGE:
        return False
    distinct = int(np.count_nonzero(np.bincount(integers - low)))
    return distinct <= _MAX_SIZE and 2 * distinct < high - low + 1 and 8 * distinct < integers.size


def codebook_of(integers: Integers) -> tuple[Codebook, Integers] | None:
    """Return a codebook of all values in `integers`, and the indices relative to its zero offset.

    Index 0, the cheapest, stands for the most frequent value. None if the values are too many.
    """
    values, inverse, counts = np.unique(integers, return_inverse=True, return_counts=True)
    if values.size > _MAX_SIZE:
        return None
    zero_offset = int(counts.argmax())
    gaps = np.diff(values.astype(np.int64)) - 1
    codebook = Codebook(_shortest_code_order(gaps), zero_offset, [int(value) for value in values])
    return codebook, (inverse.reshape(-1) - zero_offset).astype(np.int32)


def _shortest_code_order(gaps: np.ndarray) -> int:
    """Return the order k, 0 to 15, whose codes ue(k) of the gaps are the shortest."""
    bits = [
        sum(2 * int((gap + (1 << k)).bit_length()) - 1 - k for gap in map(int, gaps))
        for k in range(16)
    ]
    return bits.index(min(bits))

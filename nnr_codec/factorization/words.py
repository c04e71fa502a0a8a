"""Values as words of bits, and words as small signed integers.

spec/model_map.md, "What integers mean", has the definition.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import is_signed_float

Words = npt.NDArray[Any]
"""Unsigned integers of 8, 16, 32 or 64 bits."""


def words_of(values: npt.NDArray[Any]) -> Words:
    """Return the bits of values as unsigned integers of their size."""
    return values.view(f"u{values.dtype.itemsize}")


def is_rotated(dtype: np.dtype[Any]) -> bool:
    """Whether words of this type have a sign bit on top of a magnitude, and are rotated."""
    return is_signed_float(dtype)


@cache  # numpy makes a type's name anew each time
def mantissa_bits(dtype: np.dtype[Any]) -> int:
    """Return the bits that a floating-point type stores of a mantissa: not the hidden one."""
    known = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
    return known.get(dtype.name, 3 if "e4m3" in dtype.name else 2)


def rotated_left(words: Words) -> Words:
    """Move the top bit of words of up to 32 bits to the bottom: magnitude first, then the sign."""
    return (words << 1) | (words >> (8 * words.itemsize - 1))


def signed_from_words(words: Words, bias: int, rotated: bool) -> npt.NDArray[np.int32]:
    """Turn words of up to 32 bits into integers of as many bits, small for words near `bias`.

    Args:
        words: uint8, uint16 or uint32.
        bias: what is subtracted, after the rotation.
        rotated: rotate first, and exchange the word 0 and the bias.
    """
    if rotated:
        words = _exchanged(rotated_left(words), bias)
    folded = words - words.dtype.type(bias)  # modulo 2**bits
    integers: npt.NDArray[np.int32] = folded.view(f"i{words.itemsize}").astype(np.int32)
    return integers


def words_from_signed(
    integers: npt.NDArray[np.int32], bias: int, rotated: bool, itemsize: int
) -> Words:
    """Return the words of `itemsize` bytes that `signed_from_words` made integers of.

    Raises:
        ValueError: an integer has more bits than the words.
    """
    info = np.iinfo(f"i{itemsize}")
    if int(integers.min()) < info.min or int(integers.max()) > info.max:
        raise ValueError(f"an integer beyond {8 * itemsize} bits")
    words: Words = integers.astype(info.dtype).view(f"u{itemsize}")
    words = words + words.dtype.type(bias)
    if rotated:
        words = _exchanged(words, bias)
        words = (words >> 1) | (words << (8 * itemsize - 1))
    return words


def _exchanged(words: Words, bias: int) -> Words:
    """Exchange the words 0 and `bias`: zeros are frequent, so theirs becomes the integer 0."""
    zero, center = words.dtype.type(0), words.dtype.type(bias)
    return np.where(words == zero, center, np.where(words == center, zero, words))

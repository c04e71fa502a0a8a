"""Integers that stand for the bits of values: words, tables of words, halves, mantissas, fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import is_signed_float
from .map_checks import MapError
from .meanings import Integers, Meaning, check_bias
from .words import is_rotated, mantissa_bits, words_from_signed

MAX_TABLE = 2**16
"""Entries of a table of values."""

_FIELD_BITS = (2, 4)


@dataclass(frozen=True, slots=True)
class Bits(Meaning):
    """The integers are the values' bits, around the bias `bits`."""

    bits: int

    kind = "bits"

    def check(self, dtype: np.dtype[Any]) -> None:
        if dtype.itemsize == 8:
            raise MapError(f"bits does not go with {dtype}")
        check_bias(self.bits, 8 * dtype.itemsize)

    def values(
        self, integers: Integers, part: Integers | None, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        return _words(integers, self.bits, dtype, dtype.itemsize).view(dtype)


@dataclass(frozen=True, slots=True)
class Halves(Meaning):
    """The integers are the high halves of the values' bits, around a bias if there is one; the
    part `low` has the low halves."""

    low: str
    bits: int | None = None

    kind = "halves"
    part_key = "low"

    def check(self, dtype: np.dtype[Any]) -> None:
        if dtype.itemsize != 8:
            raise MapError(f"low does not go with {dtype}")
        if self.bits is not None:
            check_bias(self.bits, 32)

    def values(
        self, integers: Integers, part: Integers | None, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        low = _same_shape(integers, part)
        if self.bits is None:
            high = integers.view(np.uint32).astype(np.uint64)
        else:
            high = _words(integers, self.bits, dtype, 4).astype(np.uint64)
        high <<= np.uint64(32)  # in place: such tensors are large
        high |= low.view(np.uint32)
        return high.view(dtype)


@dataclass(frozen=True, slots=True)
class Table(Meaning):
    """The integers are indices into a table of values, the part `table`."""

    table: str

    kind = "table"
    part_key = "table"

    def check(self, dtype: np.dtype[Any]) -> None:
        if dtype.itemsize == 8:
            raise MapError(f"table does not go with {dtype}")

    def values(
        self, integers: Integers, part: Integers | None, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        differences = _present(part)
        size = differences.size
        if differences.ndim != 1 or size > MAX_TABLE:
            raise MapError(f"a table of shape {differences.shape}; at most {MAX_TABLE} entries")
        if int(integers.min()) < -size or int(integers.max()) >= size:
            raise MapError("an index outside the table")
        words = np.cumsum(differences.view(np.uint32), dtype=np.uint32)  # modulo 2**32
        table = words.astype(f"u{dtype.itemsize}").view(dtype)
        found: npt.NDArray[Any] = table[integers]
        return found


@dataclass(frozen=True, slots=True)
class Mantissas(Meaning):
    """The integers are the values' exponents, around the bias `bits`; the part `mantissas` has the
    mantissas of positive values, and those of negative ones with all bits inverted."""

    mantissas: str
    bits: int

    kind = "mantissas"
    part_key = "mantissas"

    def check(self, dtype: np.dtype[Any]) -> None:
        if not is_signed_float(dtype) or dtype.itemsize == 8:
            raise MapError(f"mantissas does not go with {dtype}")
        check_bias(self.bits, 8 * dtype.itemsize - 1 - mantissa_bits(dtype))

    def values(
        self, integers: Integers, part: Integers | None, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        signed = _same_shape(integers, part)
        bits, width = mantissa_bits(dtype), 8 * dtype.itemsize - 1
        low, high = int(signed.min()), int(signed.max())
        if low < -(1 << bits) or high >= 1 << bits:
            raise MapError(f"a mantissa of more than {bits} bits")
        low, high = int(integers.min()) + self.bits, int(integers.max()) + self.bits
        if low < 0 or high >= 1 << (width - bits):
            raise MapError(f"an exponent of more than {width - bits} bits")
        sign = signed < 0
        words = (integers + np.int32(self.bits)).view(np.uint32) << np.uint32(bits)
        words |= np.where(sign, ~signed, signed).view(np.uint32)
        words |= sign.astype(np.uint32) << np.uint32(width)
        return words.astype(f"u{dtype.itemsize}", copy=False).view(dtype)


@dataclass(frozen=True, slots=True)
class Fields(Meaning):
    """Each value is made of fields of so many bits, the least significant first: the integers are
    these, less half of their range."""

    fields: int

    kind = "fields"

    def check(self, dtype: np.dtype[Any]) -> None:
        if dtype.kind not in "iu" or dtype.itemsize == 8 or self.fields not in _FIELD_BITS:
            raise MapError(f"fields of {self.fields} bits do not go with {dtype}")

    def integers_in(self, dtype: np.dtype[Any]) -> int:
        """Return how many fields a value has."""
        return 8 * dtype.itemsize // self.fields

    def values(
        self, integers: Integers, part: Integers | None, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        half = 1 << (self.fields - 1)
        if int(integers.min()) < -half or int(integers.max()) >= half:
            raise MapError(f"an integer beyond a field of {self.fields} bits")
        rows = integers.reshape(-1, self.integers_in(dtype))
        words = np.zeros(len(rows), np.uint32)
        for index in range(rows.shape[1]):
            field = (rows[:, index] + half).astype(np.uint32)
            words |= field << np.uint32(self.fields * index)
        return words.astype(f"u{dtype.itemsize}", copy=False).view(dtype)


def _words(integers: Integers, bias: int, dtype: np.dtype[Any], itemsize: int) -> npt.NDArray[Any]:
    try:
        return words_from_signed(integers, bias, is_rotated(dtype), itemsize)
    except ValueError as error:
        raise MapError(str(error)) from None


def _present(part: Integers | None) -> Integers:
    if part is None:
        raise MapError("its part does not come before it")
    return part


def _same_shape(integers: Integers, part: Integers | None) -> Integers:
    second = _present(part)
    if second.shape != integers.shape:
        raise MapError(f"parts of the shapes {integers.shape} and {second.shape}")
    return second

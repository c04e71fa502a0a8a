"""Bits of one unit: a bounded reader and a writer for the descriptors of the format.

The descriptors are those of spec/bitstream.md, "Notation": ``u(n)``, ``i(n)``, ``ue(k)``,
``ie(k)``, ``flt(32)``, ``st(v)`` and ``align``. Bits are written most significant first.
"""

from __future__ import annotations

import struct

from bitstring import Bits

from ..errors import InvalidBitstream, InvalidModel, LimitExceeded, TruncatedBitstream
from .lazy_bytes import Data, LazyBytes

MAX_CODE_BITS = 31
"""ue(k) has at most MAX_CODE_BITS - k leading zeros, so that the value fits 32 bits."""

_WINDOW_BYTES = 64


class BitReader:
    """A cursor over the bytes of one unit, which never reads past their end.

    Every failure is an :class:`InvalidBitstream` (:class:`TruncatedBitstream` where the bytes
    end too early) with the unit's label and the byte offset in the whole bitstream.

    A window of the bytes is held as one number, from which fields are taken by shifts: a header
    of 25 fields is read several times faster than field by field with a library, and there is a
    header for each tensor.

    Args:
        data: the bytes of the unit, from its size field on.
        label: what to call the unit in errors, such as ``"unit 3 (NNR_NDU)"``.
        byte_offset: bytes from the start of the bitstream to ``data``.
        start: bytes of ``data`` to skip.
    """

    __slots__ = ("_data", "_end", "_left", "_window", "byte_offset", "label")

    def __init__(
        self,
        data: bytes | Data,
        label: str = "bitstream",
        byte_offset: int = 0,
        start: int = 0,
    ) -> None:
        self._data = data if isinstance(data, LazyBytes) else memoryview(data)
        self.label = label
        self.byte_offset = byte_offset
        self._move_window(8 * min(start, len(self._data)))

    def _move_window(self, position: int, bits: int = 0) -> None:
        """Put the cursor at a bit, with ``bits`` bits at least behind it in the window."""
        first_byte = position >> 3
        chunk = self._data[first_byte : first_byte + max(_WINDOW_BYTES, (bits >> 3) + 2)]
        self._window = int.from_bytes(chunk, "big")
        self._end = 8 * (first_byte + len(chunk))  # the window's end, in bits of the data
        self._left = self._end - position  # bits of the window behind the cursor

    @property
    def position(self) -> int:
        """Bits from the start of the data to the cursor."""
        return self._end - self._left

    @property
    def bits_left(self) -> int:
        """Bits from the cursor to the end of the data."""
        return 8 * len(self._data) - self.position

    @property
    def bytes_read(self) -> int:
        """Bytes from the start of the data to the cursor, a begun byte included."""
        return (self.position + 7) // 8

    def invalid(self, reason: str) -> InvalidBitstream:
        """The error to raise for a fault just before the cursor."""
        return InvalidBitstream(self.label, self.byte_offset + self.position // 8, reason)

    def truncated(self, reason: str) -> TruncatedBitstream:
        """The error to raise where the data ends before what it announces."""
        return TruncatedBitstream(self.label, self.byte_offset + self.position // 8, reason)

    def _ensure(self, bits: int) -> None:
        """Make the next ``bits`` bits lie inside the window."""
        if bits <= self._left:
            return
        if bits > self.bits_left:
            raise self.truncated(f"{bits} bits needed, {self.bits_left} left in the unit")
        self._move_window(self.position, bits)

    def u(self, bits: int) -> int:
        """Read an unsigned number of ``bits`` bits."""
        if bits > self._left:
            self._ensure(bits)
        self._left -= bits
        return (self._window >> self._left) & ((1 << bits) - 1)

    def i(self, bits: int) -> int:
        """Read a two's complement number of 1 to 64 bits."""
        value = self.u(bits)
        return value - ((value >> (bits - 1)) << bits)

    def ue(self, order: int) -> int:
        """Read an Exp-Golomb number of growing order, 0 to 2**32 - 1.

        Raises:
            InvalidBitstream: more than 31 - order leading zeros.
        """
        look = min(32, self.bits_left)
        self._ensure(look)
        word = (self._window >> (self._left - look)) & ((1 << look) - 1)
        zeros = look - word.bit_length()
        if zeros > MAX_CODE_BITS - order:
            raise self.invalid(f"ue({order}) code with more than {MAX_CODE_BITS - order} zeros")
        if zeros == look:
            raise self.truncated(f"the unit ends inside a ue({order}) code")
        # The leading zeros, read as part of the number, do not change it. Each of them stands
        # for a subtraction, in all ((2**zeros - 1) << order); the bit 1 counts 2**(zeros+order).
        return self.u(2 * zeros + 1 + order) - (1 << order)

    def ie(self, order: int) -> int:
        """Read a signed Exp-Golomb number: the even codes are x ≤ 0, the odd ones x > 0."""
        code = self.ue(order)
        return (code + 1) >> 1 if code & 1 else -(code >> 1)

    def flt(self, bits: int = 32) -> float:
        """Read an IEEE-754 binary32 of four little-endian bytes, not necessarily aligned."""
        value: float = struct.unpack("<f", self.u(bits).to_bytes(4, "big"))[0]
        return value

    def octets(self, bits: int) -> bytes:
        """Read ``bits`` / 8 bytes, not necessarily aligned, 64 at most."""
        return self.u(bits).to_bytes(bits // 8, "big")

    def raw(self, count: int) -> bytes:
        """Read ``count`` bytes from a byte boundary."""
        start = self._aligned_position()
        if count > len(self._data) - start:
            raise self.truncated(f"{count} bytes needed, {len(self._data) - start} left")
        self._move_window(8 * (start + count))
        return bytes(self._data[start : start + count])

    def st(self, max_bytes: int, limit: str = "max_name_bytes") -> str:
        """Read a zero-terminated UTF-8 string from a byte boundary.

        Args:
            max_bytes: bytes that the string may have, without the zero.
            limit: name of that limit, for the error.

        Raises:
            TruncatedBitstream: no zero byte before the unit's end.
            InvalidBitstream: not UTF-8.
            LimitExceeded: longer than ``max_bytes``.
        """
        start = self._aligned_position()
        text = bytes(self._data[start : start + max_bytes + 1])
        length = text.find(0)
        if length < 0:
            if start + len(text) == len(self._data):
                raise self.truncated("no zero byte at a string's end")
            raise LimitExceeded(limit, len(text), max_bytes)
        try:
            value = text[:length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.invalid(f"a string is not UTF-8: {error.reason}") from None
        if 8 * (length + 1) <= self._left:
            self._left -= 8 * (length + 1)
        else:
            self._move_window(8 * (start + length + 1))
        return value

    def align(self) -> None:
        """Read a bit 1 and the zeros up to the next byte boundary, 0x80 if at one already."""
        bits = 8 - (self.position & 7)
        if self.u(bits) != 1 << (bits - 1):
            raise self.invalid("the alignment bits are not a 1 followed by zeros")

    def _aligned_position(self) -> int:
        byte, bit = divmod(self.position, 8)
        if bit:
            raise self.invalid("bytes expected at a byte boundary")
        return byte


class BitWriter:
    """Collects bits; the mirror image of :class:`BitReader`.

    A value that its descriptor cannot hold is a ``ValueError``: an error of the calling code.
    """

    __slots__ = ("_data", "_number", "position")

    def __init__(self) -> None:
        self._data = bytearray()
        self._number = 1  # the bits behind those, below a leading 1
        self.position = 0

    def u(self, bits: int, value: int) -> None:
        """Write an unsigned number of ``bits`` bits, at most 512."""
        if value < 0 or value >> bits:
            raise ValueError(f"{value} is not an unsigned number of {bits} bits")
        self._number = self._number << bits | value
        self.position += bits

    def i(self, bits: int, value: int) -> None:
        """Write a two's complement number of ``bits`` bits."""
        if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
            raise ValueError(f"{value} is not a signed number of {bits} bits")
        self.u(bits, value & ((1 << bits) - 1))

    def ue(self, order: int, value: int) -> None:
        """Write an Exp-Golomb number of growing order."""
        code = value + (1 << order)
        zeros = code.bit_length() - 1 - order
        if value < 0 or zeros > MAX_CODE_BITS - order:
            raise ValueError(f"{value} has no ue({order}) code")
        self.u(2 * zeros + 1 + order, code)

    def ie(self, order: int, value: int) -> None:
        """Write a signed Exp-Golomb number."""
        self.ue(order, 2 * value - 1 if value > 0 else -2 * value)

    def flt(self, bits: int, value: float) -> None:
        """Write an IEEE-754 binary32 as four little-endian bytes."""
        try:
            self.u(bits, int.from_bytes(struct.pack("<f", value), "big"))
        except OverflowError:
            raise ValueError(f"{value} is not a binary32 number") from None

    def octets(self, bits: int, data: bytes) -> None:
        """Write ``bits`` / 8 bytes, not necessarily aligned."""
        if 8 * len(data) != bits:
            raise ValueError(f"{bits // 8} bytes expected, not {len(data)}")
        self.u(bits, int.from_bytes(data, "big"))

    def raw(self, data: bytes) -> None:
        """Write bytes at a byte boundary."""
        if self.position & 7:
            raise ValueError("bytes are written at a byte boundary")
        self._data += self._unwritten() + data
        self._number = 1
        self.position += 8 * len(data)

    def st(self, text: str) -> None:
        """Write a zero-terminated UTF-8 string at a byte boundary.

        Raises:
            InvalidModel: the text holds a zero character or a lone surrogate.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidModel(text, "the name is not valid Unicode") from None
        if 0 in data:
            raise InvalidModel(text, "a name must not hold a zero character")
        self.raw(data + b"\0")

    def align(self) -> None:
        """Write a bit 1 and zeros up to the next byte boundary."""
        bits = 8 - (self.position & 7)
        self.u(bits, 1 << (bits - 1))

    def to_bytes(self) -> bytes:
        """What was written; the last byte filled with zeros if it is not complete."""
        return bytes(self._data + self._unwritten())

    def _unwritten(self) -> bytes:
        """The bits behind the bytes, filled up with zeros."""
        bits = self._number.bit_length() - 1
        number = self._number - (1 << bits)
        return Bits.from_dtype(f"u{bits}", number).to_bytes() if bits else b""

"""The descriptors of spec/bitstream.md, section 1, in both directions.

A structure of the syntax is declared once (`syntax.py`), as a function of a coder and a record:
`SyntaxWriter` takes the elements' values from the record, `SyntaxReader` puts them there. Both
return them, so that conditions can be stated. Neither judges values: streams that break the rules
are written with the same functions as valid ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]


class EndOfUnit(ValueError):
    """A stream cannot be read any further: an element reaches past the end of its unit."""


class SyntaxWriter:
    """Writes elements; one that the record lacks has the value `default`.

    Attributes:
        bits: what was written, as characters "0" and "1".
    """

    writing = True

    def __init__(self) -> None:
        self.bits = ""

    def u(self, record: Record, name: str, bits: int, default: int = 0) -> int:
        """An unsigned number of `bits` bits."""
        value = int(record.get(name, default))
        if bits:
            self.bits += f"{value & ((1 << bits) - 1):0{bits}b}"
        return value

    i = u  # two's complement, to which `u` cuts negative numbers

    def ue(self, record: Record, name: str, k: int, default: int = 0) -> int:
        """An Exp-Golomb code of growing order, from `k` on."""
        value = int(record.get(name, default))
        self._exp_golomb(value, k)
        return value

    def ie(self, record: Record, name: str, k: int) -> int:
        """A signed number."""
        value = int(record.get(name, 0))
        self._exp_golomb(-2 * value if value <= 0 else 2 * value - 1, k)
        return value

    def _exp_golomb(self, rest: int, k: int) -> None:
        while rest >= 1 << k:
            rest -= 1 << k
            k += 1
            self.bits += "0"
        self.bits += "1" + (f"{rest:0{k}b}" if k else "")

    def flt(self, record: Record, name: str) -> None:
        """A binary32 number."""
        self.raw(struct.pack("<f", record.get(name, 0.0)))

    def st(self, record: Record, name: str) -> str:
        """A text; a record may hold bytes instead, with their zero byte or without."""
        text = record.get(name, "")
        self.raw(text if isinstance(text, bytes) else text.encode() + b"\0")
        return str(text)

    def data(self, record: Record, name: str) -> None:
        """Any bytes, to the end of the unit."""
        self.raw(record.get(name, b""))

    def align(self, record: Record, name: str = "align") -> None:
        """A bit 1, then bits 0 to the next byte boundary; the record may hold other bits."""
        room = 8 - len(self.bits) % 8
        self.bits += f"{record.get(name, 1 << (room - 1)):0{room}b}"

    def listed(self, record: Record, name: str, count: int) -> Iterator[Record]:
        """The records of the list `name`, to be coded: all that are there, or `count` new ones."""
        return iter(record.setdefault(name, []))

    def raw(self, data: bytes) -> None:
        """Bytes as they are, at any position."""
        self.bits += "".join(f"{byte:08b}" for byte in data)

    def bytes(self) -> bytes:
        """What was written; the position is a byte boundary."""
        if not self.bits:
            return b""
        return int(self.bits, 2).to_bytes(len(self.bits) // 8, "big")


class SyntaxReader:
    """Reads elements, as `SyntaxWriter` writes them, into the record.

    It tells `seen` the name and the value of each.
    """

    writing = False

    def __init__(self, data: bytes, first: int, end: int, seen: Callable[[str, Any], None]) -> None:
        self.source, self.position, self.end, self._seen = data, 8 * first, 8 * end, seen

    def _bits(self, bits: int) -> int:
        if self.position + bits > self.end:
            raise EndOfUnit("a syntax element reaches past the end of its unit")
        first, last = self.position >> 3, (self.position + bits + 7) >> 3
        self.position += bits
        word = int.from_bytes(self.source[first:last], "big")
        return (word >> (8 * last - self.position)) & ((1 << bits) - 1)

    def _store(self, record: Record, name: str, value: Any) -> Any:
        record[name] = value
        self._seen(name, value)
        return value

    def u(self, record: Record, name: str, bits: int, default: int = 0) -> int:
        return int(self._store(record, name, self._bits(bits)))

    def i(self, record: Record, name: str, bits: int) -> int:
        value = self._bits(bits)
        return int(self._store(record, name, value - ((value >> (bits - 1)) << bits)))

    def ue(self, record: Record, name: str, k: int, default: int = 0) -> int:
        return int(self._store(record, name, self._exp_golomb(k)))

    def ie(self, record: Record, name: str, k: int) -> int:
        x = self._exp_golomb(k)
        return int(self._store(record, name, (x + 1) >> 1 if x & 1 else -(x >> 1)))

    def _exp_golomb(self, k: int) -> int:
        x = 0
        while not self._bits(1):
            x += 1 << k
            k += 1
        return x + self._bits(k)

    def flt(self, record: Record, name: str) -> None:
        self._store(record, name, struct.unpack("<f", self._bits(32).to_bytes(4, "big"))[0])

    def st(self, record: Record, name: str) -> str:
        first = self.position >> 3
        stop = self.source.find(b"\0", first, self.end >> 3)
        if stop < 0:
            raise EndOfUnit("a string is not ended inside its unit")
        self.position = 8 * (stop + 1)
        return str(self._store(record, name, self.source[first:stop].decode("utf-8", "replace")))

    def data(self, record: Record, name: str) -> None:
        self._store(record, name, self.source[self.position >> 3 : self.end >> 3])
        self.position = self.end

    def align(self, record: Record, name: str = "align") -> None:
        self._store(record, name, self._bits(8 - self.position % 8))

    def listed(self, record: Record, name: str, count: int) -> Iterator[Record]:
        record[name] = []
        for _ in range(count):
            record[name].append({})
            yield record[name][-1]


Coder = SyntaxWriter | SyntaxReader

"""The table of contents of a stream: sizes, digests and tensors of the units behind the model map.

A reader that has it fetches of a remote stream what it needs, and knows that each unit is the one
that was written. spec/model_map.md, "The table of contents", has the bytes of its text.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .map_checks import MapError
from .tensor_order import NameRole

DIGEST_BYTES = 16
"""Of a SHA-256, from its start on: nobody finds another unit with them."""

MAX_NAME_BYTES = 1 << 23
"""Of all names together, with what separates them."""

_MOST_NAMES = 9
"""Of one unit: G, H, their product, and six vectors."""

_COUNT = struct.Struct(">I")
_UNIT = struct.Struct(f">I{DIGEST_BYTES}s")
_LETTERS = {
    **{"weight": "w", "local_scaling": "l", "beta": "e", "gamma": "g", "mean": "m", "var": "v"},
    **{"bias": "b", "G": "G", "H": "H", "dense": "d"},
}
_ROLES = {letter: role for role, letter in _LETTERS.items()}


def short_digest(*parts: bytes | memoryview) -> bytes:
    """Return the first 16 bytes of the SHA-256 of `parts`, one after the other."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.digest()[:DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class IndexedUnit:
    """One unit behind the topology unit.

    Attributes:
        size: its bytes.
        digest: :func:`short_digest` of them.
        tensors: names and roles of what it decodes to; none if it is no data unit.
    """

    size: int
    digest: bytes
    tensors: tuple[NameRole, ...] = ()


@dataclass(frozen=True, slots=True)
class UnitIndex:
    """The table of contents of one stream.

    Attributes:
        head_digest: :func:`short_digest` of the stream up to the end of the topology unit, without
            the text of the table itself.
        units: those behind the topology unit, in order.
        text: the text that it was read from; empty if it was not. Others can say the same, as there
            are many ways to deflate.
    """

    head_digest: bytes
    units: tuple[IndexedUnit, ...]
    text: str = field(default="", compare=False, repr=False)

    def to_text(self) -> str:
        """Return the text that stands in the model map.

        Raises:
            MapError: the names are too long together.
        """
        data = self.head_digest + _COUNT.pack(len(self.units))
        data += b"".join(_UNIT.pack(unit.size, unit.digest) for unit in self.units)
        names = "".join(_names_text(unit.tensors) for unit in self.units).encode()
        if len(names) > MAX_NAME_BYTES:
            raise MapError(f"names of more than {MAX_NAME_BYTES} bytes")
        return base64.b64encode(data + zlib.compress(names, 9)).decode()


def parse_unit_index(text: str) -> UnitIndex:
    """Parse the text of a table.

    Raises:
        MapError: it is damaged.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise MapError("index is no base64 text") from None
    if base64.b64encode(data).decode() != text:  # bits that count for nothing
        raise MapError("index is no base64 text")
    start = DIGEST_BYTES + _COUNT.size
    if len(data) < start:
        raise MapError("index ends before the number of its units")
    (count,) = _COUNT.unpack_from(data, DIGEST_BYTES)
    end = start + count * _UNIT.size
    if len(data) < end:
        raise MapError(f"index of {count} units ends before the last one")
    tensors = _parsed_names(data[end:], count)
    entries = zip(_UNIT.iter_unpack(data[start:end]), tensors, strict=True)
    units = tuple(IndexedUnit(size, digest, names) for (size, digest), names in entries)
    return UnitIndex(data[:DIGEST_BYTES], units, text)


def _names_text(tensors: Iterable[NameRole]) -> str:
    return "".join(f"{_LETTERS[role]}{name}\0" for name, role in tensors) + "\0"


def _parsed_names(data: bytes, count: int) -> list[tuple[NameRole, ...]]:
    """Return the tensors of `count` units."""
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_NAME_BYTES + 1)
        if len(text) > MAX_NAME_BYTES or not inflater.eof or inflater.unused_data:
            raise MapError("index has too many names, or not all of them")
        entries = text.decode().split("\0", count * (_MOST_NAMES + 1))
    except (zlib.error, UnicodeDecodeError):
        raise MapError("index has damaged names") from None
    units: list[list[NameRole]] = [[]]
    for entry in entries[:-1]:
        if entry:
            role = _ROLES.get(entry[0])
            if role is None:
                raise MapError("index has a tensor of an unknown role")
            units[-1].append(NameRole(entry[1:], role))
        else:
            units.append([])
    _check_ends(units, entries[-1], count)
    return list(map(tuple, units[:-1]))


def _check_ends(units: Sequence[list[NameRole]], rest: str, count: int) -> None:
    """Check that there are names for each of `count` units, and nothing behind them."""
    if rest or units[-1] or len(units) - 1 != count:
        raise MapError(f"index of {count} units has the names of others")

"""Comparing the units of a bitstream with the table of contents in its model map."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from ..errors import InvalidBitstream, TruncatedBitstream
from ..factorization.unit_index import DIGEST_BYTES, IndexedUnit, UnitIndex
from .lazy_bytes import loaded
from .parsed_unit import ParsedUnit, tensors_of
from .records import DataUnit
from .units import Unit

_BEHIND_INDEX = b'"}\0'
"""What a topology unit has behind the table's text: the ends of it, of the map, of the string."""


class IndexCheck:
    """Compares the units of one bitstream with its table of contents, if it has one.

    Attributes:
        index: the table; None before the map, and of a stream without.
    """

    def __init__(self) -> None:
        self.index: UnitIndex | None = None
        self._head = hashlib.sha256()
        self._first = 0  # unit that the table tells of

    def begin(self, index: UnitIndex, unit: Unit) -> None:
        """Check the head of the bitstream, which ends with `unit`, that of the topology.

        Raises:
            InvalidBitstream: the head, or the table itself, is not what was written.
        """
        data, text = bytes(loaded(unit.data)), index.text.encode()
        end = len(data) - len(_BEHIND_INDEX)
        start = end - len(text)
        if not data.endswith(text + _BEHIND_INDEX):
            raise _invalid(unit, "model map: index is not the last of its keys")
        self._head.update(data[:start])
        self._head.update(data[end:])
        if self._head.digest()[:DIGEST_BYTES] != index.head_digest:
            raise _invalid(unit, "the bitstream up to here has another digest than in index")
        self.index = index
        self._first = unit.index + 1

    def entry_at(self, index: int) -> IndexedUnit | None:
        """Return what the table says of a unit; None without a table, and behind its last unit."""
        position = index - self._first
        is_there = self.index is not None and 0 <= position < len(self.index.units)
        return self.index.units[position] if self.index is not None and is_there else None

    def check_size(self, unit: Unit) -> None:
        """Compare the size of a unit, of which the common header is enough.

        Raises:
            InvalidBitstream: the table has another one, or no such unit.
        """
        if self.index is None:
            return
        entry = self.entry_at(unit.index)
        if entry is None:
            raise _invalid(unit, f"index has {len(self.index.units)} units: not this one")
        if unit.header.nnr_unit_size != entry.size:
            reason = f"nnr_unit_size = {unit.header.nnr_unit_size}: {entry.size} in index"
            raise _invalid(unit, reason)

    def checked(self, parsed: ParsedUnit) -> ParsedUnit:
        """Return a unit that was compared with the table, but a data unit's digest: that is
        compared when the unit is decoded.

        Raises:
            InvalidBitstream: the table says otherwise.
        """
        entry = self.entry_at(parsed.unit.index)
        if entry is None:
            if self.index is None and not isinstance(parsed.record, DataUnit):
                self._head.update(loaded(parsed.unit.data))
            return parsed
        tensors = tensors_of(parsed)
        if tuple(tensors) != entry.tensors:
            raise _invalid(parsed.unit, "has other tensors than index says")
        parsed = replace(parsed, digest=entry.digest)
        return parsed if tensors else parsed.checked()

    def finish(self, unit_count: int) -> None:
        """Check at the bitstream's end that all units of the table were there.

        Raises:
            TruncatedBitstream: they were not.
        """
        missing = self._first + len(self.index.units) - unit_count if self.index else 0
        if missing:
            reason = f"{missing} units of index are missing at the end"
            raise TruncatedBitstream("bitstream", 0, reason)


def _invalid(unit: Unit, reason: str) -> InvalidBitstream:
    return InvalidBitstream(unit.label, unit.byte_offset, reason)

"""Parsing of whole bitstreams, or of those units of one that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..factorization.tensor_order import NameRole
from ..factorization.unit_index import IndexedUnit
from ..options import DecodeLimits
from .lazy_bytes import RangeSource
from .parsed_unit import ParsedUnit, PassedUnit
from .stream_parser import StreamParser
from .units import UnitCutter


def parse_units(source: Any, limits: DecodeLimits | None = None) -> Iterator[ParsedUnit]:
    """Parse a whole bitstream, unit by unit: :class:`UnitCutter` and :class:`StreamParser`; of
    quality layers the first one.

    Args:
        source: bytes, anything with the buffer interface, a binary file or pipe, or a
            `RangeSource`, of which the headers alone are fetched.
        limits: what the bitstream may ask for.

    Raises:
        BitstreamError: from the unit on that is at fault.
    """
    parser = StreamParser(limits)
    cutter = UnitCutter(source, parser.context.limits)
    while (unit := cutter.next(parser.check_header)) is not None:
        yield parser.parse(unit)
        cutter.end = parser.end
    parser.finish()


def parse_wanted_units(
    source: RangeSource, limits: DecodeLimits, wanted: Callable[[Sequence[NameRole]], bool]
) -> Iterator[ParsedUnit | PassedUnit]:
    """Parse a bitstream, but pass over data units that the table of contents tells of.

    Args:
        source: the bitstream, of which nothing is fetched of what is passed over.
        limits: what the bitstream may ask for.
        wanted: whether to parse the unit of these tensors.

    Raises:
        BitstreamError: from the unit on that is at fault.
    """
    parser, cutter = StreamParser(limits), UnitCutter(source, limits)
    is_expected = False
    while True:
        entry = parser.next_entry
        if entry is not None and not is_expected:
            ranges = _wanted_ranges(parser.entries, cutter.byte_offset, wanted)
            source.expect([r for r in ranges if r[1] <= source.size])  # else it is a part alone
            is_expected = True
        if entry is None or not entry.tensors or wanted(entry.tensors):
            unit = cutter.next(parser.check_header)
            if unit is None:
                break
            yield parser.parse(unit)
            cutter.end = parser.end
        else:
            passed = PassedUnit(source, cutter.index, cutter.byte_offset, entry, parser.context)
            cutter.skip(entry.size)
            parser.pass_over(entry)
            yield passed
    parser.finish()


def _wanted_ranges(
    entries: Iterable[IndexedUnit], start: int, wanted: Callable[[Sequence[NameRole]], bool]
) -> list[tuple[int, int]]:
    """Return where the units lie that will be parsed, of those that begin at `start`."""
    ranges = []
    for entry in entries:
        if not entry.tensors or wanted(entry.tensors):
            ranges.append((start, start + entry.size))
        start += entry.size
    return ranges

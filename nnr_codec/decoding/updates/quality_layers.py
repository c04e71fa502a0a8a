"""Quality layers: a file of several streams, of which those from the first on make a model.

The first stream is a coarse model, and its model map says how long all streams are; each of the
others is an update of those before it. See spec/model_map.md, "Quality layers".
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

from ...bitstream import ParsedUnit, Topology, parse_units
from ...bitstream.lazy_bytes import RangeSource, loaded
from ...bitstream.parsed_unit import PassedUnit, tensors_of
from ...errors import InvalidBitstream, InvalidOptions, NnrWarning, TruncatedBitstream
from ...options import DecodeLimits
from ..source import Path

_AT_ONCE = 1 << 20  # bytes that are read of a pipe


class Section:
    """Some bytes of a source, as a source of ranges.

    Attributes:
        name: what errors call it.
        size: its bytes.
    """

    def __init__(self, source: RangeSource, start: int, stop: int, name: str | None = None) -> None:
        self.name = name
        self.size = stop - start
        self._source = source
        self._start = start

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes from `start` to `stop`."""
        return self._source.view(self._start + start, self._start + stop)

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        """Tell the source what will be looked at."""
        first = self._start
        self._source.expect([(start + first, stop + first) for start, stop in ranges])


class Buffer:
    """Bytes in memory, or mapped to it, as a source of ranges.

    Attributes:
        size: how many there are.
    """

    def __init__(self, data: Any) -> None:
        """`data`: anything with the buffer interface."""
        self._data = memoryview(data).cast("B").toreadonly()
        self.size = len(self._data)

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes from `start` to `stop`."""
        return self._data[start:stop]

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        """Do nothing: all is there."""


class LayersFound(Exception):
    """A bitstream announces quality layers: it is one of several streams of its source.

    Attributes:
        streams: those that make the model, the first one before its updates.
    """

    def __init__(self, streams: list[Section]) -> None:
        super().__init__(f"{len(streams)} quality layers")
        self.streams = streams


U = TypeVar("U", ParsedUnit, ParsedUnit | PassedUnit)


def without_layers(
    units: Iterator[U], source: Any, quality: int | None = None, name: Path | None = None
) -> Iterator[U]:
    """Yield the units of a source, unless that has quality layers.

    Args:
        units: what is parsed of the source, unit by unit.
        source: bytes, a file that is read as far as `units` are, or a source of ranges.
        quality: how many layers are wanted; None: all.
        name: what errors call the source.

    Raises:
        LayersFound: it has some, of which as much is read as is wanted.
        InvalidOptions: there are not as many.
        BitstreamError: the first one is cut, or the source is longer than they are.

    Warns:
        NnrWarning: the source ends before the last one that is wanted does.
    """
    text = None if name is None else os.fspath(name)
    head: bytes | None = b""
    for parsed in units:
        if head is not None and isinstance(parsed, ParsedUnit):
            head += loaded(parsed.unit.data)
            sizes = _announced(parsed)
            if sizes:
                raise LayersFound(_sections(source, head, sizes, quality, text))
        if head is not None and (tensors_of(parsed) or _is_private(parsed)):
            head = None  # there are no layers
            _check_quality(quality, 1, text)
        yield parsed


def layers_of(data: Any, limits: DecodeLimits, name: Path | None = None) -> list[Section]:
    """Return the streams of bytes: one, or its quality layers; raises and warns as
    `without_layers` does."""
    buffer = Buffer(data)
    try:
        units = without_layers(parse_units(buffer, limits), buffer, name=name)
        next(unit for unit in units if tensors_of(unit))
    except LayersFound as found:
        return found.streams
    except StopIteration:  # a stream without tensors
        pass
    return [Section(buffer, 0, buffer.size, None if name is None else os.fspath(name))]


def _is_private(parsed: ParsedUnit | PassedUnit) -> bool:
    return isinstance(parsed, ParsedUnit) and parsed.unit.is_private


def _announced(parsed: ParsedUnit) -> tuple[int, ...]:
    model_map = parsed.context.model_map
    is_map = isinstance(parsed.record, Topology) and model_map is not None
    return model_map.quality_layers if is_map and model_map is not None else ()


def _check_quality(quality: int | None, count: int, name: str | None) -> None:
    if quality is not None and not 1 <= quality <= count:
        layers = "no quality layers" if count == 1 else f"{count} quality layers"
        raise InvalidOptions("quality", f"{quality}, but {name or 'the stream'} has {layers}")


def _sections(
    source: Any, head: bytes, sizes: tuple[int, ...], quality: int | None, name: str | None
) -> list[Section]:
    _check_quality(quality, len(sizes), name)
    wanted = sizes[:quality]
    data = _gathered(source, head, sum(wanted), is_all=len(wanted) == len(sizes))
    if data.size > sum(sizes):
        reason = f"there are more bytes than the {len(sizes)} quality layers have"
        raise InvalidBitstream("bitstream", sum(sizes), reason)
    ends = itertools.accumulate(wanted)
    sections = [
        Section(data, end - size, end, name)
        for end, size in zip(ends, wanted, strict=True)
        if end <= data.size
    ]
    if not sections:
        reason = f"the first quality layer has {sizes[0]} bytes, of which {data.size} are there"
        raise TruncatedBitstream("bitstream", data.size, reason)
    if len(sections) < len(wanted):
        missing = f"{name or 'the stream'} is cut: quality layers from number {len(sections) + 1} "
        warnings.warn(f"{missing}on, of {len(sizes)}, are left out", NnrWarning, stacklevel=2)
    return sections


def _gathered(source: Any, head: bytes, size: int, is_all: bool) -> Buffer:
    """Return the first `size` bytes of a source, in memory or mapped; and more, to be refused, if
    that `is_all` that there should be."""
    if isinstance(source, RangeSource):
        end = source.size if is_all else size
        source.expect([(0, min(end, source.size))])
        return Buffer(source.view(0, min(end, source.size)))
    try:
        data = memoryview(source)
    except TypeError:
        pieces = [head]
        missing = size + is_all - len(head)
        while missing > 0 and (piece := source.read(min(missing, _AT_ONCE))):
            pieces.append(piece)
            missing -= len(piece)
        return Buffer(b"".join(pieces))
    return Buffer(data if is_all else data[:size])

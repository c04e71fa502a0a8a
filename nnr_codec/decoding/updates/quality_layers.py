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
from ...errors import (
    InvalidBitstream,
    InvalidOptions,
    LimitExceeded,
    NnrWarning,
    TruncatedBitstream,
)
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
    units: Iterator[U],
    source: Any,
    limits: DecodeLimits,
    quality: int | None = None,
    name: Path | None = None,
) -> Iterator[U]:
    """Yield the units of a source, unless it has several quality layers that are wanted.

    Args:
        units: what is parsed of the source, unit by unit; of quality layers the first one.
        source: bytes, a file that is read as far as `units` are, or a source of ranges.
        limits: what the source may ask for.
        quality: how many layers are wanted; None: all.
        name: what errors call the source.

    Raises:
        LayersFound: it has several, of which as much is read as is wanted.
        InvalidOptions: there are not as many.
        BitstreamError: the first one is cut, or the source is longer than they are, or than is
            allowed.

    Warns:
        NnrWarning: the source ends before the last one that is wanted does.
    """
    text = None if name is None else os.fspath(name)
    head: list[bytes] | None = []
    for parsed in units:
        if head is not None and isinstance(parsed, ParsedUnit):
            head.append(bytes(loaded(parsed.unit.data)))
            if sizes := _announced(parsed):
                _check_quality(quality, len(sizes), text)
                if quality != 1:
                    data = _gathered(source, head, sizes[:quality], sizes, limits)
                    raise LayersFound(_sections(data, sizes, quality, text))
                head = None
        elif isinstance(parsed, ParsedUnit) and quality != 1 and _announced(parsed):
            reason = "a private unit comes before the map that announces quality layers"
            raise InvalidBitstream(parsed.unit.label, parsed.unit.byte_offset, reason)
        if head is not None and (tensors_of(parsed) or _is_private(parsed)):
            head = None  # there are no layers
            _check_quality(quality, 1, text)
        yield parsed


def quality_layers_of(data: Any, limits: DecodeLimits, name: Path | None = None) -> list[Section]:
    """Return the streams of bytes: one, or its quality layers; raises and warns as
    `without_layers` does."""
    buffer = Buffer(data)
    try:
        units = without_layers(parse_units(buffer, limits), buffer, limits, name=name)
        next((unit for unit in units if tensors_of(unit)), None)
    except LayersFound as found:
        return found.streams
    return [Section(buffer, 0, buffer.size, None if name is None else os.fspath(name))]


def _is_private(parsed: ParsedUnit | PassedUnit) -> bool:
    return isinstance(parsed, ParsedUnit) and parsed.unit.is_private


def _announced(parsed: ParsedUnit) -> tuple[int, ...]:
    model_map = parsed.context.model_map
    is_map = isinstance(parsed.record, Topology) and model_map is not None
    return model_map.quality_layers if is_map and model_map is not None else ()


def _check_quality(quality: int | None, count: int, name: str | None) -> None:
    if quality is None:
        return
    if type(quality) is not int or not 1 <= quality <= count:
        layers = "no quality layers" if count == 1 else f"{count} quality layers"
        raise InvalidOptions("quality", f"{quality}, but {name or 'the stream'} has {layers}")


def _sections(
    data: RangeSource, sizes: tuple[int, ...], quality: int | None, name: str | None
) -> list[Section]:
    wanted = sizes[:quality]
    if data.size > sum(sizes):
        reason = f"there are more bytes than the {len(sizes)} quality layers have"
        raise InvalidBitstream("bitstream", sum(sizes), reason)
    ends = itertools.accumulate(wanted)
    sections = [
        Section(data, end - size, end, f"{name or 'the stream'}, quality layer {number}")
        for number, (end, size) in enumerate(zip(ends, wanted, strict=True), 1)
        if end <= data.size
    ]
    if not sections:
        reason = f"the first quality layer has {sizes[0]} bytes, of which {data.size} are there"
        raise TruncatedBitstream("bitstream", data.size, reason)
    if len(sections) < len(wanted):
        missing = f"{name or 'the stream'} is cut: quality layers from number {len(sections) + 1} "
        warnings.warn(f"{missing}on, of {len(sizes)}, are left out", NnrWarning, stacklevel=2)
    return sections


def _gathered(
    source: Any,
    head: list[bytes],
    wanted: tuple[int, ...],
    sizes: tuple[int, ...],
    limits: DecodeLimits,
) -> Buffer:
    """Return the layers that are wanted of a source, in memory or mapped; of all of them also what
    is behind the last one, as that is to be refused.

    `head`: the units that were read of a file.
    """
    is_all, size = wanted == sizes, sum(wanted)
    if size > limits.max_stream_bytes:
        raise LimitExceeded("max_stream_bytes", size, limits.max_stream_bytes)
    if isinstance(source, RangeSource):
        end = min(source.size, size + is_all)
        source.expect([(0, end)])
        return Buffer(source.view(0, end))
    try:
        data = memoryview(source)
    except TypeError:
        pieces, missing = list(head), size + is_all - sum(map(len, head))
        while missing > 0 and (piece := source.read(min(missing, _AT_ONCE))):
            pieces.append(piece)
            missing -= len(piece)
        return Buffer(b"".join(pieces))
    return Buffer(data[: size + is_all])

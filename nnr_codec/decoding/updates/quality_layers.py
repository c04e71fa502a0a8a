"""Quality layers: a file of several streams, of which those from the first on make a model.

The first stream is a coarse model, and its model map says how long all streams are; each of the
others is an update of those before it. See spec/model_map.md, "Quality layers".
"""

from __future__ import annotations

import warnings
from typing import Any

from ...bitstream import Topology
from ...bitstream.codes import UnitType
from ...bitstream.lazy_bytes import RangeSource
from ...bitstream.stream_parser import StreamParser
from ...bitstream.units import UnitCutter
from ...errors import InvalidBitstream, InvalidOptions, NnrWarning, TruncatedBitstream
from ...options import DecodeLimits


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


def layer_sizes(source: RangeSource, limits: DecodeLimits) -> tuple[int, ...]:
    """Return the bytes of each quality layer, as the head of a bitstream says; none without.

    Raises:
        BitstreamError: the head is damaged, or asks for what is not supported or allowed.
    """
    parser, cutter = StreamParser(limits), UnitCutter(source, limits)
    while (unit := cutter.next(parser.check_header)) is not None:
        if unit.unit_type == UnitType.NNR_NDU:
            break
        if isinstance(parser.parse(unit).record, Topology) and parser.context.model_map:
            return parser.context.model_map.quality_layers
    return ()


def quality_layers(
    source: RangeSource,
    limits: DecodeLimits,
    quality: int | None = None,
    name: str | None = None,
) -> list[Section]:
    """Return the streams that make a model, the first one before its updates; a single one if the
    source has no quality layers.

    Args:
        source: of which the head is looked at.
        limits: what each stream may ask for.
        quality: how many layers are wanted; None: all.
        name: what errors call the source.

    Raises:
        InvalidOptions: there are not as many layers.
        BitstreamError: the head is damaged, the first layer is cut, or the source is longer than
            its layers are.

    Warns:
        NnrWarning: the source ends before the last layer that is wanted does.
    """
    sizes = layer_sizes(source, limits)
    count = len(sizes) or 1
    if quality is not None and not 1 <= quality <= count:
        layers = "1 quality layer" if count == 1 else f"{count} quality layers"
        raise InvalidOptions("quality", f"{quality}, but {name or 'the stream'} has {layers}")
    if not sizes:
        return [Section(source, 0, source.size, name)]
    if source.size > sum(sizes):
        reason = f"{source.size - sum(sizes)} bytes behind the last quality layer"
        raise InvalidBitstream("bitstream", sum(sizes), reason)
    wanted = sizes[:quality]
    source.expect([(0, min(sum(wanted), source.size))])
    ends = [sum(wanted[: index + 1]) for index in range(len(wanted))]
    sections = [
        Section(source, end - size, end, name)
        for end, size in zip(ends, wanted, strict=True)
        if end <= source.size
    ]
    if not sections:
        reason = f"the first quality layer has {sizes[0]} bytes, of which {source.size} are there"
        raise TruncatedBitstream("bitstream", source.size, reason)
    if len(sections) < len(wanted):
        missing = f"{name or 'the stream'} is cut: its quality layers from number "
        missing += f"{len(sections) + 1} on, of {count}, are left out"
        warnings.warn(missing, NnrWarning, stacklevel=4)
    return sections

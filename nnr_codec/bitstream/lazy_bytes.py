"""Bytes of a unit that are fetched where they are looked at: of sources with random access."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class RangeSource(Protocol):
    """What gives any range of a bitstream's bytes, such as a remote file.

    Attributes:
        size: bytes of the bitstream.
    """

    @property
    def size(self) -> int: ...

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes from `start` to `stop`, which are not beyond `size`."""

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        """Note what will be looked at, in this order, so that it can be fetched in few pieces."""


class LazyBytes:
    """A range of a source's bytes, of which slices are fetched; from `part`, nothing is."""

    __slots__ = ("_source", "_start", "_stop")

    def __init__(self, source: RangeSource, start: int, stop: int) -> None:
        self._source = source
        self._start = start
        self._stop = max(start, min(stop, source.size))

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: slice) -> memoryview:
        start, stop, _ = index.indices(len(self))
        return self._source.view(self._start + start, self._start + max(start, stop))

    def part(self, start: int) -> LazyBytes:
        """Return the bytes from `start` on."""
        return LazyBytes(self._source, self._start + start, self._stop)


Data = memoryview | LazyBytes
"""Bytes that are there, or can be."""


def part_of(data: Data, start: int) -> Data:
    """Return the bytes of `data` from `start` on; those of a source are not fetched."""
    return data.part(start) if isinstance(data, LazyBytes) else data[start:]


def loaded(data: Data) -> memoryview:
    """Return `data` in memory."""
    return data[:] if isinstance(data, LazyBytes) else data

"""Reading the bytes of a bitstream unit by unit: of memory, of files and pipes, of ranges."""

from __future__ import annotations

from typing import Any, BinaryIO, Protocol

from .lazy_bytes import Data, LazyBytes, RangeSource

_PIECE_BYTES = 1 << 20


class UnitReader(Protocol):
    """Reads the bytes of a source, unit by unit."""

    def peek(self, count: int) -> bytes:
        """Return the next unit's first ``count`` bytes, or all there are."""

    def read(self, size: int) -> Data:
        """Return the next unit, of ``size`` bytes, or all there are."""


def reader_of(source: Any, start: int = 0) -> UnitReader:
    """Return what reads a source of one of the kinds that :func:`.units.read_units` takes; of a
    `RangeSource` from byte `start` on."""
    if isinstance(source, RangeSource):
        return _RangeReader(source, start)
    try:
        return _BufferReader(memoryview(source))
    except TypeError:
        return _FileReader(source)


class _BufferReader:
    def __init__(self, view: memoryview) -> None:
        self._view = view.cast("B").toreadonly()
        self._position = 0

    def peek(self, count: int) -> bytes:
        return bytes(self._view[self._position : self._position + count])

    def read(self, size: int) -> memoryview:
        self._position += size
        return self._view[self._position - size : self._position]


class _RangeReader:
    def __init__(self, source: RangeSource, position: int) -> None:
        self._source = source
        self._position = position

    def peek(self, count: int) -> bytes:
        return bytes(LazyBytes(self._source, self._position, self._position + count)[:])

    def read(self, size: int) -> LazyBytes:
        self._position += size
        return LazyBytes(self._source, self._position - size, self._position)


class _FileReader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = bytearray()

    def _fill(self, count: int) -> None:
        # Piece by piece, so that memory grows with what is there and not with what is announced.
        while len(self._data) < count:
            piece = self._file.read(min(count - len(self._data), _PIECE_BYTES))
            if not piece:
                break
            self._data += piece

    def peek(self, count: int) -> bytes:
        self._fill(count)
        return bytes(self._data[:count])

    def read(self, size: int) -> memoryview:
        self._fill(size)
        data, self._data = self._data, bytearray()
        return memoryview(data).toreadonly()

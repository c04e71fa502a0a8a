"""A local file with those bytes of a remote one that have come."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from ..errors import NnrError, naming
from .byte_ranges import ByteRanges, Range
from .client import changed

if TYPE_CHECKING:  # which imports what not every system has
    from .cache_entry import CacheEntry


class LocalCopy:
    """A sparse file of the remote file's size: an entry of a cache, or without a name.

    One thread may write while others look at what is there.

    Attributes:
        size: bytes of the file.
        entry: the entry of the cache, if it is in one.
    """

    def __init__(self, name: str, size: int, entry: CacheEntry | None = None) -> None:
        """`name`: what errors call the remote file. `entry`: of the right version.

        Raises:
            OSError: the disk has no room for such a file.
        """
        self.size = size
        self.entry = entry
        self._name = name
        self._folder = tempfile.gettempdir() if entry is None else os.path.dirname(entry.path)
        self._present = ByteRanges() if entry is None else entry.present
        self._lock = threading.Lock()  # of what is present, the file's position, and the mapping
        self._mapping: mmap.mmap | None = None
        with naming(self._folder, NnrError):
            self._file = _unnamed(size) if entry is None else entry.open_data()

    @property
    def byte_count(self) -> int:
        """How many bytes are there."""
        with self._lock:
            return self._present.byte_count

    def first_gap(self, start: int, stop: int) -> Range | None:
        """Return the first range between `start` and `stop` that is not there, if any."""
        with self._lock:
            return self._present.first_gap(start, stop)

    def write(self, start: int, data: bytes) -> int:
        """Keep bytes that came, and compare those that are there already; return how many are new.

        Raises:
            OSError: bytes are not those that came before, or the disk is full.
        """
        stop = start + len(data)
        missing = list(self._present.gaps(start, stop))
        for known in ByteRanges(missing).gaps(start, stop):
            if self.read(*known) != data[known[0] - start : known[1] - start]:
                raise changed(self._name)
        with naming(self._folder, NnrError):
            for gap in missing:
                self._add(gap[0], memoryview(data)[gap[0] - start : gap[1] - start])
        return sum(end - begin for begin, end in missing)

    def _add(self, start: int, data: memoryview) -> None:
        with self._lock:
            self._file.seek(start)
            left = data
            while left:
                left = left[self._file.write(left) :]
        if self.entry is not None:
            self.entry.add(start, data)
        with self._lock:
            self._present.add(start, start + len(data))
        if self.entry is not None and self.byte_count == self.size:
            self.entry.complete(self._file)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes that are there."""
        pieces = []
        with self._lock:
            self._file.seek(start)
            while start < stop and (piece := self._file.read(stop - start)):
                pieces.append(piece)
                start += len(piece)
        return b"".join(pieces)

    def view(self, start: int, stop: int) -> memoryview:
        """Return bytes that are there, without copying them.

        Raises:
            OSError: the file cannot be mapped to memory.
        """
        if start == stop:
            return memoryview(b"")
        with self._lock, naming(self._folder, NnrError):
            if self._mapping is None:
                self._mapping = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)
            return memoryview(self._mapping)[start:stop]

    def close(self) -> None:
        """Close the file; views stay what they are. A file without a name is gone then."""
        with self._lock:  # another thread may be reading
            if self._mapping is not None:
                with suppress(BufferError):  # who has the last view closes it
                    self._mapping.close()
            self._file.close()
        if self.entry is not None:
            self.entry.close()


def _unnamed(size: int) -> BinaryIO:
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    try:
        file.truncate(size)
    except BaseException:
        file.close()
        raise
    return file

"""What a bitstream is read from: bytes, files, pipes, and files at addresses."""

from __future__ import annotations

import io
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from ..bitstream.lazy_bytes import RangeSource
from ..errors import InvalidBitstream, InvalidOptions, LimitExceeded
from ..options import DecodeLimits
from ..remote.addresses import is_address, local_path, printable_address
from ..remote.remote_file import RemoteFile, forget
from ..support.mapped_file import mapped
from ..support.rereadable_file import RereadableFile, rereadable

Bytes = bytes | bytearray | memoryview
Path = str | os.PathLike[str]
"""A path, or an address such as https://…"""

Source = Bytes | Path | BinaryIO | RereadableFile | RangeSource
"""What a bitstream is read from: also whatever gives ranges of its bytes."""


_PIECE_BYTES = 1 << 20  # that are read at once

_MOST_BUFFERED = 1 << 24
"""Bytes that a file may have in its buffer: many times as many as files have."""


BASE_AND_PARENTS = "is added to the stream, and parents are not: give one of the two"
"""Why both cannot be given."""


def check_sources(base: Any, parents: Any, quality: int | None = None) -> None:
    """Raise InvalidOptions if these are no lists of sources, or do not go together."""
    for option, sources in (("base", base), ("parents", parents)):
        if isinstance(sources, str | bytes | os.PathLike):
            raise InvalidOptions(option, f"{sources!r} is a single stream: give a list of them")
    if base and parents:
        raise InvalidOptions("base", BASE_AND_PARENTS)
    if base and quality is not None:
        raise InvalidOptions("quality", "is for a file of quality layers, and an update is none")
    if quality is not None and (type(quality) is not int or quality < 1):
        raise InvalidOptions("quality", f"{quality!r} is not a whole number of 1 or more")


@contextmanager
def opened(source: Source, cache: Path | None = None) -> Iterator[Any]:
    """Give bytes, files, pipes and ranges as they are, and open paths and addresses.

    `cache`: as of :class:`RemoteFile`.
    """
    if not isinstance(source, str | os.PathLike):
        yield source
    elif is_address(source):
        with RemoteFile(os.fspath(source), cache=cache) as remote:
            yield remote
    else:
        with open(local_path(source), "rb") as file:
            yield file


@contextmanager
def dropping_damaged(source: Source, cache: Path | None) -> Iterator[None]:
    """Let a cache drop what it has of an address if the bitstream turns out to be damaged."""
    try:
        yield
    except InvalidBitstream:
        if cache is not None and is_address(source):
            forget(str(source), cache)
        raise


@contextmanager
def opened_twice(
    source: Path | BinaryIO | RemoteFile, cache: Path | None = None
) -> Iterator[RereadableFile | RemoteFile]:
    """Give what can be read more than once: of a pipe by a copy of what was read.

    Raises:
        OSError: it cannot be opened, or no temporary file be made for a pipe.
    """
    if isinstance(source, RemoteFile):
        yield source
    elif is_address(source):
        with RemoteFile(str(source), cache=cache) as remote:
            yield remote
    else:
        with rereadable(local_path(source)) as file:
            yield file


class _WithoutBuffer:
    """A buffered file, read without its buffer, whose lock would be held while waiting for more.

    A program that ends while a thread holds the lock of standard input is aborted by Python.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        """Take what is in the buffer; of an empty one, wait for the first bytes."""
        self._raw = file.raw
        self._first = memoryview(file.read1(_MOST_BUFFERED))

    def read(self, size: int) -> bytes:
        """Return some bytes, `size` at the most; none at the end."""
        if not self._first:
            return self._raw.read(size) or b""
        piece, self._first = self._first[:size], self._first[size:]
        return bytes(piece)


def for_thread(source: Source) -> Source:
    """Return a source that a thread may wait for, whatever the program does meanwhile."""
    return cast(Source, _WithoutBuffer(source)) if isinstance(source, io.BufferedReader) else source


def data_of(source: Source, cache: Path | None, limits: DecodeLimits) -> Any:
    """Return all bytes of a source, those of files and addresses without a copy in memory.

    Raises:
        LimitExceeded: there are more than a bitstream may have.
        OSError: it cannot be read.
    """
    if isinstance(source, Bytes):
        return source
    if isinstance(source, RangeSource):
        return source.view(0, source.size)
    if not isinstance(source, str | os.PathLike):
        return _rest(source, limits.max_stream_bytes)
    with opened(source, cache) as file:
        if isinstance(file, RangeSource):
            return file.view(0, file.size)
        data = mapped(file)
        return data if isinstance(data, mmap.mmap) else _rest(file, limits.max_stream_bytes)


def _rest(file: BinaryIO | RereadableFile, most: int) -> bytes:
    pieces, size = [], 0
    while piece := file.read(_PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise LimitExceeded("max_stream_bytes", size, most)
    return b"".join(pieces)


def name_of(source: Source) -> Path | None:
    """Return what errors call a source; None: it has no name."""
    if isinstance(source, str | os.PathLike):
        return printable_address(str(source)) if is_address(source) else source
    name = getattr(source, "name", None)  # of an unnamed temporary file: a number
    return name if isinstance(name, str) else None


def may_wait(source: Source) -> bool:
    """Whether a reader may have to wait for more of a source: unless it is in memory or a file."""
    if isinstance(source, Bytes | io.BytesIO | RereadableFile):
        return False
    if is_address(source):
        return True
    try:
        file: Any = source if isinstance(source, str | os.PathLike) else source.fileno()  # type: ignore[union-attr]
        return not stat.S_ISREG(os.stat(local_path(file)).st_mode)
    except (OSError, AttributeError):  # it is no file; or there is none, as opening it will say
        return True

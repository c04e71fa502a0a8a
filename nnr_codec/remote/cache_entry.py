"""What a cache folder holds of one address: its bytes, and a journal of those that are there.

The journal says the file's version, and after it one line for each piece that came: where, how
many bytes, and their CRC-32. A piece has 16 KB or more, and its line is written after its bytes.
Whatever a killed process or a lost disk buffer leaves behind, a piece counts only if its bytes are
those that the line tells of. The last line, `complete`, is written when all bytes are on the disk:
then they need no look.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from ..errors import NnrError, naming
from .addresses import printable_address
from .byte_ranges import ByteRanges
from .client import Version

_FORMAT = 1
_COMPLETE = b"complete\n"
_PIECE = re.compile(rb"(\d{1,18}) (\d{1,18}) ([0-9a-f]{8})\n")
_LINE_BYTES = 1 << 14
_COMPARED_BYTES = 1 << 20
_LOCK_TRIES, _LOCK_SECONDS = 10, 0.02


class CacheEntry:
    """The files of one address in a cache folder, locked while they are open.

    Attributes:
        path: the file with the bytes.
        version: of which version they are; None if there are none that could be used.
        present: which bytes are there.
        is_complete: whether all are, and on the disk.
    """

    def __init__(self, folder: str, address: str) -> None:
        """Make the folder if there is none, and lock the entry.

        Raises:
            BlockingIOError: another reader is filling the entry.
            OSError: the folder cannot be used.
        """
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, entry_name(address))
        self._piece = (0, 0, 0)  # not put down yet: start, size, CRC-32
        self._journal = open(f"{self.path}.journal", "a+b", buffering=0)  # noqa: SIM115
        try:
            self._is_exclusive = _locked(self._journal)
            self.version, self.present, self.is_complete = self._read()
            if self.is_complete and self._is_exclusive:  # others can read it too
                fcntl.flock(self._journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
                self._is_exclusive = False
            elif not self._is_exclusive and not self.is_complete:
                raise BlockingIOError(errno.EAGAIN, "another reader uses the cache's entry")
        except BaseException:
            self._journal.close()
            raise

    def open_data(self) -> BinaryIO:
        """Open the bytes; to read alone if they are complete."""
        return open(self.path, "rb" if self.is_complete else "r+b", buffering=0)

    def claim(self) -> bool:
        """Return whether the entry can be changed, because no other reader uses it."""
        if not self._is_exclusive:
            with suppress(BlockingIOError):
                fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._is_exclusive = True
        return self._is_exclusive

    def reset(self, version: Version) -> None:
        """Begin anew, with no bytes of `version`; whoever looks at the old bytes keeps them."""
        self._clear()
        with naming(os.path.dirname(self.path), NnrError), open(self.path, "xb") as file:
            file.truncate(version.size)
        head = {"format": _FORMAT, "size": version.size, "etag": version.etag}
        head |= {"modified": version.modified, "validator": version.validator}
        _write(self._journal, json.dumps(head).encode() + b"\n")
        self.version, self.present, self.is_complete = version, ByteRanges(), False

    def remove(self) -> None:
        """Leave nothing of the entry but an empty journal, which others may have locked."""
        self._clear()
        self.version, self.present, self.is_complete = None, ByteRanges(), False

    def add(self, start: int, data: bytes | memoryview) -> None:
        """Put down that `data` were written at `start`, at once or with what follows them."""
        begin, size, crc = self._piece
        if begin + size != start:
            self._put_down()
            begin, size, crc = start, 0, 0
        self._piece = begin, size + len(data), zlib.crc32(data, crc)
        if size + len(data) >= _LINE_BYTES:
            self._put_down()

    def complete(self, data: BinaryIO) -> None:
        """Put down that all bytes are there, once the disk has those of the open file `data`."""
        self._put_down()
        os.fsync(data.fileno())
        _write(self._journal, _COMPLETE)
        self.is_complete = True

    def close(self) -> None:
        """Put down what came last, and give the lock back."""
        if self._journal.closed:
            return
        with self._journal, suppress(OSError):  # of a full disk: then the journal says less
            self._put_down()

    def _put_down(self) -> None:
        (begin, size, crc), self._piece = self._piece, (0, 0, 0)
        if size:
            _write(self._journal, f"{begin} {size} {crc:08x}\n".encode())

    def _clear(self) -> None:
        self._piece = (0, 0, 0)
        self._journal.truncate(0)
        os.fsync(self._journal.fileno())  # before other bytes have the name of the old ones
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def _read(self) -> tuple[Version | None, ByteRanges, bool]:
        """Return what the journal says, as far as the bytes bear it out."""
        self._journal.seek(0)
        lines = self._journal.read().splitlines(keepends=True)
        version = _version(lines[0]) if lines else None
        if version is None or _size_of(self.path) != version.size:
            return None, ByteRanges(), False
        if lines[-1] == _COMPLETE:
            return version, ByteRanges([(0, version.size)]), True
        if not lines[-1].endswith(b"\n"):  # so that the next line is one of its own
            _write(self._journal, b"\n")
        with open(self.path, "rb") as file:
            return version, ByteRanges(_borne_out(lines[1:], file)), False


def entry_name(address: str) -> str:
    """Return the name of the file of an address: a digest, and what the address ends with."""
    tail = printable_address(address).rstrip("/").rpartition("/")[2]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", tail.removesuffix("?…"))[-60:]
    return f"{hashlib.sha256(address.encode()).hexdigest()[:32]}-{readable}"


def _locked(file: BinaryIO) -> bool:
    """Lock a file; return whether nobody else has: else others read it too.

    Raises BlockingIOError: another has it for itself, and longer than it takes to look.
    """
    for _ in range(_LOCK_TRIES):
        for operation in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            with suppress(BlockingIOError):
                fcntl.flock(file, operation | fcntl.LOCK_NB)
                return operation == fcntl.LOCK_EX
        time.sleep(_LOCK_SECONDS)
    raise BlockingIOError(errno.EAGAIN, "another reader is filling the cache's entry")


def _size_of(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _version(line: bytes) -> Version | None:
    """Return the version that the first line of a journal says; None if it says none."""
    try:
        head = json.loads(line)
        if not line.endswith(b"\n") or head.pop("format") != _FORMAT:
            return None
        version = Version(**head)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    texts = (version.etag, version.modified, version.validator)
    is_proper = isinstance(version.size, int) and all(isinstance(text, str) for text in texts)
    return version if is_proper else None


def _borne_out(lines: list[bytes], file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the pieces in a journal whose bytes are those that came."""
    for match in filter(None, map(_PIECE.fullmatch, lines)):
        start, size, expected = int(match[1]), int(match[2]), int(match[3], 16)
        file.seek(start)
        left, crc = size, 0
        while left and (data := file.read(min(left, _COMPARED_BYTES))):
            left, crc = left - len(data), zlib.crc32(data, crc)
        if left == 0 and crc == expected:
            yield start, start + size


def _write(journal: BinaryIO, line: bytes) -> None:
    """Append a line in one piece."""
    if journal.write(line) != len(line):
        raise OSError(errno.ENOSPC, "no space left for the cache's journal")

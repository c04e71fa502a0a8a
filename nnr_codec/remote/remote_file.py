"""A remote file: read forward or in ranges, and moved once."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .addresses import printable_address
from .byte_ranges import Range
from .client import Client, closed
from .download import FIRST_BYTES, Download
from .local_copy import LocalCopy
from .opening import begin, cache_entry, client_of
from .shutdown import Shutdown


class RemoteFile(io.RawIOBase):
    """A file at an address, as a binary file, and as views of its parts.

    What has come is kept in a local file until `close`, and is not asked for again. Requests are
    repeated until five in a row bring no new byte. `ensure`, `view` and `expect` may be called by
    several threads, of which one at a time waits for the server; what is there needs no waiting.
    Reading forward has one position, as in any file. `close` waits for none of them: those that
    wait for the server get the ValueError of a closed file.

    Attributes:
        name: the address for messages, without user, password and query.
        size: bytes of the file.
    """

    name: str
    size: int

    def __init__(
        self,
        address: str,
        *,
        cache: str | os.PathLike[str] | None = None,
        progress: Callable[[int], object] | None = None,
        shutdown: Shutdown | None = None,
    ) -> None:
        """Ask for the first 16 KB, which tells what else has to be known.

        Args:
            address: http://…, https://…, or what fsspec reads, such as s3://….
            cache: a folder, made if there is none, in which what has come is kept for later runs:
                they go on where this one ends, and ask whether the file is still the same. Other
                readers of the same address work without it while it is being filled. Nothing is
                kept of files for which the server gives neither a tag (ETag) nor a time. Without a
                cache, nothing stays.
            progress: called with the number of new bytes whenever some have come.
            shutdown: of this file alone; begun by another thread, it does what `close` does for
                those that wait, and for this first request too, which raises ValueError then.

        Raises:
            OSError: the file cannot be read, or there is no room for the copy. It is a
                FileNotFoundError or a PermissionError where the server says so.
        """
        super().__init__()
        self.name, self.size = printable_address(address), 0
        self._position = self._run_start = 0  # of reading forward
        self._lock = threading.Lock()  # of the download
        self._shutdown = shutdown or Shutdown()
        self._failure: OSError | None = None
        self._client: Client | None = None
        self._download: Download | None = None
        self._copy: LocalCopy | None = None
        entry = None
        try:
            self._client = client_of(address, self._shutdown)
            entry = cache_entry(None if cache is None else os.fspath(cache), address)
            self._copy, self._download = begin(
                self.name, self._client, entry, progress, self._shutdown
            )
        except BaseException:
            if entry is not None:
                entry.close()
            self.close()
            raise
        self.size = self._copy.size

    @property
    def byte_count(self) -> int:
        """How many bytes of the file are there, those of the cache counted."""
        return self._open_copy().byte_count

    def expect(self, ranges: Iterable[Range]) -> None:
        """Say which ranges will be needed, in that order, instead of what was said before.

        Nothing is asked for yet. When a byte of a range is needed, all of it is asked for, together
        with those that follow it in order and in the file; the answer is read as far as needed.
        """
        checked = list(ranges)
        for start, stop in checked:
            self._check(start, stop)
        with self._locked_download() as download:
            download.expect(checked)

    def ensure(self, start: int, stop: int) -> None:
        """Let the bytes from `start` to `stop` be there.

        Raises:
            OSError: they cannot be read; the file has changed; the disk is full.
            ValueError: there are no such bytes, or the file is closed.
        """
        self._fetch(start, stop, stop)

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes from `start` to `stop`, read-only, without copying them; they outlive
        the file. What is not expected comes with the 16 KB behind it, as headers are looked at bit
        by bit. Raises what `ensure` raises."""
        self._fetch(start, stop, min(max(stop, start + FIRST_BYTES), self.size))
        return self._open_copy().view(start, stop)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, or up to the end, and go on behind them; raises what `ensure` raises.

        After a seek the first read asks for no more than 16 KB or what it needs. Who reads on from
        there gets what follows from one answer, which goes on to the end of the file.
        """
        start = min(self._position, self.size)
        stop = self.size if size is None or size < 0 else min(start + size, self.size)
        if gap := self._open_copy().first_gap(start, stop):
            reads_on = gap[0] - self._run_start >= FIRST_BYTES
            until = self.size if reads_on else min(start + FIRST_BYTES, self.size)
            self._fetch(start, stop, until)
        self._position = max(self._position, stop)
        return self._open_copy().read(start, stop)

    def readall(self) -> bytes:
        """Read up to the end."""
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer as many bytes as it has, or up to the end."""
        target = memoryview(buffer).cast("B")
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position; nothing is asked for."""
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        if (base := bases.get(whence)) is None:
            raise ValueError(f"no such whence: {whence}; use os.SEEK_SET, SEEK_CUR or SEEK_END")
        if base + offset < 0:
            raise ValueError(f"no position of a file: {base + offset}")
        if base + offset != self._position:
            self._position = self._run_start = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close connections and the local copy, which is gone unless it is in a cache.

        If a thread is fetching at that moment, it stops, and closes them; nothing waits for it.
        What it waits for is cut off, but for a connection that is being made (up to 10 s for each
        address that the host's name stands for, once these are found), and for reads of fsspec (up
        to 4 MB), which have to end by themselves.
        """
        if self.closed:
            return
        super().close()
        self._shutdown.begin()
        self._release()

    def _release(self) -> None:
        """Close what a closed file has, if no thread uses it: else that one will call this."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._download is not None:
                self._download.drop()
            if self._copy is not None:
                self._copy.close()
            if self._client is not None:
                self._client.close()
        finally:
            self._lock.release()

    @contextmanager
    def _locked_download(self) -> Iterator[Download]:
        """Give the download to one thread at a time; raises ValueError if the file is closed."""
        try:
            with self._lock:
                if self.closed or self._download is None:
                    raise closed(self.name)
                yield self._download
        finally:
            # Only now: `close` does it itself if it gets the lock, and sets the flag before.
            if self.closed:
                self._release()

    def _fetch(self, start: int, stop: int, until: int) -> None:
        self._check(start, stop)
        if self._open_copy().first_gap(start, stop) is None:
            return
        known = self._failure
        with self._locked_download() as download:
            if self._failure is not None and self._failure is not known:
                # While this thread waited, another tried often enough.
                failure = self._failure
                raise OSError(failure.errno, failure.strerror, failure.filename) from failure
            try:
                download.fetch(start, stop, until)
            except OSError as error:
                self._failure = error
                raise

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"{self.name}: no bytes {start} to {stop} in {self.size}")

    def _open_copy(self) -> LocalCopy:
        if self.closed or self._copy is None:
            raise closed(self.name)
        return self._copy


def forget(address: str, cache: str | os.PathLike[str]) -> None:
    """Let a cache keep nothing of an address, unless another reader uses it: what it has turned out
    to be damaged, whoever did that, and a later run is to fetch it anew."""
    entry = cache_entry(os.fspath(cache), address)
    if entry is not None:
        if entry.claim():
            entry.remove()
        entry.close()

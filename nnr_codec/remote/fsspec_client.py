"""Files at s3://, gs://, hf:// and wherever else fsspec reads."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from .addresses import printable_address, scheme_of
from .client import Body, Interrupted, Version, changed, refused

_FIRST_PIECE_BYTES = 1 << 18
_PIECE_BYTES = 1 << 22
_FINAL: dict[type[Exception], int] = {
    FileNotFoundError: errno.ENOENT,
    IsADirectoryError: errno.EISDIR,
    PermissionError: errno.EACCES,
    ImportError: errno.ENOSYS,
    NotImplementedError: errno.ENOSYS,
    ValueError: errno.EINVAL,
}
"""Errors that another try would bring again, and what to raise for them."""


class FsspecClient:
    """Reads one file by range reads of fsspec; see :class:`.client.Client`.

    Options of the file system, such as credentials, are those of fsspec's configuration.
    """

    def __init__(self, address: str) -> None:
        """Raises OSError: fsspec, or what it needs for this kind of address, is not installed, or
        can do nothing with the address."""
        self.name = printable_address(address)
        try:
            from fsspec.core import url_to_fs

            self._files, self._path = url_to_fs(address)
        except ImportError as error:
            reason = f"needs packages that are not installed ({error}): "
            raise refused(self.name, f"{reason}pip install nnr-codec[remote]") from error
        except Exception as error:  # of any kind, as each kind of file system has its own
            reason = f"fsspec reads nothing at {scheme_of(address)}:// ({_message(error)})"
            raise refused(self.name, reason, _final_number(error) or errno.EIO) from error

    def open(self, start: int, stop: int, version: Version | None = None) -> Body:
        """Prepare to read bytes; see :class:`.client.Client`."""
        now = self.version()
        return _FsspecBody(self, now, min(start, now.size), min(stop, now.size))

    def open_if_changed(self, version: Version, stop: int) -> Body | None:
        """Prepare to read the file if it changed; see :class:`.client.Client`."""
        body = self.open(0, stop)
        return None if body.version.matches(version) else body

    def close(self) -> None:
        """Do nothing: fsspec shares and closes connections itself."""

    def version(self) -> Version:
        """Ask which version of the file there is now."""
        with self._errors():
            self._files.invalidate_cache(self._path)
            details = self._files.info(self._path)
            tag = self._files.ukey(self._path)
        if details.get("type") != "file" or not isinstance(details.get("size"), int):
            raise refused(self.name, "is no file of known size", errno.EISDIR)
        return Version(details["size"], etag=tag, validator=tag)

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes of whatever version there is now."""
        from fsspec.asyn import AsyncFileSystem

        with self._errors():
            if isinstance(self._files, AsyncFileSystem):
                return bytes(self._files.cat_file(self._path, start=start, end=stop))
            # cat_file of others opens files with a cache, which reads megabytes ahead.
            with self._files.open(self._path, "rb", cache_type="none") as file:
                file.seek(start)
                return bytes(file.read(stop - start))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what any library raises into an error with the address, or an interruption."""
        try:
            yield
        except Exception as error:
            if number := _final_number(error):
                raise refused(self.name, f"cannot be read: {_message(error)}", number) from error
            raise Interrupted(_message(error)) from error


def _final_number(error: Exception) -> int | None:
    """Return the number to raise for an error that another try would bring again; else None."""
    return next((number for kind, number in _FINAL.items() if isinstance(error, kind)), None)


def _message(error: Exception) -> str:
    """Return what happened; what a library calls the file is not what the user does."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"{type(error).__name__}: {text}"


class _FsspecBody:
    """A range of a file, read in pieces that grow; see :class:`.client.Body`.

    Reads cannot be told which version they shall be of, so that each is checked afterwards.
    """

    has_ranges = True

    def __init__(self, client: FsspecClient, version: Version, position: int, stop: int) -> None:
        self.version = version
        self.position = position
        self.stop = stop
        self._client = client
        self._piece = _FIRST_PIECE_BYTES

    def read(self) -> bytes:
        end = min(self.position + self._piece, self.stop)
        if end == self.position:
            return b""
        data = self._client.read(self.position, end)
        if not self._client.version().matches(self.version):
            raise changed(self._client.name)
        if not data:
            raise Interrupted(f"no bytes come, {self.stop - self.position} before the end")
        self.position += len(data)
        self._piece = min(2 * self._piece, _PIECE_BYTES)
        return data

    def close(self) -> None:
        pass

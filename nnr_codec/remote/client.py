"""What a client of a kind of servers does: it opens ranges of one file, and tells its version."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Version:
    """What tells one version of a file from others.

    Attributes:
        size: bytes of the file.
        etag: its tag, as the server says it; "" if it says none.
        modified: when it was changed, as the server says it; "" if it says nothing.
        validator: the tag or time that no other version has, with which a server can be asked for
            bytes of this version alone; "" if there is none.
    """

    size: int
    etag: str = ""
    modified: str = ""
    validator: str = field(default="", compare=False)

    def matches(self, other: Version) -> bool:
        """Return whether all that both say agrees.

        Of one version, servers that share the work may say different times, but the same tag.
        """
        if self.size != other.size or self.etag != other.etag:
            return False
        return is_strong(self.etag) or self.modified == other.modified


def is_strong(etag: str) -> bool:
    """Return whether equal tags mean equal bytes (RFC 9110, section 8.8.3)."""
    return bool(etag) and not etag.startswith("W/")


class Interrupted(Exception):
    """A request failed in a way that another one may not.

    Attributes:
        reason: what happened.
        wait: seconds that the server asks to wait; None if it does not.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


class Body(Protocol):
    """An open answer: bytes of one version of the file, which come one after the other.

    Attributes:
        version: the version of the file.
        position: where the next byte stands in the file.
        stop: where the last one ends.
        has_ranges: whether the server can be asked for other parts of this version.
    """

    version: Version
    position: int
    stop: int
    has_ranges: bool

    def read(self) -> bytes:
        """Return the next bytes as soon as there are some; b"" only at `stop`.

        Raises:
            Interrupted: the answer ended before `stop`, or the connection failed.
            OSError: what came cannot be used; another request would not help.
        """

    def close(self) -> None:
        """End the answer, all of which may not have been read."""


class Client(Protocol):
    """Opens one file, again and again. Not to be used by several threads at once."""

    def open(self, start: int, stop: int, version: Version | None = None) -> Body:
        """Ask for the bytes from `start` to `stop`, of that version if one is given.

        The answer may begin at 0 and be of another version instead.

        Raises:
            Interrupted: the server cannot be reached, or is busy.
            OSError: the server refuses; another request would not help.
        """

    def open_if_changed(self, version: Version, stop: int) -> Body | None:
        """Return None if the file still is of that version (which has a validator), else what
        `open` returns for its bytes up to `stop`. Raises what `open` raises."""

    def close(self) -> None:
        """Close all connections."""


def changed(name: str) -> OSError:
    """Return the error of a file that became another one while it was read."""
    reason = "the file changed on the server while it was read: try again"
    return OSError(errno.ESTALE, reason, name)


def closed(name: str) -> ValueError:
    """Return the error of a file that is closed, as that of Python's own files."""
    return ValueError(f"{name}: the file is closed")


def refused(name: str, reason: str, number: int = errno.EIO) -> OSError:
    """Return the error of a file that cannot be read."""
    return OSError(number, reason, name)

"""What a bitstream is read from: bytes, files, pipes, and files at addresses."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from ..bitstream.lazy_bytes import RangeSource
from ..remote.addresses import is_address, local_path, printable_address
from ..remote.remote_file import RemoteFile
from ..support.rereadable_file import RereadableFile, rereadable

Bytes = bytes | bytearray | memoryview
Path = str | os.PathLike[str]
"""A path, or an address such as https://…"""

Source = Bytes | Path | BinaryIO | RereadableFile | RangeSource
"""What a bitstream is read from: also whatever gives ranges of its bytes."""


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

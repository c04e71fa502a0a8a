"""Bitstreams that are read more than once, pipes too."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

PathOrFile = str | os.PathLike[str] | BinaryIO


class RereadableFile:
    """A binary file that can be read again from where it began.

    What comes from a pipe is copied to a temporary file as it is read.

    Attributes:
        name: what errors call the file.
    """

    def __init__(self, file: BinaryIO, copy: BinaryIO | None, name: str | None = None) -> None:
        """`copy`: the temporary file; None for a `file` that can be read again itself. `name`: by
        default that of the file."""
        self.name = str(file.name) if name is None else name
        self._file = file
        self._copy = copy
        self._start = 0 if copy is not None else file.tell()

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or up to the end.

        Raises:
            OSError: the file cannot be read, or the copy not be written.
        """
        data = self._file.read(size)
        if self._copy is not None:
            try:
                self._copy.write(data)
            except OSError as error:
                error.filename = tempfile.gettempdir()
                raise
        return data

    def rewind(self) -> None:
        """Go back to the start; of a pipe only what was read so far can be read again."""
        if self._copy is not None:
            self._file, self._copy = self._copy, None
        self._file.seek(self._start)


@contextmanager
def rereadable(source: PathOrFile) -> Iterator[RereadableFile]:
    """Open a path, or take a file or pipe as it is, to read it more than once.

    Raises:
        OSError: the file cannot be opened, or no temporary file be made for a pipe.
    """
    with ExitStack() as stack:
        if isinstance(source, str | os.PathLike):
            file: BinaryIO = stack.enter_context(open(source, "rb"))
        else:
            file = source
        is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        copy = None if is_regular else stack.enter_context(tempfile.TemporaryFile())
        yield RereadableFile(file, copy)

"""Standard input, output and error: closed ones, and those that cannot be written."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TextIO, cast

STDIN, STDOUT = "standard input", "standard output"


class Output:
    """Standard output, whose errors name it and are not forgotten: closed, or on a full disk."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: what Python has; None if it is closed."""
        self._stream = stream
        self._error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text.

        Raises:
            OSError: it cannot be written.
        """
        try:
            if self._stream is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return self._stream.write(text)
        except OSError as error:
            self._keep(error)
            raise

    def flush(self) -> None:
        """Write what is still to be written; raise again what writing raised before."""
        if self._error is not None:
            raise self._error
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            self._keep(error)
            raise

    def _keep(self, error: OSError) -> None:
        if error.filename is None and not isinstance(error, BrokenPipeError):
            error.filename = STDOUT
        self._error = error

    def drop(self) -> None:
        """Drop what cannot be written: Python would try it when it ends, and complain again."""
        try:
            self.flush()
        except OSError:
            with suppress(OSError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


@contextmanager
def standard_streams() -> Iterator[Output]:
    """Put something in the place of closed standard streams around the block; give the output.

    Their numbers are used, so that no file that is opened gets them.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, mode)  # the wrong way round: neither reads nor writes
    before, output = (sys.stdout, sys.stderr), Output(sys.stdout)
    sys.stdout = cast(TextIO, output)
    if sys.stderr is None:
        sys.stderr = io.StringIO()  # nobody reads it; `print` would take standard output instead
    try:
        yield output
    finally:
        output.drop()
        sys.stdout, sys.stderr = before


def standard_input() -> BinaryIO:
    """Return standard input.

    Raises:
        OSError: it is closed.
    """
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), STDIN)
    return sys.stdin.buffer

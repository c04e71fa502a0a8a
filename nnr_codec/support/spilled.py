"""Arrays that wait in a temporary file, where all of them together are too much for memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class SpilledArray:
    """An array in a file of this machine; it can be sent to other processes there.

    Attributes:
        path: the file, which goes with its `SpillFile`.
        offset: of the array, in bytes.
        shape, dtype: the array's.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self) -> npt.NDArray[Any]:
        """Return the array; OSError if it cannot be read."""
        count = int(np.prod(self.shape, dtype=np.int64))
        flat = np.fromfile(self.path, self.dtype, count, offset=self.offset)
        return flat.reshape(self.shape)


class SpillFile:
    """A temporary file of arrays, which is removed with the last reference to this object."""

    def __init__(self) -> None:
        """Make the file; OSError if it cannot be made."""
        with _naming_folder():
            descriptor, self._path = tempfile.mkstemp(prefix="nnr-spilled-")
            os.close(descriptor)
        self._end = 0
        weakref.finalize(self, _remove, self._path)

    def put(self, array: npt.NDArray[Any]) -> SpilledArray:
        """Write an array behind the others; OSError if it cannot be written."""
        values = np.ascontiguousarray(array)
        with _naming_folder(), open(self._path, "ab") as file:
            file.write(values.reshape(-1).view(np.uint8).data)
        spilled = SpilledArray(self._path, self._end, values.shape, values.dtype)
        self._end += values.nbytes
        return spilled


@contextmanager
def _naming_folder() -> Iterator[None]:
    """Say of an OSError that the folder of temporary files is to be looked at."""
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        reason = f"{error.strerror or error} (a temporary file; TMPDIR names another folder)"
        raise OSError(error.errno, reason, folder) from error


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)

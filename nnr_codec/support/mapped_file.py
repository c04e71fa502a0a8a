"""Files whose bytes are looked at where they are."""

from __future__ import annotations

import mmap
import os
import stat
from typing import BinaryIO


def mapped(file: BinaryIO) -> mmap.mmap | BinaryIO:
    """Return a regular file mapped to memory; what cannot be, pipes and empty files, as it is.

    Raises:
        OSError: the file cannot be mapped.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return file
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

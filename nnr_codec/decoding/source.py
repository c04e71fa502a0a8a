"""What a bitstream is read from."""

from __future__ import annotations

import os
from typing import BinaryIO

from ..support.rereadable_file import RereadableFile

Bytes = bytes | bytearray | memoryview
Source = Bytes | str | os.PathLike[str] | BinaryIO | RereadableFile

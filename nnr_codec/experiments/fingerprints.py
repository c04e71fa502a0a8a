"""Fingerprints of the code that decides results: a changed codec makes its cached cells stale.

And names that are fit for files.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_LENGTH = 16
_NAME_LENGTH = 80
_AFTERWARDS = "report"  # of the experiments, what is made of measured cells


@cache
def codec_fingerprint() -> str:
    """Return 16 hexadecimal digits that stand for the codec's files, its core included."""
    files = [path for pattern in ("*.py", "*.so", "*.pyd") for path in _PACKAGE.rglob(pattern)]
    outside = ("experiments", "cli")
    return _digest(p for p in files if p.relative_to(_PACKAGE).parts[0] not in outside)


@cache
def evaluation_fingerprint() -> str:
    """Return 16 hexadecimal digits that stand for what measures a cell: all but the report."""
    folder = Path(__file__).resolve().parent
    files = folder.rglob("*.py")
    return _digest(path for path in files if path.relative_to(folder).parts[0] != _AFTERWARDS)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        state = hashlib.sha256()
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def plain_name(name: str) -> str:
    """Return a name for files and anchors, of at most 89 ASCII characters.

    That is the name itself, or, with a checksum that tells it from others, what can be kept of it.
    """
    plain = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", name)[:_NAME_LENGTH]
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def _digest(paths: Iterable[Path]) -> str:
    state = hashlib.sha256()
    for path in sorted(paths):
        state.update(f"{path.relative_to(_PACKAGE)}\0{file_digest(path)}\n".encode())
    return state.hexdigest()[:_LENGTH]

"""Disks without room: clear errors, and a cache that stays what it was."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from remote_support import FileServer, read_all

from nnr_codec.remote.remote_file import RemoteFile

FIRST = 16384


def full_after(size: int, write: Callable[..., int]) -> Callable[..., int]:
    """Return a `write` for a disk that has room for that many bytes."""
    written = [0]

    def limited(data: memoryview) -> int:
        room = size - written[0]
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written[0] += min(room, len(data))
        return write(data[:room])

    return limited


class _SmallDisk:
    """A file that takes a number of bytes."""

    def __init__(self, file: object, size: int) -> None:
        self.write = full_after(size, file.write)  # type: ignore[attr-defined]
        self._file = file

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 1, 300_000])
def test_full_disk(server: FileServer, tmp_path: Path, room: int) -> None:
    with RemoteFile(server.address, cache=tmp_path) as file:
        file._copy._file = _SmallDisk(file._copy._file, room)
        with pytest.raises(OSError, match="No space left") as caught:
            file.read()
        assert caught.value.filename == str(tmp_path)
        file._copy._file = file._copy._file._file
    assert read_all(server, tmp_path) == server.data


def test_full_disk_of_the_journal(server: FileServer, tmp_path: Path) -> None:
    with RemoteFile(server.address, cache=tmp_path) as file:
        journal = file._copy.entry._journal
        file._copy.entry._journal = _SmallDisk(journal, 3)
        with pytest.raises(OSError, match="no space left") as caught:
            file.read()
        assert caught.value.filename == str(tmp_path)
        file._copy.entry._journal = journal
    server.requests.clear()
    assert read_all(server, tmp_path) == server.data
    assert server.sent == 1_000_000 - FIRST


@pytest.mark.parametrize("in_cache", [True, False])
def test_file_size_limit(
    server: FileServer, tmp_path: Path, in_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            RemoteFile(server.address, cache=tmp_path if in_cache else None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path)
    assert read_all(server, tmp_path) == server.data


def test_without_a_cache_nothing_has_a_name(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with RemoteFile(server.address) as file:
        file.read(500_000)
        assert list(tmp_path.iterdir()) == []

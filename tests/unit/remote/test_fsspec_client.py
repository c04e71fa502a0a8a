"""Files that fsspec reads, of its own memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_support import no_waiting, random_bytes

from nnr_codec.remote.fsspec_client import FsspecClient
from nnr_codec.remote.remote_file import RemoteFile

memory = pytest.importorskip("fsspec.implementations.memory")
DATA = random_bytes(1_000_000)
ADDRESS = "memory://models/model.nnr"


@pytest.fixture(autouse=True)
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Put the file there; list what is read of it."""
    memory.MemoryFileSystem().pipe_file("/models/model.nnr", DATA)
    ranges: list[tuple[int, int]] = []
    read = FsspecClient.read

    def counted(client: FsspecClient, start: int, stop: int) -> bytes:
        ranges.append((start, stop))
        return read(client, start, stop)

    monkeypatch.setattr(FsspecClient, "read", counted)
    yield ranges
    memory.MemoryFileSystem.store.clear()


def replace(size: int = len(DATA)) -> bytes:
    data = random_bytes(size, seed=1)
    memory.MemoryFileSystem().pipe_file("/models/model.nnr", data)
    return data


def test_each_byte_is_read_once(reads: list[tuple[int, int]]) -> None:
    with RemoteFile(ADDRESS) as file:
        assert (file.name, file.size) == (ADDRESS, len(DATA))
        assert bytes(file.view(500_000, 600_000)) == DATA[500_000:600_000]
        assert file.read() == DATA
    assert sum(stop - start for start, stop in reads) == len(DATA)
    assert reads[:3] == [(0, 16384), (500_000, 600_000), (16384, 16384 + (1 << 18))]


def test_cache(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    with RemoteFile(ADDRESS, cache=tmp_path) as file:
        file.ensure(0, 100_000)
    with RemoteFile(ADDRESS, cache=tmp_path) as file:
        assert file.read() == DATA
    with RemoteFile(ADDRESS, cache=tmp_path) as file:
        assert file.read() == DATA
    assert sum(stop - start for start, stop in reads) == len(DATA)
    data = replace()
    with RemoteFile(ADDRESS, cache=tmp_path) as file:
        assert file.read() == data


@pytest.mark.parametrize("size", [10, len(DATA)])
def test_replaced_while_it_is_read(size: int) -> None:
    with RemoteFile(ADDRESS) as file:
        file.ensure(100_000, 200_000)
        replace(size)
        with pytest.raises(OSError, match="the file changed on the server") as caught:
            file.read()
        assert caught.value.filename == ADDRESS


def test_replaced_while_a_part_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = FsspecClient.read

    def late(client: FsspecClient, start: int, stop: int) -> bytes:
        replace()
        return read(client, start, stop)

    with RemoteFile(ADDRESS) as file:
        monkeypatch.setattr(FsspecClient, "read", late)
        with pytest.raises(OSError, match="the file changed on the server"):
            file.ensure(100_000, 200_000)
        assert file.byte_count == 16384


def test_no_such_file() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        RemoteFile("memory://models/other.nnr")
    assert caught.value.filename == "memory://models/other.nnr"


def test_folder() -> None:
    with pytest.raises(IsADirectoryError, match="is no file"):
        RemoteFile("memory://models")


def test_failures_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    no_waiting(monkeypatch)
    info, failures = memory.MemoryFileSystem.info, ["first", "second"]

    def failing(*arguments: object, **options: object) -> object:
        if failures:
            raise RuntimeError(failures.pop())
        return info(*arguments, **options)

    monkeypatch.setattr(memory.MemoryFileSystem, "info", failing)
    with RemoteFile(ADDRESS) as file:
        assert file.read() == DATA
    failures.extend("12345")
    with pytest.raises(OSError, match=r"RuntimeError: 1.*tried 5 times"):
        RemoteFile(ADDRESS)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("reference://x", "TypeError"),
        ("dir://x", "AttributeError"),
        ("simplecache://x", "ValueError"),
        ("tar://x", "IsADirectoryError: Is a directory"),
        ("zip://x::file://no/such.zip", "FileNotFoundError: No such file or directory"),
    ],
)
def test_addresses_of_which_fsspec_makes_nothing(address: str, reason: str) -> None:
    scheme = address.partition(":")[0]
    with pytest.raises(OSError, match=rf"fsspec reads nothing at {scheme}:// \({reason}") as caught:
        RemoteFile(address)
    assert caught.value.filename == address
    assert os.getcwd() not in str(caught.value)


def test_unknown_scheme() -> None:
    with pytest.raises(OSError, match="fsspec reads nothing at carrier-pigeon://"):
        RemoteFile("carrier-pigeon://models/model.nnr")


@pytest.mark.parametrize("package", ["fsspec", "s3fs"])
def test_missing_packages(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OSError, match=r"pip install nnr-codec\[remote\]"):
        RemoteFile("s3://bucket/model.nnr")

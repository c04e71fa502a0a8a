"""What a cache keeps from run to run, and what it never does."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from remote_support import Answer, FileServer, Request, no_waiting, random_bytes, read_all

from nnr_codec.remote.cache_entry import entry_name
from nnr_codec.remote.remote_file import RemoteFile

FIRST = 16384


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return no_waiting(monkeypatch)


def forget(server: FileServer) -> None:
    server.requests.clear()


def fill_partly(server: FileServer, cache: Path) -> int:
    """Let the cache have some ranges; return how many bytes these are."""
    with RemoteFile(server.address, cache=cache) as file:
        file.ensure(100_000, 300_000)
        file.ensure(600_000, 700_000)
        return file.byte_count


def journal_of(server: FileServer, cache: Path) -> Path:
    return cache / f"{entry_name(server.address)}.journal"


def in_child(run: Callable[[], object]) -> int:
    """Run in a process of its own; return its exit status."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_complete_file_is_asked_for_changes_alone(server: FileServer, tmp_path: Path) -> None:
    cache = tmp_path / "a" / "cache"
    assert read_all(server, cache) == server.data
    for _ in range(2):
        forget(server)
        assert read_all(server, cache) == server.data
        assert len(server.requests) == 1
        assert server.requests[0].headers["if-none-match"] == server.etag
        assert server.sent == 0


def test_complete_file_with_a_time_alone(server: FileServer, tmp_path: Path) -> None:
    server.etag = None
    assert read_all(server, tmp_path) == server.data
    forget(server)
    assert read_all(server, tmp_path) == server.data
    assert [request.range for request in server.requests] == [(0, 1)]
    server.replace(random_bytes(1_000_000, seed=1))  # by an older file of the same size
    server.etag, server.modified = None, formatdate(0, usegmt=True)
    assert read_all(server, tmp_path) == server.data


def test_what_has_come_is_not_asked_for_again(server: FileServer, tmp_path: Path) -> None:
    had = fill_partly(server, tmp_path)
    assert server.sent == had == FIRST + 300_000
    with RemoteFile(server.address, cache=tmp_path) as file:
        assert bytes(file.view(100_000, 300_000)) == server.data[100_000:300_000]
        assert file.byte_count == had + FIRST  # which the first request asks for
        assert file.read() == server.data
    assert server.sent == file.size
    assert server.requests[3].headers["if-range"] == server.etag


def test_killed_at_twenty_places(server: FileServer, tmp_path: Path) -> None:
    """The server waits there, so that nothing else is on its way."""

    def run(place: int) -> None:
        with RemoteFile(server.address, cache=tmp_path) as file:
            file.read(place)
            os.kill(os.getpid(), signal.SIGKILL)

    offset = random.Random(1)
    for start in range(30_000, 30_000 + 20 * 48_000, 48_000):
        place = start + offset.randrange(16_000)

        def behave(number: int, request: Request, place: int = place) -> Answer:
            return Answer(wait_after=place - (request.range or (0, 0))[0])

        server.behave = behave
        assert in_child(lambda place=place: run(place)) == signal.SIGKILL
    server.behave = lambda number, request: Answer()
    assert read_all(server, tmp_path) == server.data
    assert 1_000_000 <= server.sent <= 1_000_000 + 20 * FIRST


def test_journal_cut_anywhere(server: FileServer, tmp_path: Path) -> None:
    fill_partly(server, tmp_path)
    journal = journal_of(server, tmp_path)
    whole = journal.read_bytes()
    data = (tmp_path / entry_name(server.address)).read_bytes()
    for length in range(0, len(whole), 7):
        journal.write_bytes(whole[:length])
        (tmp_path / entry_name(server.address)).write_bytes(data)
        assert read_all(server, tmp_path) == server.data
        forget(server)
        assert read_all(server, tmp_path) == server.data
        assert server.sent == 0


def test_journal_goes_on_after_a_torn_line(server: FileServer, tmp_path: Path) -> None:
    fill_partly(server, tmp_path)
    journal = journal_of(server, tmp_path)
    journal.write_bytes(journal.read_bytes()[:-3])
    with RemoteFile(server.address, cache=tmp_path) as file:
        had = file.byte_count
        file.ensure(800_000, 810_000)
    forget(server)
    with RemoteFile(server.address, cache=tmp_path) as file:
        assert file.byte_count == had + 10_000 + FIRST


def test_file_that_is_gone(server: FileServer, tmp_path: Path) -> None:
    fill_partly(server, tmp_path)
    server.behave = lambda number, request: Answer(status=404)
    forget(server)
    with pytest.raises(FileNotFoundError):
        read_all(server, tmp_path)
    assert len(server.requests) == 1


def test_bytes_that_the_disk_lost_are_fetched_again(server: FileServer, tmp_path: Path) -> None:
    had = fill_partly(server, tmp_path)
    with open(tmp_path / entry_name(server.address), "r+b") as file:
        file.seek(650_000)
        file.write(bytes(10))
    forget(server)
    assert read_all(server, tmp_path) == server.data
    assert 0 < server.sent - (1_000_000 - had) <= 100_000


@pytest.mark.parametrize(
    "journal",
    [
        b"",
        b"\n",
        b"[]\n",
        b'{"format": 1}\n',
        b'{"format": 2, "size": 1000000}\n0 1000000 00000000\n',
        b'{"format": 1, "size": "x", "etag": "", "modified": "", "validator": ""}\ncomplete\n',
        b'{"format": 1, "size": 1000000, "etag": 5, "modified": "", "validator": ""}\ncomplete\n',
        b"\xff" * 100,
        b"[" * 100_000 + b"\n",
    ],
    ids=range(9),
)
def test_other_journals_say_nothing(server: FileServer, tmp_path: Path, journal: bytes) -> None:
    journal_of(server, tmp_path).write_bytes(journal)
    (tmp_path / entry_name(server.address)).write_bytes(bytes(1_000_000))
    assert read_all(server, tmp_path) == server.data
    assert server.sent == 1_000_000


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("size", [5, 50_000, 1_000_000, 1_200_000])
def test_changed_file_is_fetched_anew(
    server: FileServer, tmp_path: Path, complete: bool, size: int
) -> None:
    read_all(server, tmp_path) if complete else fill_partly(server, tmp_path)
    server.replace(random_bytes(size, seed=1))
    forget(server)
    assert read_all(server, tmp_path) == server.data
    assert len(server.requests) <= 3
    forget(server)
    assert read_all(server, tmp_path) == server.data
    assert server.sent == 0


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_changed_file_though_the_server_ignores_conditions(
    server: FileServer, tmp_path: Path, size: int
) -> None:
    fill_partly(server, tmp_path)
    server.replace(random_bytes(size, seed=1))

    def behave(number: int, request: Request) -> Answer:
        request.headers.pop("if-range", None)
        return Answer()

    server.behave = behave
    assert read_all(server, tmp_path) == server.data


def test_without_tag_and_time_nothing_is_kept(server: FileServer, tmp_path: Path) -> None:
    read_all(server, tmp_path)  # of which something is
    server.etag = server.modified = None
    server.data = random_bytes(1_000_000, seed=1)
    for _ in range(2):
        forget(server)
        assert read_all(server, tmp_path) == server.data
        assert server.sent >= 1_000_000
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_without_a_server_there_is_no_answer(server: FileServer, tmp_path: Path) -> None:
    """Rather than a file that may be an old one."""
    read_all(server, tmp_path)
    server.behave = lambda number, request: Answer(status=503)
    with pytest.raises(OSError, match="503"):
        read_all(server, tmp_path)
    server.behave = lambda number, request: Answer()
    forget(server)
    assert read_all(server, tmp_path) == server.data
    assert server.sent == 0


def test_second_reader_works_without_the_cache(server: FileServer, tmp_path: Path) -> None:
    with (
        RemoteFile(server.address, cache=tmp_path) as first,
        RemoteFile(server.address, cache=tmp_path) as second,
    ):
        assert second.read(500_000) == server.data[:500_000]
        assert first.read() == server.data
        assert second.read() == server.data[500_000:]
    forget(server)
    assert read_all(server, tmp_path) == server.data
    assert server.sent == 0


def test_complete_file_has_many_readers(server: FileServer, tmp_path: Path) -> None:
    read_all(server, tmp_path)
    forget(server)
    with RemoteFile(server.address, cache=tmp_path) as first:
        assert in_child(lambda: os._exit(read_all(server, tmp_path) != server.data)) == 0
        assert first.read() == server.data
        assert server.sent == 0
        server.replace(random_bytes(1_000_000, seed=1))
        assert read_all(server, tmp_path) == server.data  # in no place of theirs
        first.seek(0)
        assert first.read() == random_bytes(1_000_000)


def test_views_survive_that_the_entry_is_replaced(server: FileServer, tmp_path: Path) -> None:
    with RemoteFile(server.address, cache=tmp_path) as file:
        view = file.view(0, file.size)
    server.replace(random_bytes(10, seed=1))
    assert read_all(server, tmp_path) == server.data
    assert view == random_bytes(1_000_000)


def test_folder_that_is_none(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(FileExistsError) as caught:
        RemoteFile(server.address, cache=path)
    assert caught.value.filename == str(path)
    assert server.requests == []


def test_names_of_entries() -> None:
    names = [entry_name(f"https://host/a/model v2.nnr?key={key}") for key in "ab"]
    assert names[0] != names[1]
    assert all(name.endswith("-model_v2.nnr") and "key" not in name for name in names)
    assert len(entry_name("https://host/" + "x" * 500)) < 100
    assert entry_name("https://u:p@host") != entry_name("https://host")

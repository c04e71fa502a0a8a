"""A file that is closed while a thread waits for its server: the thread waits no more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from remote_support import Answer, FileServer, Request, read_all, wait_for_bytes

from nnr_codec.remote import opening
from nnr_codec.remote.local_copy import LocalCopy
from nnr_codec.remote.remote_file import RemoteFile
from nnr_codec.remote.shutdown import Shutdown

FIRST = 16384
SOON = 8  # seconds, before the server of a test gives up, and long before we would


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What ends the waiting of the server, at the end of the test if not before."""
    event = threading.Event()
    yield event
    event.set()


Behave = Callable[[int, Request], Answer]


def stalling(place: str, reached: threading.Event, release: threading.Event) -> Behave:
    """Return the behaviour of a server that answers the first request, and stalls in the next."""

    def behave(number: int, request: Request) -> Answer:
        if number == 0:
            return Answer()
        reached.set()
        if place == "before the answer":
            release.wait()
        if place == "between tries":
            return Answer(status=503, headers={"Retry-After": "9"})
        if place == "at the end of the connection":
            headers: dict[str, str | None] = {"Connection": "close"}
            return Answer(wait_after=50_000, go_on=release, headers=headers)
        return Answer(wait_after=50_000, go_on=release)

    return behave


PLACES = ["before the answer", "in the answer", "at the end of the connection", "between tries"]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a thread waits for the next try."""
    event, wait = threading.Event(), Shutdown.wait

    def noticed(shutdown: Shutdown, seconds: float) -> None:
        event.set()
        wait(shutdown, seconds)

    monkeypatch.setattr(Shutdown, "wait", noticed)
    return event


@pytest.fixture
def fetch(
    server: FileServer,
    thread: ThreadPoolExecutor,
    release: threading.Event,
    pauses: threading.Event,
) -> Callable[[RemoteFile, str], Future[Any]]:
    """Let a thread fetch, and return when it waits for the server at a place."""

    def fetching(file: RemoteFile, place: str) -> Future[Any]:
        reached = threading.Event()
        server.behave = stalling(place, reached, release)
        future = thread.submit(file.ensure, 0, file.size)
        assert reached.wait(SOON)
        if place == "between tries":
            assert pauses.wait(SOON)
        elif place != "before the answer":
            wait_for_bytes(file, FIRST + 50_000)
        return future

    return fetching


@pytest.mark.parametrize("place", PLACES)
def test_the_thread_stops(
    server: FileServer,
    thread: ThreadPoolExecutor,
    fetch: Callable[[RemoteFile, str], Future[Any]],
    release: threading.Event,
    place: str,
) -> None:
    file = RemoteFile(server.address)
    fetching = fetch(file, place)
    behind = thread.submit(file.view, 900_000, 900_001)
    thread.submit(file.close).result(SOON)
    for future in (fetching, behind):
        with pytest.raises(ValueError, match=r"model\.nnr: the file is closed"):
            future.result(SOON)
    assert not release.is_set()


@pytest.mark.parametrize("place", ["before the answer", "in the answer"])
def test_what_has_come_stays_in_the_cache(
    server: FileServer,
    fetch: Callable[[RemoteFile, str], Future[Any]],
    place: str,
    tmp_path: Path,
) -> None:
    file = RemoteFile(server.address, cache=tmp_path)
    fetching = fetch(file, place)
    present = file.byte_count
    file.close()
    assert isinstance(fetching.exception(SOON), ValueError)
    server.requests.clear()
    server.behave = lambda number, request: Answer()
    assert read_all(server, tmp_path) == server.data
    assert server.requests[0].range == (present, present + FIRST)


def test_nothing_is_closed_while_a_piece_is_written(
    server: FileServer,
    thread: ThreadPoolExecutor,
    release: threading.Event,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reached = threading.Event()
    write = LocalCopy.write

    def slow(copy: LocalCopy, start: int, data: bytes) -> int:
        reached.set()
        assert release.wait(SOON)
        return write(copy, start, data)

    file = RemoteFile(server.address, cache=tmp_path)
    monkeypatch.setattr(LocalCopy, "write", slow)
    fetching = thread.submit(file.ensure, 0, file.size)
    assert reached.wait(SOON)
    file.close()
    release.set()
    with pytest.raises(ValueError, match=r"model\.nnr: the file is closed"):
        fetching.result(SOON)
    server.requests.clear()
    assert read_all(server, tmp_path) == server.data
    assert server.requests[0].range is not None
    assert server.requests[0].range[0] > FIRST


@pytest.mark.parametrize("place", ["before the answer", "between tries"])
def test_the_first_request_stops(
    server: FileServer,
    thread: ThreadPoolExecutor,
    release: threading.Event,
    place: str,
    pauses: threading.Event,
) -> None:
    reached, shutdown = threading.Event(), Shutdown()
    behave = stalling(place, reached, release)
    server.behave = lambda number, request: behave(1, request)
    opening_it = thread.submit(RemoteFile, server.address, shutdown=shutdown)
    assert (pauses if place == "between tries" else reached).wait(SOON)
    shutdown.begin()
    with pytest.raises(ValueError, match="the file is closed"):
        opening_it.result(SOON)
    requests = len(server.requests)
    with pytest.raises(ValueError, match="the file is closed"):
        RemoteFile(server.address, shutdown=shutdown)
    assert len(server.requests) == requests


def test_a_connection_that_comes_too_late_is_shut(server: FileServer) -> None:
    shutdown = Shutdown()
    client = opening.client_of(server.address, shutdown)
    shutdown.begin()
    with pytest.raises(Exception, match=r"Connection aborted|Broken pipe"):
        client.open(0, 10)
    client.close()

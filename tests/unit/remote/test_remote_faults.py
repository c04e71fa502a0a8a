"""Networks that break, servers that err or lie: the right bytes, or a clear error."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from threading import Semaphore
from time import sleep, time
from typing import Any

import pytest
from remote_support import (
    Answer,
    FileServer,
    Request,
    no_waiting,
    random_bytes,
    read_all,
    refusal,
    serving,
)

from nnr_codec.remote import http_client
from nnr_codec.remote.http_client import HttpClient
from nnr_codec.remote.local_copy import LocalCopy
from nnr_codec.remote.remote_file import RemoteFile

FIRST = 16384
SIZE = 100_000
DATA = random_bytes(SIZE)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return no_waiting(monkeypatch)


def cut_once(position: int) -> Callable[[int, Request], Answer]:
    """Return the behaviour of a network that breaks once, before that byte of the file."""
    broken: list[bool] = []

    def behave(number: int, request: Request) -> Answer:
        start, stop = request.range or (0, SIZE)
        if not broken and start <= position < stop:
            broken.append(True)
            return Answer(cut_after=position - start)
        return Answer()

    return behave


def test_cut_at_every_percent() -> None:
    with serving(DATA) as server:
        for position in range(0, SIZE, SIZE // 100):
            server.requests.clear()
            server.behave = cut_once(position)
            assert read_all(server) == DATA
            assert server.sent == SIZE  # no byte twice
            assert len(server.requests) == 3


def test_cut_at_every_percent_without_ranges() -> None:
    with serving(DATA) as server:
        server.has_ranges = False
        for position in range(0, SIZE, SIZE // 100):
            server.requests.clear()
            broken = cut_once(position)
            server.behave = lambda number, request, broken=broken: broken(
                number, Request(request.path, {})
            )
            assert read_all(server) == DATA
            assert server.sent == SIZE + position


def test_twenty_random_cuts_move_nothing_twice(server: FileServer) -> None:
    lengths = random.Random(1)
    server.behave = lambda number, request: Answer(
        cut_after=lengths.randrange(80_000) if number < 20 else None
    )
    assert read_all(server) == server.data
    assert server.sent <= len(server.data) + 20 * FIRST
    assert len(server.requests) > 20


def test_no_byte_in_five_tries_is_the_end(server: FileServer, waits: list[float]) -> None:
    server.behave = lambda number, request: Answer(cut_after=0) if number else Answer()
    reason = refusal(server)
    assert "tried 5 times without a new byte" in reason
    assert f"{FIRST} of 1000000 bytes have come" in reason
    assert len(server.requests) == 1 + 5
    assert 0 < sum(waits) <= 10


def test_one_new_byte_is_enough_to_go_on() -> None:
    with serving(DATA[: FIRST + 30]) as server:
        server.behave = lambda number, request: Answer(cut_after=1) if number else Answer()
        assert read_all(server) == server.data
        assert len(server.requests) == 1 + 30


def test_nobody_answers(waits: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/m.nnr"
        with pytest.raises(OSError, match=r"refused.*tried 5 times.*nothing has come"):
            RemoteFile(address)
    assert sum(waits) <= 10


def test_silent_server(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "READ_SECONDS", 0.05)
    silent = Answer(wait_after=0)
    server.behave = lambda number, request: silent
    assert "timed out" in refusal(server)
    silent.go_on.set()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, FileNotFoundError),
        (410, FileNotFoundError),
        (403, PermissionError),
        (401, PermissionError),
        (400, OSError),
        (501, OSError),
    ],
)
def test_what_trying_again_cannot_cure(
    server: FileServer, status: int, kind: type[OSError], waits: list[float]
) -> None:
    server.behave = lambda number, request: Answer(status=status)
    assert f"the server answers {status}" in refusal(server, kind)
    assert (len(server.requests), waits) == (1, [])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_busy_then_fine(server: FileServer, status: int, waits: list[float]) -> None:
    server.fail_first(3, Answer(status=status))
    assert read_all(server) == server.data
    assert waits == [0, 1, 2]


def test_always_busy(server: FileServer, waits: list[float]) -> None:
    server.behave = lambda number, request: Answer(status=503)
    assert "503 Service Unavailable (tried 5 times" in refusal(server)
    assert sum(waits) <= 10


def test_server_says_how_long_to_wait(server: FileServer, waits: list[float]) -> None:
    server.fail_first(1, Answer(status=429, headers={"Retry-After": "7"}))
    assert read_all(server) == server.data
    assert waits == [7]


def in_an_hour() -> str:
    return formatdate(time() + 3600, usegmt=True)


@pytest.mark.parametrize("when", [lambda: "3600", in_an_hour], ids=["seconds", "date"])
def test_server_asks_to_wait_too_long(
    server: FileServer, when: Callable[[], str], waits: list[float]
) -> None:
    server.behave = lambda number, request: Answer(status=503, headers={"Retry-After": when()})
    reason = refusal(server)
    assert "it asks to wait 3" in reason
    assert "tried once" in reason
    assert waits == []


IMPOSSIBLE = "Mon, 01 Jan 2020 00:00:00 +99999999999999999999"


def test_impossible_time_to_wait_for(server: FileServer, waits: list[float]) -> None:
    server.fail_first(1, Answer(status=503, headers={"Retry-After": IMPOSSIBLE}))
    assert read_all(server) == server.data
    assert waits == [0]


def test_impossible_time_is_no_tag(server: FileServer) -> None:
    server.etag, server.modified = None, IMPOSSIBLE
    assert read_all(server) == server.data
    assert all("if-range" not in request.headers for request in server.requests)


def test_redirect_is_followed(server: FileServer) -> None:
    def behave(number: int, request: Request) -> Answer:
        return Answer(location="/elsewhere") if request.path != "/elsewhere" else Answer()

    server.behave = behave
    assert read_all(server) == server.data


def test_circle_of_redirects(server: FileServer) -> None:
    server.behave = lambda number, request: Answer(location=request.path)
    assert "redirect" in refusal(server)


def test_redirect_to_what_is_not_http(server: FileServer) -> None:
    server.behave = lambda number, request: Answer(location="file:///etc/passwd")
    assert "cannot be read" in refusal(server)


def test_password_goes_to_its_host_alone(server: FileServer) -> None:
    with serving(DATA) as other:
        address = server.address.replace("http://", "http://me:s%40crt@")
        server.fail_first(1, Answer(location=other.address))
        with RemoteFile(address) as file:
            assert file.name == server.address
        assert server.requests[0].headers["authorization"] == "Basic bWU6c0BjcnQ="
        assert "authorization" not in other.requests[0].headers


def test_proxy_of_the_environment(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{server.server_port}")
    with RemoteFile("http://models.invalid/m.nnr") as file:
        assert file.read() == server.data
    assert server.requests[0].path == "http://models.invalid/m.nnr"
    assert server.requests[0].headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"


def test_after_an_error_reading_can_go_on(server: FileServer) -> None:
    with RemoteFile(server.address) as file:
        server.behave = lambda number, request: Answer(status=503)
        for _ in range(3):
            with pytest.raises(OSError, match="tried 5 times"):
                file.read()
        server.behave = lambda number, request: Answer()
        assert file.read() == server.data


def test_waiting_threads_do_not_try_again(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = Semaphore(0)
    first_gap = LocalCopy.first_gap

    def counted(copy: LocalCopy, start: int, stop: int) -> Any:
        arrived.release()
        return first_gap(copy, start, stop)

    with RemoteFile(server.address) as file, ThreadPoolExecutor(8) as pool:
        server.behave = lambda number, request: Answer(status=503)
        monkeypatch.setattr(LocalCopy, "first_gap", counted)
        with file._lock:
            starts = range(100_000, 900_000, 100_000)
            calls = [pool.submit(file.ensure, start, start + 1) for start in starts]
            for _ in calls:
                arrived.acquire()
            sleep(0.02)  # from there to the lock
        for call in calls:
            with pytest.raises(OSError, match="tried 5 times") as caught:
                call.result()
            assert caught.value.filename == server.address
    assert len(server.requests) == 1 + 5


@pytest.mark.parametrize("address", ["http://", "http://[::1/m.nnr", "http://host:x/m.nnr"])
def test_bad_addresses(address: str) -> None:
    with pytest.raises(OSError, match=r"address|No host|cannot be read"):
        RemoteFile(address)


def test_errors_close_everything(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[HttpClient] = []
    monkeypatch.setattr(HttpClient, "close", lambda client: closed.append(client))
    server.behave = lambda number, request: Answer(status=404)
    with pytest.raises(FileNotFoundError):
        RemoteFile(server.address)
    assert len(closed) == 1

"""What a remote file gives, and what it asks the server for."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from remote_support import Answer, FileServer, random_bytes, serving
from urllib3 import HTTPResponse

from nnr_codec.remote.local_copy import LocalCopy
from nnr_codec.remote.remote_file import RemoteFile

FIRST = 16384


def asked(server: FileServer) -> list[tuple[int, int] | None]:
    return [request.range for request in server.requests]


def test_small_file_needs_one_request() -> None:
    data = random_bytes(FIRST)
    with serving(data) as server, RemoteFile(server.address) as file:
        assert (file.size, file.read(), file.name) == (FIRST, data, server.address)
        assert asked(server) == [(0, FIRST)]
        assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("has_ranges", [True, False])
def test_empty_file(has_ranges: bool) -> None:
    with serving(b"") as server:
        server.has_ranges = has_ranges
        with RemoteFile(server.address) as file:
            assert (file.size, file.read(), bytes(file.view(0, 0))) == (0, b"", b"")


def test_forward_reading_is_one_more_request(server: FileServer) -> None:
    with RemoteFile(server.address) as file:
        pieces = []
        while piece := file.read(10_000):
            pieces.append(piece)
        assert b"".join(pieces) == server.data
        assert file.tell() == file.size
        assert asked(server) == [(0, FIRST), (FIRST, file.size)]
        file.seek(0)
        assert file.read() == server.data
        assert server.sent == file.size


def test_views_ask_for_what_they_need(server: FileServer) -> None:
    with RemoteFile(server.address) as file:
        assert bytes(file.view(100, 200)) == server.data[100:200]
        assert bytes(file.view(500_000, 500_100)) == server.data[500_000:500_100]
        assert bytes(file.view(499_000, 501_000)) == server.data[499_000:501_000]
        # What is not expected comes with what is behind it, as headers are looked at bit by bit.
        assert asked(server) == [(0, FIRST), (500_000, 500_000 + FIRST), (499_000, 500_000)]
        assert file.byte_count == server.sent == 2 * FIRST + 1000
        with pytest.raises(TypeError):
            file.view(0, 1)[0] = 1


def test_reading_goes_around_what_is_there(server: FileServer) -> None:
    with RemoteFile(server.address) as file:
        file.ensure(500_000, 600_000)
        assert file.read() == server.data
        assert server.sent == file.size


def test_after_a_seek_little_is_read_ahead(server: FileServer) -> None:
    with RemoteFile(server.address) as file:
        file.seek(-500_000, io.SEEK_END)
        assert file.read(2) == server.data[500_000:500_002]
        assert asked(server)[1:] == [(500_000, 500_000 + FIRST)]
        file.seek(2 * FIRST, io.SEEK_CUR)
        file.read(FIRST)
        assert file.read(5) == server.data[500_002 + 3 * FIRST :][:5]
        assert asked(server)[3:] == [(500_002 + 3 * FIRST, file.size)]


def test_expected_ranges_come_in_few_requests(server: FileServer) -> None:
    ranges = [(100_000, 110_000), (110_000, 120_000), (130_000, 140_000), (700_000, 710_000)]
    with RemoteFile(server.address) as file:
        file.expect(ranges)
        assert len(server.requests) == 1
        for start, stop in ranges:
            assert bytes(file.view(start, stop)) == server.data[start:stop]
        assert asked(server)[1:] == [(100_000, 140_000), (700_000, 710_000)]


def test_expected_ranges_in_another_order_are_not_joined(server: FileServer) -> None:
    ranges = [(700_000, 710_000), (100_000, 110_000), (90_000, 100_000)]
    with RemoteFile(server.address) as file:
        file.expect(ranges)
        for start, stop in ranges:
            file.ensure(start, stop)
        assert asked(server)[1:] == ranges


def test_later_expected_range_is_reached_by_reading_on(server: FileServer) -> None:
    with RemoteFile(server.address) as file:
        file.expect([(100_000, 400_000), (400_000, 800_000)])
        file.ensure(100_000, 100_001)
        file.ensure(700_000, 800_000)
        file.ensure(100_000, 800_000)
        assert asked(server)[1:] == [(100_000, 800_000)]


def test_expected_range_with_parts_that_are_there(server: FileServer) -> None:
    with RemoteFile(server.address) as file:
        file.ensure(300_000, 400_000)
        file.expect([(0, file.size)])
        assert bytes(file.view(800_000, 900_000)) == server.data[800_000:900_000]
        file.ensure(0, file.size)
        assert asked(server)[2:] == [(FIRST, 300_000), (400_000, file.size)]


def test_bytes_can_be_used_before_the_rest_comes(server: FileServer) -> None:
    rest = Answer(wait_after=100_000)
    server.behave = lambda number, request: rest if number else Answer()
    with RemoteFile(server.address) as file:
        file.expect([(0, file.size)])
        assert bytes(file.view(50_000, 100_000)) == server.data[50_000:100_000]
        file.seek(20_000)
        assert file.read(30_000) == server.data[20_000:50_000]
        assert not rest.go_on.is_set()
        rest.go_on.set()
        assert file.read() == server.data[50_000:]
        assert asked(server)[1:] == [(FIRST, file.size)]  # in the order that was told
        assert server.sent == file.size
        assert server.sent == file.size


def test_what_is_there_does_not_wait_for_other_threads(server: FileServer) -> None:
    rest = Answer(wait_after=100_000)
    server.behave = lambda number, request: rest if number else Answer()
    with RemoteFile(server.address) as file, ThreadPoolExecutor(1) as pool:
        file.ensure(FIRST, 50_000)
        waiting = pool.submit(file.view, 500_000, 900_000)
        assert bytes(file.view(0, 50_000)) == server.data[:50_000]
        rest.go_on.set()
        assert bytes(waiting.result()) == server.data[500_000:900_000]


def test_threads_share_what_comes(server: FileServer) -> None:
    with RemoteFile(server.address) as file, ThreadPoolExecutor(8) as pool:
        file.expect([(0, file.size)])
        starts = [*range(0, file.size, 10_000)] * 3
        views = pool.map(lambda start: file.view(start, start + 10_000), starts)
        for start, view in zip(starts, views, strict=True):
            assert view == server.data[start : start + 10_000]
        assert server.sent == file.size


def test_progress_is_told(server: FileServer) -> None:
    amounts: list[int] = []
    with RemoteFile(server.address, progress=amounts.append) as file:
        assert sum(amounts) == FIRST
        file.read()
    assert sum(amounts) == len(server.data)


def test_connection_is_reused(server: FileServer) -> None:
    ports = set()
    handle = server.process_request

    def count(request: object, client: tuple[str, int]) -> None:
        ports.add(client[1])
        handle(request, client)  # type: ignore[arg-type]

    server.process_request = count  # type: ignore[assignment, method-assign]
    with RemoteFile(server.address) as file:
        for start in range(100_000, 200_000, 20_000):
            file.ensure(start, start + 10)
    assert (len(server.requests), len(ports)) == (6, 1)


def test_like_any_binary_file(server: FileServer) -> None:
    with RemoteFile(server.address) as file:
        buffered = io.BufferedReader(file, 1 << 16)
        assert buffered.read(10) == server.data[:10]
        buffered.seek(-10, io.SEEK_END)
        assert buffered.read() == server.data[-10:]
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert file.seek(file.size + 5) == file.size + 5
        assert file.read(1) == b""
        with pytest.raises(ValueError, match="no position"):
            file.seek(-1)
        with pytest.raises(ValueError, match="no such whence: 7"):
            file.seek(0, 7)


def test_views_outlive_the_file(server: FileServer) -> None:
    with RemoteFile(server.address) as file:
        view = file.view(100_000, 200_000)
    assert view == server.data[100_000:200_000]
    for use in (file.read, lambda: file.view(0, 1), lambda: file.expect([])):
        with pytest.raises(ValueError, match="closed"):
            use()
    file.close()  # once more


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 1_000_001)])
def test_no_bytes_outside_the_file(server: FileServer, start: int, stop: int) -> None:
    with RemoteFile(server.address) as file:
        for use in (file.view, file.ensure, lambda *pair: file.expect([pair])):
            with pytest.raises(ValueError, match="no bytes"):
                use(start, stop)


@pytest.mark.parametrize("place", ["in the network", "in the copy"])
def test_interrupted_reading_goes_on(
    server: FileServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come between a piece's arrival and its place in the copy."""

    def interrupted(arrive: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            arrive(*arguments)
            raise KeyboardInterrupt

        return call

    kind, method = (HTTPResponse, "read1") if place == "in the network" else (LocalCopy, "write")
    with RemoteFile(server.address) as file:
        file.expect([(0, file.size)])
        file.ensure(FIRST, FIRST + 1)
        with monkeypatch.context() as patch:
            patch.setattr(kind, method, interrupted(getattr(kind, method)))
            with pytest.raises(KeyboardInterrupt):
                file.ensure(0, file.size)
        assert file.read() == server.data


def test_closing_does_not_hang(server: FileServer) -> None:
    rest = Answer(wait_after=100_000)
    server.behave = lambda number, request: rest if number else Answer()
    with RemoteFile(server.address) as file:
        file.ensure(0, 90_000)
    rest.go_on.set()
    assert threading.active_count() < 50

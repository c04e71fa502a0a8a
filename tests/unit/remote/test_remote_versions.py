"""Servers without ranges, files that change, and answers that contradict themselves."""

from __future__ import annotations

import errno
import tempfile
from email.utils import formatdate
from time import time

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

from nnr_codec.remote.remote_file import RemoteFile

FIRST = 16384
SIZE = 100_000
DATA = random_bytes(SIZE)
MINUTE_AGO = formatdate(time() - 60, usegmt=True)


@pytest.fixture(autouse=True)
def _waits(monkeypatch: pytest.MonkeyPatch) -> None:
    no_waiting(monkeypatch)


def test_server_without_ranges(server: FileServer) -> None:
    server.has_ranges = False
    with RemoteFile(server.address) as file:
        assert bytes(file.view(500_000, 600_000)) == server.data[500_000:600_000]
        assert bytes(file.view(10, 20)) == server.data[10:20]
        assert file.read() == server.data
    assert len(server.requests) == 1


def test_server_that_only_says_it_has_ranges(server: FileServer) -> None:
    server.has_ranges = False
    server.behave = lambda number, request: Answer(headers={"Accept-Ranges": "bytes"})
    with RemoteFile(server.address) as file:
        assert bytes(file.view(500_000, 600_000)) == server.data[500_000:600_000]
        assert file.read() == server.data


@pytest.mark.parametrize("tag", ["etag", "time", "none"])
@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("size", [SIZE, SIZE // 2, 2 * SIZE])
def test_replaced_between_two_requests(tag: str, has_ranges: bool, size: int) -> None:
    with serving(DATA) as server:
        server.has_ranges = has_ranges
        server.etag = server.etag if tag == "etag" else None
        server.modified = None if tag == "none" else server.modified

        def behave(number: int, request: Request) -> Answer:
            if number == 0:
                return Answer(cut_after=None if has_ranges else 20_000)
            etag, server.modified = server.etag, server.modified and MINUTE_AGO
            server.replace(random_bytes(size, seed=2))
            server.etag = etag and server.etag
            return Answer()

        server.behave = behave
        reason = refusal(server)
        assert "the file changed on the server" in reason
        assert "try again" in reason


def test_server_that_ignores_the_condition_on_ranges() -> None:
    with serving(DATA) as server:
        first = server.etag

        def behave(number: int, request: Request) -> Answer:
            if number == 1:
                server.replace(random_bytes(SIZE, seed=2))
                request.headers.pop("if-range")
            return Answer()

        server.behave = behave
        assert "the file changed on the server" in refusal(server)
        assert server.etag != first


def test_tagless_file_is_read_by_one_answer_that_fits_what_came() -> None:
    """Nothing else tells that two answers are of the same version."""
    with serving(DATA) as server:
        server.etag = server.modified = None
        assert read_all(server) == DATA
        assert [request.range for request in server.requests] == [(0, FIRST), (0, SIZE)]


def test_time_of_this_second_is_no_tag() -> None:
    with serving(DATA) as server:
        server.etag, server.modified = None, formatdate(usegmt=True)
        assert read_all(server) == DATA
        assert [request.range for request in server.requests] == [(0, FIRST), (0, SIZE)]


def test_weak_tag_is_not_sent_back() -> None:
    with serving(DATA) as server:
        server.etag = 'W/"1"'
        assert read_all(server) == DATA
        assert server.requests[1].headers["if-range"] == server.modified


def test_too_long_a_length_without_ranges() -> None:
    with serving(DATA) as server:
        server.has_ranges = False
        server.behave = lambda number, request: Answer(
            headers={"Content-Length": str(SIZE + 1), "Connection": "close"}, cut_after=SIZE
        )
        assert f"{SIZE} of {SIZE + 1} bytes have come" in refusal(server)


def test_too_short_a_length_without_ranges() -> None:
    """Nobody can know: it is a file of that length, and its decoder says that it is cut off."""
    with serving(DATA) as server:
        server.has_ranges = False
        server.behave = lambda number, request: Answer(headers={"Content-Length": str(SIZE - 1)})
        assert read_all(server) == DATA[:-1]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Content-Length": str(FIRST + 1)}, "announces 16385 bytes for a part of 16384"),
        ({"Content-Length": str(FIRST - 1)}, "announces 16383 bytes for a part of 16384"),
        ({"Content-Range": "bytes 1-16384/100000"}, "answers with bytes 1-16384/100000 where 0-"),
        ({"Content-Range": "bytes 0-99999/100000"}, "answers with bytes 0-99999/100000 where 0-"),
        ({"Content-Range": "bytes 0-16383/100"}, "answers with bytes 0-16383/100 where 0-"),
        ({"Content-Range": "bytes 0-16383/*"}, "a part of unknown place"),
        ({"Content-Range": None}, "a part of unknown place"),
        ({"Content-Encoding": "gzip"}, "compresses"),
    ],
)
def test_contradictions(headers: dict[str, str | None], reason: str) -> None:
    with serving(DATA) as server:
        server.behave = lambda number, request: Answer(headers=headers)
        assert reason in refusal(server)
        assert len(server.requests) == 1


def test_no_length_at_all() -> None:
    with serving(DATA) as server:
        server.has_ranges = False
        server.behave = lambda number, request: Answer(
            headers={"Content-Length": None, "Connection": "close"}
        )
        assert "does not say how long the file is" in refusal(server)


def test_sparse_copy_of_an_absurd_size() -> None:
    with serving(DATA) as server:
        size = 10**18 - 1
        server.behave = lambda number, request: Answer(
            headers={"Content-Range": f"bytes 0-{FIRST - 1}/{size}"}
        )
        numbers = {errno.EFBIG, errno.ENOSPC, errno.EINVAL}
        with pytest.raises(OSError, match=r"too large|space|Invalid") as caught:
            RemoteFile(server.address)
        assert caught.value.errno in numbers
        assert caught.value.filename == tempfile.gettempdir()

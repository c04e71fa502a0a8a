"""A server on this machine whose faults a test chooses, and which counts what it sends."""

from __future__ import annotations

import email.utils
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from nnr_codec.remote.remote_file import RemoteFile
from nnr_codec.remote.shutdown import Shutdown

YESTERDAY = email.utils.formatdate(time.time() - 86400, usegmt=True)


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@dataclass
class Answer:
    """What the server does with one request.

    Attributes:
        status: of a failure; None: the file.
        headers: put in place of the usual ones; None as a value leaves one out.
        cut_after: bytes of the body after which the connection is reset.
        wait_after: bytes of the body after which it waits for `go_on`; in vain, it sends no more.
        location: where the request is redirected to.
    """

    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    cut_after: int | None = None
    wait_after: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    location: str | None = None


@dataclass
class Request:
    """A request as it came: its path and headers, and how many bytes of a body it got."""

    path: str
    headers: dict[str, str]
    sent: int = 0

    @property
    def range(self) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1) if match else None


class FileServer(ThreadingHTTPServer):
    """Serves one file at every path.

    Attributes:
        data: the file.
        etag: its tag; None for none. modified: its time; None for none.
        has_ranges: whether parts can be asked for.
        behave: given the number of a request and the request, returns what to do.
        requests: all that came.
    """

    daemon_threads = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.modified: str | None = YESTERDAY
        self.has_ranges = True
        self.behave: Callable[[int, Request], Answer] = lambda number, request: Answer()
        self.requests: list[Request] = []
        self.counting = threading.Lock()
        self.replace(data)

    def replace(self, data: bytes) -> None:
        self.data = data
        self.etag: str | None = f'"{hashlib.sha256(data).hexdigest()[:16]}"'

    def fail_first(self, count: int, answer: Answer) -> None:
        """Let the first requests get an answer, and the others the file."""
        self.behave = lambda number, request: answer if number < count else Answer()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/model.nnr"

    @property
    def sent(self) -> int:
        """Bytes of bodies sent so far."""
        return sum(request.sent for request in self.requests)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of readers that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers)
        with self.server.counting:
            number = len(self.server.requests)
            self.server.requests.append(request)
        answer = self.server.behave(number, request)
        if answer.location is not None:
            self._send(302, {"Location": answer.location, "Content-Length": "0"}, answer)
        elif answer.status is not None:
            self._send(answer.status, {"Content-Length": "0"}, answer)
        else:
            self._send_file(request, answer)

    def _send_file(self, request: Request, answer: Answer) -> None:
        data, server = self.server.data, self.server
        tags = {"ETag": server.etag, "Last-Modified": server.modified}
        headers = {name: value for name, value in tags.items() if value is not None}
        if request.headers.get("if-none-match", "") == server.etag:
            self._send(304, headers, answer)
            return
        status, start, stop = 200, 0, len(data)
        same = request.headers.get("if-range") in (None, server.etag, server.modified)
        if server.has_ranges:
            headers["Accept-Ranges"] = "bytes"
            if request.range is not None and same:
                status, start, stop = 206, request.range[0], min(request.range[1], len(data))
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                if start >= len(data):
                    headers["Content-Range"] = f"bytes */{len(data)}"
                    status, start, stop = 416, 0, 0
        headers["Content-Length"] = str(stop - start)
        self._send(status, headers, answer)
        self._send_body(data[start:stop], request, answer)

    def _send(self, status: int, headers: dict[str, str], answer: Answer) -> None:
        self.send_response(status)
        for name, value in (headers | answer.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _send_body(self, body: bytes, request: Request, answer: Answer) -> None:
        cut = min(len(body), len(body) if answer.cut_after is None else answer.cut_after)
        pause = cut if answer.wait_after is None else min(cut, max(0, answer.wait_after))
        self._write(body[:pause], request)
        if answer.wait_after is not None and pause < len(body) and not answer.go_on.wait(10):
            return
        self._write(body[pause:cut], request)
        if answer.cut_after is not None:
            self._reset()

    def _write(self, data: bytes, request: Request) -> None:
        request.sent += len(data)  # before a reader can have them
        self.wfile.write(data)

    def _reset(self) -> None:
        """End the connection as a broken network does, but after what was sent."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the time between tries pass at once; return the seconds that would have been waited."""
    waits: list[float] = []
    monkeypatch.setattr(Shutdown, "wait", lambda shutdown, seconds: waits.append(seconds))
    return waits


@contextmanager
def serving(data: bytes) -> Iterator[FileServer]:
    server = FileServer(data)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait_for_bytes(file: RemoteFile, count: int) -> None:
    """Return when so many bytes of a file are there, which another thread fetches."""
    end = time.monotonic() + 60
    while file.byte_count < count:
        assert time.monotonic() < end
        time.sleep(0.001)


def read_all(server: FileServer, cache: Path | None = None) -> bytes:
    with RemoteFile(server.address, cache=cache) as file:
        return file.read()


def refusal(server: FileServer, kind: type[OSError] = OSError) -> str:
    """Return the reason for which the file cannot be read; the error names it."""
    with pytest.raises(kind) as caught:
        read_all(server)
    assert caught.value.filename == server.address
    return str(caught.value.strerror)

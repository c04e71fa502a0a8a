"""A server on this machine that speaks as much of the Hub's protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves the files of a folder as the repository `org/name`, at one commit.

    Attributes:
        requests: method and path of all that came.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[tuple[str, str]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> set[str]:
        """Return the names of the files that were fetched."""
        start = f"/org/name/resolve/{COMMIT}/"
        return {p.removeprefix(start) for m, p in self.requests if m == "GET" and start in p}


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        names = sorted(p.name for p in self.server.folder.iterdir())
        if path.startswith("/api/models/org/name/tree/"):
            sizes = {name: (self.server.folder / name).stat().st_size for name in names}
            entries = [
                {"type": "file", "oid": COMMIT, "path": n, "size": s} for n, s in sizes.items()
            ]
            self._answer(json.dumps(entries).encode())
        elif path.startswith("/api/models/org/name"):
            files = [{"rfilename": name} for name in names]
            info = {"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": files}
            self._answer(json.dumps(info).encode())
        elif path.startswith("/org/name/resolve/") and path.rpartition("/")[2] in names:
            self._answer((self.server.folder / path.rpartition("/")[2]).read_bytes())
        else:
            self._answer(b"", 404)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def hub_server(folder: Path) -> Iterator[HubServer]:
    with HubServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

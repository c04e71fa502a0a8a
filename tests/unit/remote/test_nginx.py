"""Bytes that a real server sends, from its own log."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from remote_support import random_bytes

import nnr_codec
from nnr_codec.bitstream import (
    Context,
    DataUnit,
    ModelParameterSet,
    PayloadType,
    StartUnit,
    Topology,
    write_record,
)
from nnr_codec.bitstream.indexing import write_indexed
from nnr_codec.encoding.unit_encoder import encode_raw_floats
from nnr_codec.remote.remote_file import RemoteFile

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SIZE = 40_000_000
HEADERS = 500  # bytes of those of an answer, at most
CONFIGURATION = """
daemon off;
master_process off;
{user}
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  log_format sent '$bytes_sent $status';
  access_log {folder}/access.log sent;
  client_body_temp_path {folder}/temp; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/temp; uwsgi_temp_path {folder}/temp; scgi_temp_path {folder}/temp;
  server {{
    listen 127.0.0.1:{port}; listen 127.0.0.1:{small_port} sndbuf=4k; root {folder}/files;
  }}
}}
"""


class Nginx:
    """A running server of one file.

    Attributes:
        data: the file.
        port: where it listens.
        small_port: where it listens too, with small buffers: bytes in these count as sent.
    """

    def __init__(self, folder: Path, data: bytes) -> None:
        self._folder = folder
        self.port, self.small_port = _free_ports(2)
        self.data = data
        (folder / "files").mkdir()
        (folder / "files" / "model.nnr").write_bytes(self.data)
        user = "user root;" if os.getuid() == 0 else ""
        ports = {"port": self.port, "small_port": self.small_port}
        text = CONFIGURATION.format(folder=folder, user=user, **ports)
        (folder / "nginx.conf").write_text(text)
        command = [str(NGINX), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._await_start()

    def _await_start(self) -> None:
        for _ in range(500):
            with suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            assert self._process.poll() is None, (self._folder / "error.log").read_text()
            time.sleep(0.01)
        pytest.fail("nginx does not listen")

    def address(self, port: int | None = None) -> str:
        return f"http://127.0.0.1:{port or self.port}/model.nnr"

    def sent(self) -> list[int]:
        """Stop; return the bytes of each answer, its headers counted."""
        self.stop()
        lines = (self._folder / "access.log").read_text().splitlines()
        return [int(line.split()[0]) for line in lines if int(line.split()[0])]

    def stop(self) -> None:
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(10)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    """A server of random bytes."""
    yield from _running(tmp_path, random_bytes(SIZE))


@pytest.fixture
def stream_nginx(tmp_path: Path) -> Iterator[Nginx]:
    """A server of a stream of about as many bytes, with a table of contents."""
    yield from _running(tmp_path, _large_stream())


def _large_stream() -> bytes:
    """Raw floats: 30 tensors of 250 KB, and 10 of 3.2 MB behind them."""
    rng, context = np.random.default_rng(0), Context(0, ModelParameterSet())
    records = StartUnit(), context.mps, Topology()
    units = [write_record(record) for record in records if record is not None]
    for number in range(40):
        values = rng.standard_normal(62_500 if number < 30 else 800_000, np.float32)
        names, dimensions = [f"{number}.weight"], [values.size]
        record = DataUnit(PayloadType.RAW_FLOAT, names, tensor_dimensions=dimensions)
        units.append(encode_raw_floats(record, values, context))
    indexed = io.BytesIO()
    write_indexed(io.BytesIO(b"".join(units)), indexed)
    return indexed.getvalue()


def _running(folder: Path, data: bytes) -> Iterator[Nginx]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    server = Nginx(folder, data)
    yield server
    server.stop()


class CuttingProxy:
    """Passes a server's bytes on, and cuts the connection where a number of them has passed."""

    def __init__(self, port: int, places: list[int]) -> None:
        self._target, self._places, self._passed = port, sorted(places), 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):  # when the listener is closed
            while True:
                reader, _ = self._listener.accept()
                with reader, socket.socket() as server:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    server.connect(("127.0.0.1", self._target))
                    self._pass_on(reader, server)

    def _pass_on(self, reader: socket.socket, server: socket.socket) -> None:
        requests = threading.Thread(target=self._pass_requests, args=(reader, server))
        requests.start()
        place = self._places[0] if self._places else None
        while place is None or self._passed < place:
            limit = 1 << 16 if place is None else min(1 << 16, place - self._passed)
            if not (data := server.recv(limit)):
                break
            self._passed += len(data)
            reader.sendall(data)
        if self._passed == place:
            self._places.pop(0)
        for end in (reader, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        requests.join()

    def _pass_requests(self, reader: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := reader.recv(1 << 16):
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def test_one_part_of_a_large_file(nginx: Nginx) -> None:
    with RemoteFile(nginx.address()) as file:
        assert bytes(file.view(20_000_000, 21_000_000)) == nginx.data[20_000_000:21_000_000]
    assert sum(nginx.sent()) <= 1_000_000 + (64 << 10)


def test_one_tensor_of_a_large_stream(stream_nginx: Nginx) -> None:
    expected = nnr_codec.decode(stream_nginx.data, only="35.weight")["35.weight"]
    tensors = nnr_codec.decode(stream_nginx.address(stream_nginx.small_port), only="35.weight")
    assert np.array_equal(tensors["35.weight"], expected)
    sent = stream_nginx.sent()
    assert len(sent) == 2
    assert sum(sent) <= expected.nbytes + (64 << 10)


def test_first_tensor_of_a_large_stream(stream_nginx: Nginx) -> None:
    """It is there when little more than its part has come."""
    with RemoteFile(stream_nginx.address()) as file:
        tensors = nnr_codec.stream_tensors(file)
        _, values = next(tensors)
        assert values.nbytes < 0.04 * file.size
        assert file.byte_count < 0.05 * file.size
        assert sum(1 for _ in tensors) == 39
        assert file.byte_count == file.size


def test_whole_file_twice_by_a_cache(nginx: Nginx, tmp_path: Path) -> None:
    for _ in range(2):
        with RemoteFile(nginx.address(), cache=tmp_path / "cache") as file:
            assert file.read() == nginx.data
    sent = nginx.sent()
    assert len(sent) == 3
    assert sum(sent) <= SIZE + 3 * HEADERS
    assert sent[2] <= HEADERS


def test_replaced_file(nginx: Nginx, tmp_path: Path) -> None:
    path = tmp_path / "files" / "model.nnr"
    with RemoteFile(nginx.address(), cache=tmp_path / "cache") as file:
        file.ensure(0, 100_000)
        path.unlink()
        path.write_bytes(random_bytes(SIZE, seed=1))
        os.utime(path, (0, 0))
        with pytest.raises(OSError, match="the file changed on the server"):
            file.read()
    with RemoteFile(nginx.address(), cache=tmp_path / "cache") as file:
        assert file.read() == path.read_bytes()


def test_twenty_random_cuts(nginx: Nginx, tmp_path: Path) -> None:
    places = random.Random(1).sample(range(SIZE), 20)
    proxy = CuttingProxy(nginx.small_port, places)
    try:
        with RemoteFile(nginx.address(proxy.port), cache=tmp_path / "cache") as file:
            assert file.read() == nginx.data
    finally:
        proxy.close()
    sent = nginx.sent()
    assert len(sent) == 22
    assert sum(sent) <= SIZE + 20 * (16 << 10)

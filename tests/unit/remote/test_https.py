"""Certificates: a good one, and one that nobody vouches for."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from remote_support import Answer, no_waiting, random_bytes, serving, wait_for_bytes

from nnr_codec.remote.remote_file import RemoteFile

DATA = random_bytes(100_000)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a file with a key and the certificate of this machine that it has signed itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, path = tmp_path / "key.pem", tmp_path / "certificate.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(path)]
    subprocess.run([openssl, "req", *kind, *name, *files], check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return path


def test_certificates(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = no_waiting(monkeypatch)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(DATA) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        address = f"https://localhost:{server.server_port}/model.nnr"
        with pytest.raises(OSError, match=r"cannot be read: .*self-signed certificate"):
            RemoteFile(address)
        assert waits == []  # nothing else would come of trying again
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with RemoteFile(address) as file:
            assert file.read() == DATA


def test_closing_while_the_server_stalls(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    rest = Answer(wait_after=50_000)
    with serving(DATA) as server, ThreadPoolExecutor(1) as pool:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.behave = lambda number, request: rest if number else Answer()
        file = RemoteFile(f"https://localhost:{server.server_port}/model.nnr")
        fetching = pool.submit(file.read)
        wait_for_bytes(file, 16384 + 49_152)  # whole records of TLS
        file.close()
        with pytest.raises(ValueError, match="the file is closed"):
            fetching.result(8)
        rest.go_on.set()

"""nnr-decode and nnr-info of addresses, against a server on this machine."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import Run

import nnr_codec
from nnr_codec.cli._common import BAD_BITSTREAM, FAILURE, MISMATCH

MODEL = {
    f"{n}.weight": np.random.default_rng(n).standard_normal((64, 64), np.float32) for n in range(9)
}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, without ranges."""

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    (served := tmp_path / "served").mkdir()
    np.savez(tmp_path / "model.npz", **MODEL)
    made = run("nnr-encode", tmp_path / "model.npz", "-o", served / "model.nnr", "--index", "-q")
    assert made.code == 0
    return served


@pytest.fixture
def address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Quiet, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/model.nnr"
        server.shutdown()
        thread.join()


def test_decoding(run: Run, address: str, folder: Path, tmp_path: Path) -> None:
    outcome = run("nnr-decode", address, "-o", tmp_path / "out.npz")
    assert outcome.code == 0
    assert "9 tensors" in outcome.out
    expected = nnr_codec.decode(folder / "model.nnr")
    with np.load(tmp_path / "out.npz") as decoded:
        assert all(np.array_equal(decoded[name], expected[name]) for name in MODEL)


def test_some_tensors_with_a_cache(run: Run, address: str, tmp_path: Path) -> None:
    for _ in range(2):
        arguments = [address, "-o", tmp_path / "out.npz", "-f", "--only", "3.*"]
        assert run("nnr-decode", *arguments, "--cache", tmp_path / "cache").code == 0
    with np.load(tmp_path / "out.npz") as decoded:
        assert list(decoded) == ["3.weight"]
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("options", [["--json"], ["--json", "--units"], ["--json", "--digest"]])
def test_info(run: Run, address: str, folder: Path, options: list[str]) -> None:
    remote, local = (
        json.loads(run("nnr-info", path, *options).out) for path in (address, folder / "model.nnr")
    )
    assert remote.pop("input") == address
    del local["input"]
    assert remote == local


def test_differences(run: Run, address: str, folder: Path, tmp_path: Path) -> None:
    assert run("nnr-diff", address, folder / "model.nnr", "--cache", tmp_path / "cache").code == 0
    outcome = run("nnr-diff", tmp_path / "model.npz", address, "--only", "3.*", "--json")
    assert outcome.code == MISMATCH
    assert json.loads(outcome.out)["differing"] == 1


def test_damage(run: Run, address: str, folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "model.nnr").read_bytes())
    data[-9] ^= 1
    (folder / "model.nnr").write_bytes(data)
    outcome = run("nnr-decode", address, "-o", tmp_path / "out.npz")
    assert outcome.code == BAD_BITSTREAM
    assert address in outcome.err
    assert "unit 11 (NNR_NDU)" in outcome.err
    assert not (tmp_path / "out.npz").exists()


def test_no_such_file(run: Run, address: str, tmp_path: Path) -> None:
    outcome = run("nnr-decode", address + "x", "-o", tmp_path / "out.npz")
    assert outcome.code == FAILURE
    assert "404" in outcome.err
    assert address + "x" in outcome.err


def test_a_model_file_at_an_address(run: Run, address: str, folder: Path, tmp_path: Path) -> None:
    (folder / "model.nnr").write_bytes((tmp_path / "model.npz").read_bytes())
    outcome = run("nnr-info", address)
    assert outcome.code == BAD_BITSTREAM
    assert address in outcome.err


def test_an_unknown_scheme(run: Run) -> None:
    outcome = run("nnr-info", "nonsense://host/model.nnr")
    assert outcome.code == FAILURE
    assert "nonsense" in outcome.err


def test_secrets_are_not_shown(run: Run, address: str, tmp_path: Path) -> None:
    secret = address.replace("127", "me:PASSWORD@127") + "?token=PASSWORD"
    for arguments in (
        ["nnr-decode", secret, "-o", tmp_path / "out.npz", "-f"],
        ["nnr-decode", secret, "-o", tmp_path / "out.npz", "-f", "--json"],
        ["nnr-decode", secret, "-o", tmp_path / "out.npz", "-f", "--verify", "0" * 64],
        ["nnr-info", secret],
        ["nnr-info", secret, "--json"],
    ):
        outcome = run(*arguments)
        assert "/model.nnr?" in outcome.out + outcome.err
        assert "PASSWORD" not in outcome.out + outcome.err

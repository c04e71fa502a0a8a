"""python -m nnr_codec, and the version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nnr_codec


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nnr_codec", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_commands(tmp_path: Path) -> None:
    stream = tmp_path / "m.nnr"
    stream.write_bytes(nnr_codec.encode({}).data or b"")
    assert run(tmp_path, "info", str(stream)).returncode == 0
    assert run(tmp_path, "decode", "missing.nnr", "-o", "x.npz").returncode == 1
    for command in ("encode", "decode", "info", "diff", "eval"):
        shown = run(tmp_path, command, "--help")
        assert shown.returncode == 0
        assert f"nnr-{command}" in shown.stdout


def test_usage(tmp_path: Path) -> None:
    for arguments in ([], ["unknown"]):
        refused = run(tmp_path, *arguments)
        assert refused.returncode == 2
        assert "encode,decode,info,diff,eval" in refused.stderr
    assert "nnr-encode" in run(tmp_path, "--help").stdout


def test_version(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout == f"nnr_codec {nnr_codec.__version__}\n"
    assert "__version__" in dir(nnr_codec)
    assert not hasattr(nnr_codec, "__nothing__")

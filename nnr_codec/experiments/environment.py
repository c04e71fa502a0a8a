"""What a run was made with: command, date, versions, machine."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .cells import Cell, Failure, attempt
from .fingerprints import codec_fingerprint
from .methods.external import ExternalCodec

_PACKAGES = ("nnr-codec", "numpy", "torch", "scipy", "zstandard", "constriction")


def run_facts(cells: Sequence[Cell], command: str) -> dict[str, Any]:
    """Return what a page of results says of its making, JSON-ready."""
    versions = {name: _version(name) for name in _PACKAGES}
    versions |= {"python": platform.python_version(), "codec files": codec_fingerprint()}
    for cell in cells:
        codec = cell.point.codec if cell.point else None
        if isinstance(codec, ExternalCodec) and cell.method not in versions:
            identity = attempt(codec.identity)
            versions[cell.method] = "" if isinstance(identity, Failure) else identity["version"]
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "versions": versions,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

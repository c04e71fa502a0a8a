"""The container of the simple methods: a safetensors file, packed by Zstandard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

ZSTD_LEVEL = 19
"""The strongest level that takes no more memory than the default window to decode."""


def pack(tensors: Mapping[str, npt.NDArray[Any]], note: Mapping[str, Any] | None = None) -> bytes:
    """Return tensors, and a JSON-ready note, as bytes."""
    import zstandard
    from safetensors.numpy import save

    metadata = {"note": json.dumps(note)} if note else None
    plain = save({name: np.asarray(v, order="C") for name, v in tensors.items()}, metadata)
    packed: bytes = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(plain)
    return packed


def unpack(data: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the tensors and the note of `pack`."""
    import zstandard
    from safetensors.numpy import load

    plain = zstandard.ZstdDecompressor().decompress(data)
    header = json.loads(plain[8 : 8 + int.from_bytes(plain[:8], "little")])
    note = header.get("__metadata__", {}).get("note", "{}")
    return load(plain), json.loads(note)


def versions() -> dict[str, str]:
    """Return the versions of what decides the container's bytes."""
    import safetensors
    import zstandard

    return {
        "safetensors": safetensors.__version__,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
    }

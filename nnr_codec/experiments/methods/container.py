"""The simple methods' container, a safetensors file packed by Zstandard, and what they share."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from ..checked_table import options_of
from .base import Arrays, Decoded, Encoded

Packed = TypeVar("Packed", bound="PackedCodec")

ZSTD_LEVEL = 19
"""The strongest level that takes no more memory than the default window to decode."""


@dataclass(frozen=True)
class PackedCodec:
    """A method that packs tensors which it makes of a model's; its fields are its options.

    Attributes:
        codec: its name in plans.
    """

    codec: ClassVar[str]

    @classmethod
    def from_options(cls: type[Packed], values: Mapping[str, Any], folder: Path) -> Packed:
        """Return the codec with a plan's options; raises InvalidOptions for others."""
        return options_of(cls, values)

    def packed(self, tensors: Arrays) -> bytes:
        """Return a model as bytes of `pack`."""
        raise NotImplementedError

    def unpacked(self, data: bytes) -> Arrays:
        """Return the model that `packed` wrote."""
        raise NotImplementedError

    def encode(self, tensors: Arrays) -> Encoded:
        """Encode a model; raises what `packed` raises."""
        start = time.perf_counter()
        data = self.packed(tensors)
        return Encoded(data, time.perf_counter() - start)

    def decode(self, data: bytes) -> Decoded:
        """Decode what `encode` wrote."""
        start = time.perf_counter()
        tensors = self.unpacked(data)
        return Decoded(tensors, time.perf_counter() - start)

    def identity(self) -> dict[str, Any]:
        """Return the options and the versions of the libraries."""
        return {"codec": self.codec, **asdict(self), "versions": versions()}


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

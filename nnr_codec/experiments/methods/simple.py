"""Simple methods, each a safetensors file packed by Zstandard: integers, half precision, bytes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...errors import InvalidModel
from ...model import Array
from ...options.kinds import convert_all, option, whole
from ..checked_table import options_of
from .base import Arrays, Decoded, Encoded

ZSTD_LEVEL = 19
"""The strongest level that takes no more memory than the default window to decode."""


@dataclass(frozen=True)
class PackedCodec:
    """A method that packs tensors which it makes of a model's; its fields are its options."""

    codec: ClassVar[str]  # its name in plans

    @classmethod
    def from_options(cls, values: Mapping[str, Any], folder: Path) -> PackedCodec:
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
        """Return the options and the versions of what decides the container's bytes."""
        import safetensors
        import zstandard

        zstd = ".".join(map(str, zstandard.ZSTD_VERSION))
        versions = {"safetensors": safetensors.__version__, "zstd": zstd}
        return {"codec": self.codec, **asdict(self), "versions": versions}


def pack(tensors: Arrays, note: Mapping[str, Any] | None = None) -> bytes:
    """Return tensors, and a JSON-ready note, as bytes."""
    import zstandard
    from safetensors.numpy import save

    metadata = {"note": json.dumps(note)} if note else None
    plain = save({name: np.asarray(v, order="C") for name, v in tensors.items()}, metadata)
    packed: bytes = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(plain)
    return packed


def unpack(data: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the tensors and the note of `pack`."""
    import zstandard
    from safetensors.numpy import load

    plain = zstandard.ZstdDecompressor().decompress(data)
    header = json.loads(plain[8 : 8 + int.from_bytes(plain[:8], "little")])
    note = header.get("__metadata__", {}).get("note", "{}")
    return load(plain), json.loads(note)


_VALUES, _SCALE = "values:", "scale:"  # before the names, so that none can meet another


@dataclass(frozen=True)
class IntegerCodec(PackedCodec):
    """Symmetric integers per output channel.

    What most runtimes do with 8 bits. Weights, which are tensors of two or more dimensions, get a
    binary32 scale for each index of their first dimension, max|w| / (2^(bits-1) - 1); the vectors
    stay as they are. Fewer bits still take a byte each, until Zstandard packs them.

    Attributes:
        bits: of an integer, its sign included, 2 to 8.
    """

    codec = "int8"

    bits: int = option(8, whole(2, 8))

    def __post_init__(self) -> None:
        """Raise InvalidOptions if the bits are outside of their range."""
        convert_all(self)

    def packed(self, tensors: Arrays) -> bytes:
        """Return a model as bytes; raises InvalidModel if a weight is not finite."""
        packed: dict[str, Array] = {}
        for name, values in tensors.items():
            if values.dtype != np.float32 or values.ndim < 2:
                packed[_VALUES + name] = values
            elif not np.isfinite(values).all():
                raise InvalidModel(name, "holds values that are not finite")
            else:
                packed[_VALUES + name], packed[_SCALE + name] = self._rounded(values)
        return pack(packed)

    def _rounded(self, values: Array) -> tuple[Array, Array]:
        """Return int8 values of the same shape, and their scales, float32."""
        most = 2 ** (self.bits - 1) - 1
        largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True, initial=0)
        scale = (largest / most).astype(np.float32)
        scale = np.where(scale > 0, scale, 1).astype(np.float32)  # 0, too, where that underflows
        # The scale of subnormal values is rounded coarsely: the quotient may exceed the range.
        return np.clip(np.round(values / scale), -most, most).astype(np.int8), scale

    def unpacked(self, data: bytes) -> Arrays:
        packed, _ = unpack(data)
        tensors = {}
        for key, values in packed.items():
            if key.startswith(_VALUES):
                name = key.removeprefix(_VALUES)
                scale = packed.get(_SCALE + name)
                tensors[name] = values if scale is None else values.astype(np.float32) * scale
        return tensors


@dataclass(frozen=True)
class Float16Codec(PackedCodec):
    """Half precision: every float32 tensor as binary16."""

    codec = "fp16"

    def packed(self, tensors: Arrays) -> bytes:
        """Return a model as bytes; raises InvalidModel if a value is too large for binary16."""
        with np.errstate(over="ignore"):
            halves = _converted(tensors, np.float32, np.float16)
        for name, values in halves.items():
            if values.dtype == np.float16 and not np.isfinite(values).all():
                raise InvalidModel(name, "holds values beyond binary16")
        return pack(halves)

    def unpacked(self, data: bytes) -> Arrays:
        tensors, _ = unpack(data)
        return _converted(tensors, np.float16, np.float32)


def _converted(tensors: Arrays, before: type, after: type) -> dict[str, Array]:
    return {name: v.astype(after) if v.dtype == before else v for name, v in tensors.items()}


@dataclass(frozen=True)
class BytePlaneCodec(PackedCodec):
    """Lossless: the bytes of all values by their significance.

    Signs and exponents, which repeat, come together, and so do the mantissas, which do not.
    """

    codec = "byteplane"

    def packed(self, tensors: Arrays) -> bytes:
        planes: dict[str, list[Array]] = {}
        for values in tensors.values():
            size = values.dtype.itemsize
            octets = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, size)
            for byte in range(size):
                planes.setdefault(_plane(size, byte), []).append(octets[:, byte])
        layout = [[name, v.dtype.str, list(v.shape)] for name, v in tensors.items()]
        joined = {name: np.concatenate(parts) for name, parts in planes.items()}
        return pack(joined, {"layout": layout})

    def unpacked(self, data: bytes) -> Arrays:
        planes, note = unpack(data)
        offsets: dict[int, int] = {}
        tensors = {}
        for name, dtype_text, shape in note["layout"]:
            dtype = np.dtype(dtype_text)
            size, first = dtype.itemsize, offsets.get(dtype.itemsize, 0)
            last = offsets[size] = first + math.prod(shape)
            octets = [planes[_plane(size, byte)][first:last] for byte in range(size)]
            tensors[name] = np.stack(octets, axis=1).reshape(-1).view(dtype).reshape(shape)
        return tensors


def _plane(size: int, byte: int) -> str:
    return f"bytes{size}.{byte}"

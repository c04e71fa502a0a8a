"""Simple methods, each packed by Zstandard: plain integers, half precision, byte planes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...errors import InvalidModel, InvalidOptions
from ...model import Array
from .base import Arrays
from .container import PackedCodec, pack, unpack

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

    bits: int = 8

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            InvalidOptions: the bits are outside of it.
        """
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise InvalidOptions("bits", f"{self.bits!r} is not a whole number from 2 to 8")

    def packed(self, tensors: Arrays) -> bytes:
        """Return a model as bytes.

        Raises:
            InvalidModel: a weight is not finite.
        """
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
        """Return a model as bytes.

        Raises:
            InvalidModel: a value is too large for binary16.
        """
        with np.errstate(over="ignore"):
            halves = {
                name: v.astype(np.float16) if v.dtype == np.float32 else v
                for name, v in tensors.items()
            }
        for name, values in halves.items():
            if values.dtype == np.float16 and not np.isfinite(values).all():
                raise InvalidModel(name, "holds values beyond binary16")
        return pack(halves)

    def unpacked(self, data: bytes) -> Arrays:
        tensors, _ = unpack(data)
        return {
            name: v.astype(np.float32) if v.dtype == np.float16 else v
            for name, v in tensors.items()
        }


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

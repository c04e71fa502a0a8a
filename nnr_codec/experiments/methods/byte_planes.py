"""Lossless: the bytes of all values by their significance, packed by Zstandard.

Signs and exponents, which repeat, come together, and so do the mantissas, which do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .base import Arrays
from .container import PackedCodec, pack, unpack


@dataclass(frozen=True)
class BytePlaneCodec(PackedCodec):
    """Byte planes, packed."""

    codec = "byteplane"

    def packed(self, tensors: Arrays) -> bytes:
        """Return a model as bytes."""
        planes: dict[str, list[npt.NDArray[np.uint8]]] = {}
        for values in tensors.values():
            size = values.dtype.itemsize
            octets = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, size)
            for byte in range(size):
                planes.setdefault(_plane(size, byte), []).append(octets[:, byte])
        layout = [[name, v.dtype.str, list(v.shape)] for name, v in tensors.items()]
        joined = {name: np.concatenate(parts) for name, parts in planes.items()}
        return pack(joined, {"layout": layout})

    def unpacked(self, data: bytes) -> Arrays:
        """Return what `packed` wrote."""
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

"""Lossless: the bytes of all values by their significance, packed by Zstandard.

Signs and exponents, which repeat, come together, and so do the mantissas, which do not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checked_table import options_of
from .base import Arrays, Decoded, Encoded
from .container import pack, unpack, versions


@dataclass(frozen=True)
class BytePlaneCodec:
    """Byte planes, packed."""

    @classmethod
    def from_options(cls, values: Mapping[str, Any], folder: Path) -> BytePlaneCodec:
        """Return the codec, which has no options.

        Raises:
            InvalidOptions: there is one.
        """
        return options_of(cls, values)

    def encode(self, tensors: Arrays) -> Encoded:
        """Encode a model."""
        start = time.perf_counter()
        planes: dict[str, list[npt.NDArray[np.uint8]]] = {}
        for values in tensors.values():
            size = values.dtype.itemsize
            octets = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, size)
            for place in range(size):
                planes.setdefault(_plane(size, place), []).append(octets[:, place])
        layout = [[name, v.dtype.str, list(v.shape)] for name, v in tensors.items()]
        joined = {name: np.concatenate(parts) for name, parts in planes.items()}
        data = pack(joined, {"layout": layout})
        return Encoded(data, time.perf_counter() - start)

    def decode(self, data: bytes) -> Decoded:
        """Decode what `encode` wrote."""
        start = time.perf_counter()
        planes, note = unpack(data)
        offsets: dict[int, int] = {}
        tensors = {}
        for name, dtype_text, shape in note["layout"]:
            dtype = np.dtype(dtype_text)
            size, first = dtype.itemsize, offsets.get(dtype.itemsize, 0)
            last = offsets[size] = first + math.prod(shape)
            octets = [planes[_plane(size, place)][first:last] for place in range(size)]
            tensors[name] = np.stack(octets, axis=1).reshape(-1).view(dtype).reshape(shape)
        return Decoded(tensors, time.perf_counter() - start)

    def identity(self) -> dict[str, Any]:
        """Return the codec's name and the versions of its libraries."""
        return {"codec": "byteplane", "versions": versions()}


def _plane(size: int, place: int) -> str:
    return f"bytes{size}.{place}"

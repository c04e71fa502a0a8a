"""Plain integers: symmetric rounding per output channel, packed by Zstandard.

What most runtimes do with 8 bits. Weights, which are tensors of two or more dimensions, get a
binary32 scale for each index of their first dimension, max|w| / (2^(bits-1) - 1); the vectors stay
as they are. Fewer bits still take a byte each, until Zstandard packs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InvalidModel, InvalidOptions
from .base import Arrays
from .container import PackedCodec, pack, unpack

_VALUES, _SCALE = "values:", "scale:"  # before the names, so that none can meet another


@dataclass(frozen=True)
class IntegerCodec(PackedCodec):
    """Symmetric integers per output channel, packed.

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
        packed: dict[str, npt.NDArray[Any]] = {}
        for name, values in tensors.items():
            if values.dtype != np.float32 or values.ndim < 2:
                packed[_VALUES + name] = values
            elif not np.isfinite(values).all():
                raise InvalidModel(name, "holds values that are not finite")
            else:
                packed[_VALUES + name], packed[_SCALE + name] = self._rounded(values)
        return pack(packed)

    def _rounded(
        self, values: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        most = 2 ** (self.bits - 1) - 1
        largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True, initial=0)
        scale = (largest / most).astype(np.float32)
        scale = np.where(scale > 0, scale, 1).astype(np.float32)  # 0, too, where that underflows
        # The scale of subnormal values is rounded coarsely: the quotient may exceed the range.
        return np.clip(np.round(values / scale), -most, most).astype(np.int8), scale

    def unpacked(self, data: bytes) -> Arrays:
        """Return what `packed` wrote."""
        packed, _ = unpack(data)
        tensors = {}
        for key, values in packed.items():
            if key.startswith(_VALUES):
                name = key.removeprefix(_VALUES)
                scale = packed.get(_SCALE + name)
                tensors[name] = values if scale is None else values.astype(np.float32) * scale
        return tensors

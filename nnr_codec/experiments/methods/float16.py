"""Half precision: every float32 tensor as binary16, packed by Zstandard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import InvalidModel
from .base import Arrays
from .container import PackedCodec, pack, unpack


@dataclass(frozen=True)
class Float16Codec(PackedCodec):
    """Half precision, packed."""

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
        """Return what `packed` wrote."""
        tensors, _ = unpack(data)
        return {
            name: v.astype(np.float32) if v.dtype == np.float16 else v
            for name, v in tensors.items()
        }

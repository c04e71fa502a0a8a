"""Half precision: every float32 tensor as binary16, packed by Zstandard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidModel
from ..checked_table import options_of
from .base import Arrays, Decoded, Encoded
from .container import pack, unpack, versions


@dataclass(frozen=True)
class Float16Codec:
    """Half precision, packed."""

    @classmethod
    def from_options(cls, values: Mapping[str, Any], folder: Path) -> Float16Codec:
        """Return the codec, which has no options.

        Raises:
            InvalidOptions: there is one.
        """
        return options_of(cls, values)

    def encode(self, tensors: Arrays) -> Encoded:
        """Encode a model.

        Raises:
            InvalidModel: a value is too large for binary16.
        """
        start = time.perf_counter()
        with np.errstate(over="ignore"):
            halves = {
                name: v.astype(np.float16) if v.dtype == np.float32 else v
                for name, v in tensors.items()
            }
        for name, values in halves.items():
            if values.dtype == np.float16 and not np.isfinite(values).all():
                raise InvalidModel(name, "holds values beyond binary16")
        data = pack(halves)
        return Encoded(data, time.perf_counter() - start)

    def decode(self, data: bytes) -> Decoded:
        """Decode what `encode` wrote."""
        start = time.perf_counter()
        tensors, _ = unpack(data)
        found = {
            name: v.astype(np.float32) if v.dtype == np.float16 else v
            for name, v in tensors.items()
        }
        return Decoded(found, time.perf_counter() - start)

    def identity(self) -> dict[str, Any]:
        """Return the codec's name and the versions of its libraries."""
        return {"codec": "fp16", "versions": versions()}

"""The digest of a model: one number by which two sets of tensors are compared."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np

from nnr_codec.errors import InvalidModel
from nnr_codec.model import Array, supported_dtype


def digest(tensors: Iterable[tuple[str, Array]]) -> str:
    """Return the SHA-256 of `tensors`, (name, values) pairs in order, as 64 hexadecimal digits.

    What is hashed is, for each tensor in turn and with nothing in between, where uint64 is eight
    bytes, least significant first:

    ====================  ==========================================================
    uint64                number of bytes of the name
    bytes                 the name in UTF-8
    uint64                number of bytes of the element type
    bytes                 the element type in ASCII, in numpy's words (`float32`, `bool`)
    uint64                number of dimensions
    uint64, each          the dimensions, outermost first
    uint64                number of bytes of the values
    bytes                 the values, row-major, least significant byte first
    ====================  ==========================================================

    Every variable part carries its length, so that different sequences of tensors never give the
    same bytes. Floating-point values are taken as bits: -0.0 differs from 0.0, and two NaNs are the
    same only with the same payload. One tensor at a time is held.

    Raises:
        InvalidModel: a name cannot be written in UTF-8, or an element type cannot be coded.

    >>> digest([])
    'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """
    state = ModelDigest()
    for name, values in tensors:
        state.update(name, values)
    return state.hexdigest()


class ModelDigest:
    """The digest of tensors that come one by one; see :func:`digest`."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def update(self, name: str, values: Array) -> None:
        """Add the next tensor; raises what :func:`digest` raises."""
        array = np.asarray(values)
        dtype = supported_dtype(name, array.dtype)
        try:
            encoded = name.encode()
        except UnicodeEncodeError as error:
            raise InvalidModel(name, "the name cannot be written in UTF-8") from error
        for text in (encoded, dtype.name.encode()):
            self._state.update(struct.pack("<Q", len(text)) + text)
        self._state.update(struct.pack(f"<{1 + array.ndim}Q", array.ndim, *array.shape))
        plain = np.asarray(array, dtype=dtype.newbyteorder("<"), order="C")
        self._state.update(struct.pack("<Q", plain.nbytes))
        self._state.update(plain.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """Return the digest of the tensors so far, as 64 hexadecimal digits."""
        return self._state.hexdigest()

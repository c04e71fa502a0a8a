"""What a method under test is: tensors to bytes, and bytes to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Encoded:
    """A model as a method wrote it.

    Attributes:
        data: all bytes that the decoder needs.
        seconds: wall time of the encoding.
        breakdown: bytes by part of the stream, as far as the method tells.
        yardsticks: bytes that other entropy coders take for the same integers, by name.
        unmatched_globs: globs of the options that match no tensor.
    """

    data: bytes
    seconds: float
    breakdown: Mapping[str, int] = field(default_factory=dict)
    yardsticks: Mapping[str, int] = field(default_factory=dict)
    unmatched_globs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """A model as it came back.

    Attributes:
        tensors: by name.
        seconds: wall time of the decoding.
        factored_stream: a bitstream with weights as factors, which layers can run on
            (:func:`nnr_codec.layers.load_into`); None: all weights are dense.
    """

    tensors: Arrays
    seconds: float
    factored_stream: bytes | None = None


class Codec(Protocol):
    """A method with all its options, at one operating point; a frozen dataclass, so picklable."""

    def encode(self, tensors: Arrays) -> Encoded:
        """Encode a model; raises whatever says why it cannot."""

    def decode(self, data: bytes) -> Decoded:
        """Decode what `encode` wrote."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the results, as JSON-ready data: options and versions."""

"""What an encoder or a stream has to tell: dataclasses, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor of an encoded model.

    Attributes:
        name, shape, dtype: the tensor as it was given.
        kind: "dq", "uniform", "int" or "raw".
        original_bytes: bytes of its values.
        bytes: bytes of its data unit.
        qp: quantization parameter, or None.
        squared_error, energy: sums over its elements, of the error and of the weights.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    original_bytes: int
    bytes: int
    qp: int | None = None
    squared_error: float = 0.0
    energy: float = 0.0

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the data unit per element."""
        return 8 * self.bytes / self.elements


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """An encoded model.

    Attributes:
        tensors: in stream order.
        header_bytes: bytes of the units that hold no tensor.
        seconds: wall time of the encoding.
        profile: general_profile_idc.
        unmatched: globs of the options that match no tensor.
    """

    tensors: tuple[TensorReport, ...]
    header_bytes: int
    seconds: float
    profile: int
    unmatched: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the stream."""
        return self.header_bytes + sum(tensor.bytes for tensor in self.tensors)

    @property
    def original_bytes(self) -> int:
        """Bytes of the model's values."""
        return sum(tensor.original_bytes for tensor in self.tensors)

    @property
    def elements(self) -> int:
        """Elements of the model."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the stream per element; 0 for a model without elements."""
        return 8 * self.bytes / self.elements if self.elements else 0.0

    @property
    def ratio(self) -> float:
        """Stream over model, in bytes; 0 for a model without values."""
        return self.bytes / self.original_bytes if self.original_bytes else 0.0

    @property
    def nmse(self) -> float:
        """Squared error over energy, of the quantized tensors together."""
        energy = sum(tensor.energy for tensor in self.tensors)
        error = sum(tensor.squared_error for tensor in self.tensors)
        return error / energy if energy else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        totals = {
            "profile": self.profile,
            "tensors": len(self.tensors),
            "elements": self.elements,
            "original_bytes": self.original_bytes,
            "bytes": self.bytes,
            "header_bytes": self.header_bytes,
            "bits_per_weight": self.bits_per_weight,
            "ratio": self.ratio,
            "nmse": self.nmse,
            "seconds": self.seconds,
            "unmatched_globs": list(self.unmatched),
        }
        rows = [{**asdict(t), "bits_per_weight": t.bits_per_weight} for t in self.tensors]
        return {**totals, "per_tensor": rows}


def printable(text: str) -> str:
    """Return `text` with everything escaped that a terminal might obey or hide."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as aligned text; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for cells in [header, *rows]:
        first = cells[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)

"""A stream, as its headers describe it: its tensors, its factored weights, its totals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..model import DTYPE_NAMES, dtype_of
from ..report import ExtraReport, StreamTotals


class _Decoded:
    """What is decoded: of a shape and an element type."""

    __slots__ = ()
    shape: tuple[int, ...]
    data_format: str

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def original_bytes(self) -> int:
        """Bytes of the values when decoded; integers of a few bits come as bytes."""
        is_known = self.data_format in DTYPE_NAMES
        return self.elements * (dtype_of(self.data_format).itemsize if is_known else 1)


@dataclass(frozen=True, slots=True)
class TensorInfo(_Decoded):
    """One tensor of a stream, as its header describes it.

    Attributes:
        kind: "int", "float", "raw" or "block"; or what the model map makes of integers: "grid",
            "groups", "table", "bits", "halves", "mantissas", "fields".
        role: "weight", or the tensor's role in its block.
        unit: index of its data unit in the stream.
        bytes: bytes of the data unit; 0 for the smaller tensors of a block.
        qp: quantization parameter; None where only decoding would show it, or there is none.
        unary_length, scan_order, dq: as coded; None for raw floats.
        codebook_size: entries, or None.
        data_format: element type of the decoded values.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    role: str
    unit: int
    bytes: int
    qp: int | None
    unary_length: int | None
    scan_order: int | None
    dq: bool | None
    codebook_size: int | None
    data_format: str

    @property
    def bits_per_weight(self) -> float:
        """Bits of the data unit per element of the tensor."""
        return 8 * self.bytes / self.elements


@dataclass(frozen=True, slots=True)
class FactorizationInfo(_Decoded):
    """A weight of a stream that comes as factors.

    Attributes:
        name, form, shape: of the weight; the form by its word in the model map.
        ranks: in the order of the form.
        factors: names of the coded tensors that it is made of.
        parameters: elements of those factors that no weight before it has.
        bytes: of their data units.
        data_format: element type of the weight.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    factors: tuple[str, ...]
    parameters: int
    bytes: int
    data_format: str


@dataclass(frozen=True, slots=True)
class StreamInfo(StreamTotals):
    """A stream, as its headers describe it.

    Attributes:
        profile: general_profile_idc.
        qp_density, base_qp: those in force at the end; None if no parameter set has any.
        units: units of the stream.
        header_bytes: bytes of the units that hold no tensor.
        tensors: as they are coded, in the order in which they are decoded.
        factorizations: the weights that come as factors, in the order in which they are complete.
        extras: the tensors that have no bytes of their own: empty ones, and ties.
        metadata: the text entries of the model's file.
        base: of an update of a base, the SHA-256 of the last stream of that; None of other streams.
    """

    profile: int
    qp_density: int | None
    base_qp: int | None
    units: int
    header_bytes: int
    tensors: tuple[TensorInfo, ...]
    factorizations: tuple[FactorizationInfo, ...] = ()
    extras: tuple[ExtraReport, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    quality_layers: tuple[int, ...] = ()
    base: str | None = None

    @property
    def elements(self) -> int:
        """Elements of the model, whose weights are dense."""
        return self.parameters + sum(w.elements - w.parameters for w in self.factorizations)

    @property
    def parameters(self) -> int:
        """Elements of all coded tensors, of factors and not of what they make."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def original_bytes(self) -> int:
        """Bytes of the model when decoded, its weights dense."""
        factors = {name for weight in self.factorizations for name in weight.factors}
        coded = sum(t.original_bytes for t in self.tensors if t.name not in factors)
        return coded + sum(weight.original_bytes for weight in self.factorizations)

    def to_json(self) -> dict[str, Any]:
        """Return totals, tensors and weights as JSON-ready data."""
        totals = {
            "profile": self.profile,
            "qp_density": self.qp_density,
            "base_qp": self.base_qp,
            "units": self.units,
            **self._totals(),
            "parameters": self.parameters,
            "base": self.base,
        }
        weights = [{**asdict(w), "elements": w.elements} for w in self.factorizations]
        extras = [asdict(extra) for extra in self.extras]
        rest: dict[str, Any] = {
            "factorizations": weights,
            "extras": extras,
            "metadata": dict(self.metadata),
        }
        if self.quality_layers:
            rest["quality_layers"] = list(self.quality_layers)
        return {**totals, "per_tensor": self._rows(), **rest}

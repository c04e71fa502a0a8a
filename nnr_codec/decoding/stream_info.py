"""What a stream's headers say of its tensors, without decoding them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .._core import TensorSyntax, decode_codeword, peek_qp_delta
from ..bitstream import Context, DataUnit, ParsedUnit, PayloadType
from ..bitstream.qp import qp_delta_bits
from ..bitstream.unit_layout import ParentData, TensorLayout, tensor_layouts
from ..factorization.model_map import ModelMap, Restored
from ..factorization.tensor_order import TensorOrder
from ..report import StreamTotals
from .extra_tensors import ExtraTensors

_KINDS = {
    PayloadType.INT: "int",
    PayloadType.FLOAT: "float",
    PayloadType.RAW_FLOAT: "raw",
    PayloadType.BLOCK: "block",
}

_MEANINGS = {"scale": "grid", "table": "table", "bits": "bits", "low": "halves"}
"""What the model map makes of INT units."""


_BITS = {
    f"{kind}{bits}": bits for kind in ("int", "uint", "float", "bfloat") for bits in (8, 16, 32, 64)
}


def _item_bytes(data_format: str) -> int:
    return max(1, _BITS.get(data_format, 8) // 8)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a stream, as its header describes it.

    Attributes:
        kind: "int", "float", "raw" or "block"; or what the model map makes of integers: "grid",
            "table", "bits", "halves".
        role: "weight", or the tensor's role in its block.
        unit: index of its data unit in the stream.
        bytes: bytes of the data unit; 0 for the smaller tensors of a block.
        qp: quantization parameter; None where only decoding would tell, or there is none.
        unary_length, scan_order, dq: as coded; None for raw floats.
        codebook_size: entries, or None.
        data_format: element type that the stream asks for.
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
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the data unit per element of the tensor."""
        return 8 * self.bytes / self.elements

    @property
    def original_bytes(self) -> int:
        """Bytes of the tensor when decoded."""
        return self.elements * _item_bytes(self.data_format)


@dataclass(frozen=True, slots=True)
class FactorizationInfo:
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

    @property
    def elements(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)

    @property
    def original_bytes(self) -> int:
        """Bytes of the weight when decoded."""
        return self.elements * _item_bytes(self.data_format)


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
    """

    profile: int
    qp_density: int | None
    base_qp: int | None
    units: int
    header_bytes: int
    tensors: tuple[TensorInfo, ...]
    factorizations: tuple[FactorizationInfo, ...] = ()

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
        """Return everything as JSON-ready data."""
        totals = {
            "profile": self.profile,
            "qp_density": self.qp_density,
            "base_qp": self.base_qp,
            "units": self.units,
            **self._totals(),
            "parameters": self.parameters,
        }
        factorizations = [
            {**asdict(weight), "elements": weight.elements} for weight in self.factorizations
        ]
        return {**totals, "per_tensor": self._rows(), "factorizations": factorizations}


def stream_info(units: Sequence[ParsedUnit]) -> StreamInfo:
    """Return what the headers of a whole stream say."""
    by_unit: list[list[TensorInfo]] = []
    header_bytes = 0
    part_bytes: dict[str, int] = {}  # by the name of the tensor that they are a part of
    for parsed in units:
        if isinstance(parsed.record, DataUnit):
            by_unit.append(_tensors(parsed, parsed.record, part_bytes))
        else:
            header_bytes += parsed.unit.size
    last = units[-1].context if units else Context()
    density, base_qp = last.quantization or (None, None)
    order = last.model_map.order if last.model_map else TensorOrder()
    tensors = [info for infos in by_unit for info in order.within_unit(infos)]
    if order.by_name:
        tensors.sort(key=lambda info: info.name)
    weights = _factorizations(units, {info.name: info for info in tensors})
    return StreamInfo(
        last.profile, density, base_qp, len(units), header_bytes, tuple(tensors), weights
    )


def _factorizations(
    units: Sequence[ParsedUnit], infos: Mapping[str, TensorInfo]
) -> tuple[FactorizationInfo, ...]:
    """Describe the weights that come as factors; a shared factor counts with the first of them."""
    extras = ExtraTensors()
    for parsed in units:
        extras.note(parsed)
    places = {name: place for place, name in enumerate(infos)}
    entries = extras.factorizations
    counted: set[str] = set()
    found = []
    for name in sorted(entries, key=lambda name: max(places[f] for f in entries[name].factors)):
        entry = entries[name]
        brought = [infos[factor] for factor in entry.factors if factor not in counted]
        counted.update(entry.factors)
        found.append(
            FactorizationInfo(
                name=name,
                form=entry.form,
                shape=entry.shape,
                ranks=entry.ranks([infos[factor].shape for factor in entry.factors]),
                factors=entry.factors,
                parameters=sum(info.elements for info in brought),
                bytes=sum(info.bytes for info in brought),
                data_format=entry.dtype,
            )
        )
    return tuple(found)


def _tensors(parsed: ParsedUnit, record: DataUnit, part_bytes: dict[str, int]) -> list[TensorInfo]:
    """Return a row for each tensor of a data unit, in the order of its names; the unit's bytes
    stand with the largest.

    A part of another tensor has no row: its bytes are added to that one's.
    """
    model_map = parsed.context.model_map or ModelMap()
    layouts = tensor_layouts(record, parsed.context, lambda name, elements: ParentData())
    main = max(layouts, key=lambda layout: math.prod(layout.shape)).name
    coded = record.payload_type != PayloadType.RAW_FLOAT
    infos = {}
    for layout, qp in zip(layouts, _qps(parsed, record, layouts), strict=True):
        own_bytes = parsed.unit.size if layout.name == main else 0
        if layout.name in model_map.owners:
            part_bytes[model_map.owners[layout.name]] = own_bytes
            continue
        entry = model_map.tensors.get(layout.name, Restored())
        infos[layout.name] = TensorInfo(
            name=layout.name,
            shape=layout.shape,
            kind=_MEANINGS.get(entry.meaning or "", _KINDS[record.payload_type]),
            role=layout.role,
            unit=parsed.unit.index,
            bytes=own_bytes + part_bytes.pop(layout.name, 0),
            qp=qp,
            unary_length=record.unary_length if coded else None,
            scan_order=_scan_order(record, layout) if coded else None,
            dq=bool(record.dq_flag) if coded else None,
            codebook_size=len(layout.codebook.values) if layout.codebook else None,
            data_format=_format_name(parsed, record, layout.name),
        )
    return [infos[name] for name in record.names if name in infos]


def _format_name(parsed: ParsedUnit, record: DataUnit, name: str) -> str:
    model_map = parsed.context.model_map
    restored = model_map.tensors.get(name) if model_map is not None else None
    if restored is not None and restored.dtype is not None:
        return restored.dtype
    if record.nnr_decompressed_data_format is not None:
        return record.nnr_decompressed_data_format.name.lower()
    return "int32" if record.payload_type == PayloadType.INT else "float32"


def _scan_order(record: DataUnit, layout: TensorLayout) -> int:
    """Return the scan order, which vectors of a block do not have."""
    return record.scan_order if len(layout.shape) > 1 else 0


def _qps(parsed: ParsedUnit, record: DataUnit, layouts: Sequence[TensorLayout]) -> list[int | None]:
    """Return the quantization parameters, as far as they can be had without decoding a matrix.

    Those of a block's tensors stand one before each, and its vectors come first.
    """
    if record.payload_type not in (PayloadType.FLOAT, PayloadType.BLOCK):
        return [None] * len(layouts)
    density, base_qp = parsed.context.quantization or (0, 0)
    bits = qp_delta_bits(density)
    payload = np.frombuffer(parsed.payload, dtype=np.uint8)
    if len(layouts) == 1 or record.parent is not None:
        first = [base_qp + peek_qp_delta(payload, bits)]
        return [*first, *[None] * (len(layouts) - 1)]
    before = [layout.syntax for layout in layouts if len(layout.shape) == 1][: len(layouts) - 1]
    # Of the tensor behind the vectors as little is decoded as there can be.
    _, found = decode_codeword(payload, [*before, TensorSyntax(1, 1)], bits, [])
    qps: list[int | None] = [base_qp + qp_delta for qp_delta, _, _ in found]
    return qps + [None] * (len(layouts) - len(qps))

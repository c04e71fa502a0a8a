"""What a stream's headers say of its tensors, without decoding them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ._core import TensorSyntax, decode_codeword, peek_qp_delta
from .bitstream import Context, DataUnit, ParsedUnit, PayloadType
from .extra_tensors import ExtraTensors
from .factorization.model_map import ModelMap, Restored
from .factorization.tensor_order import TensorOrder
from .quantize.qp import qp_delta_bits
from .report import FactorizationInfo, StreamInfo, TensorInfo
from .unit_layout import ParentData, TensorLayout, tensor_layouts

_KINDS = {
    PayloadType.INT: "int",
    PayloadType.FLOAT: "float",
    PayloadType.RAW_FLOAT: "raw",
    PayloadType.BLOCK: "block",
}

_MEANINGS = {"scale": "grid", "table": "table", "bits": "bits", "low": "halves"}
"""What the model map makes of INT units."""


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

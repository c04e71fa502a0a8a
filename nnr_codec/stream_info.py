"""What a stream's headers say of its tensors, without decoding them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ._core import peek_qp_delta
from .bitstream import Context, DataUnit, ParsedUnit, PayloadType
from .factorization.model_map import ModelMap, Restored
from .quantize.qp import qp_delta_bits
from .report import StreamInfo, TensorInfo
from .unit_layout import ParentData, tensor_layouts

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
    tensors: list[TensorInfo] = []
    header_bytes = 0
    part_bytes: dict[str, int] = {}  # by the name of the tensor that they are a part of
    for parsed in units:
        if isinstance(parsed.record, DataUnit):
            tensors += _tensors(parsed, parsed.record, part_bytes)
        else:
            header_bytes += parsed.unit.size
    last = units[-1].context if units else Context()
    density, base_qp = last.quantization or (None, None)
    return StreamInfo(last.profile, density, base_qp, len(units), header_bytes, tuple(tensors))


def _tensors(parsed: ParsedUnit, record: DataUnit, part_bytes: dict[str, int]) -> list[TensorInfo]:
    """Return a row for each tensor of a data unit; the unit's bytes stand with the largest.

    A part of another tensor has no row: its bytes are added to that one's.
    """
    model_map = parsed.context.model_map or ModelMap()
    layouts = tensor_layouts(record, parsed.context, lambda name, elements: ParentData())
    main = max(layouts, key=lambda layout: math.prod(layout.shape)).name
    coded = record.payload_type != PayloadType.RAW_FLOAT
    infos = []
    for layout in layouts:
        own_bytes = parsed.unit.size if layout.name == main else 0
        if layout.name in model_map.owners:
            part_bytes[model_map.owners[layout.name]] = own_bytes
            continue
        entry = model_map.tensors.get(layout.name, Restored())
        infos.append(
            TensorInfo(
                name=layout.name,
                shape=layout.shape,
                kind=_MEANINGS.get(entry.meaning or "", _KINDS[record.payload_type]),
                role=layout.role,
                unit=parsed.unit.index,
                bytes=own_bytes + part_bytes.pop(layout.name, 0),
                qp=_qp(parsed, record) if layout is layouts[0] else None,
                unary_length=record.unary_length if coded else None,
                scan_order=record.scan_order if coded else None,
                dq=bool(record.dq_flag) if coded else None,
                codebook_size=len(layout.codebook.values) if layout.codebook else None,
                data_format=_format_name(parsed, record, layout.name),
            )
        )
    return infos


def _format_name(parsed: ParsedUnit, record: DataUnit, name: str) -> str:
    model_map = parsed.context.model_map
    restored = model_map.tensors.get(name) if model_map is not None else None
    if restored is not None and restored.dtype is not None:
        return restored.dtype
    if record.nnr_decompressed_data_format is not None:
        return record.nnr_decompressed_data_format.name.lower()
    return "int32" if record.payload_type == PayloadType.INT else "float32"


def _qp(parsed: ParsedUnit, record: DataUnit) -> int | None:
    """Return the quantization parameter of the first tensor; the others' are further inside."""
    if record.payload_type not in (PayloadType.FLOAT, PayloadType.BLOCK):
        return None
    density, base_qp = parsed.context.quantization or (0, 0)
    payload = np.frombuffer(parsed.payload, dtype=np.uint8)
    return base_qp + peek_qp_delta(payload, qp_delta_bits(density))

"""Encoding of one data unit: integers to a codeword, and the header before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .._core import TensorToEncode, encode_codeword
from ..bitstream import Context, DataUnit, EntryPoint, PayloadType, write_data_unit
from ..bitstream.qp import qp_delta_bits
from ..bitstream.unit_layout import Integers, ParentLookup, tensor_layouts


@dataclass(frozen=True, slots=True)
class CodedLevels:
    """The integers of one tensor of a unit, as they are coded, and its choices.

    Attributes:
        levels: int32, before the doubling of dependent quantization; with a codebook: indices
            relative to its zero offset.
        qp: quantization parameter; ignored for INT.
        row_skipping: flag the rows that are all zero (profile 1).
        history_enabled: use history contexts (needs a parent).
        search_initialization: search the initialization indices; else use `indices`.
        indices: initialization index by context; empty: all 0.
    """

    levels: Integers
    qp: int = 0
    row_skipping: bool = False
    history_enabled: bool = False
    search_initialization: bool = True
    indices: tuple[int, ...] = ()


def encode_data_unit(
    record: DataUnit,
    coded: Mapping[str, CodedLevels],
    context: Context,
    parent_data: ParentLookup | None = None,
) -> bytes:
    """Return an INT, FLOAT or BLOCK unit.

    Args:
        record: its header; the entry points are filled in.
        coded: the integers by role (``DataUnit.coding_roles``).
        context: the profile and parameter sets in force.
        parent_data: as of ``tensor_layouts``.
    """
    density, base_qp = context.quantization or (0, 0)
    tensors = []
    for layout in tensor_layouts(record, context, parent_data):
        source = coded[layout.role]
        tensors.append(
            TensorToEncode(
                layout.syntax,
                np.ascontiguousarray(source.levels, dtype=np.int32).reshape(-1),
                qp_delta=source.qp - base_qp,
                row_skipping=source.row_skipping,
                history_enabled=source.history_enabled,
                search_initialization=source.search_initialization,
                indices=list(source.indices),
            )
        )
    bits = 0 if record.payload_type == PayloadType.INT else qp_delta_bits(density)
    payload, entries = encode_codeword(tensors, bits)
    record.entry_points = [
        EntryPoint(value8, dq_state, offset) for offset, value8, dq_state in entries
    ]
    return write_data_unit(record, payload, context)


def encode_raw_floats(record: DataUnit, values: np.ndarray, context: Context) -> bytes:
    """Return a RAW_FLOAT unit: binary32 values as they are."""
    payload = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view(np.uint8).data
    return write_data_unit(record, payload, context)

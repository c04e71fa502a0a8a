"""Encoding of one data unit: integers to a codeword, and the header before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .._core import TensorToEncode, encode_codeword
from ..bitstream import Context, DataUnit, EntryPoint, PayloadType, write_data_unit
from ..bitstream.qp import qp_delta_bits
from ..bitstream.unit_layout import Integers, ParentData, tensor_layouts


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


@dataclass(frozen=True, slots=True)
class EncodedUnit:
    """A data unit.

    Attributes:
        record: its header.
        data: the whole unit.
        payload_bytes: bytes of the codeword or raw floats in it.
        tensors: the core's tensors by role.
    """

    record: DataUnit
    data: bytes
    payload_bytes: int
    tensors: dict[str, TensorToEncode]

    @property
    def integers(self) -> dict[str, Integers]:
        """What a decoder finds for each role: the integers after the doubling, flat."""
        return {role: tensor.reconstruct() for role, tensor in self.tensors.items()}


def encode_data_unit(
    record: DataUnit,
    coded: Mapping[str, CodedLevels],
    context: Context,
    parent_data: Callable[[str, int], ParentData] | None = None,
) -> EncodedUnit:
    """Encode an INT, FLOAT or BLOCK unit.

    Args:
        record: its header; the entry points are filled in.
        coded: the integers by role (``DataUnit.coding_roles``).
        context: the profile and parameter sets in force.
        parent_data: as of ``tensor_layouts``.
    """
    layouts = tensor_layouts(record, context, parent_data or (lambda name, elements: ParentData()))
    density, base_qp = context.quantization or (0, 0)
    tensors = []
    for layout in layouts:
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
    data = write_data_unit(record, payload, context)
    roles = (layout.role for layout in layouts)
    return EncodedUnit(record, data, len(payload), dict(zip(roles, tensors, strict=True)))


def encode_raw_floats(record: DataUnit, values: np.ndarray, context: Context) -> EncodedUnit:
    """Encode a RAW_FLOAT unit: binary32 values as they are."""
    payload = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view(np.uint8).data
    return EncodedUnit(record, write_data_unit(record, payload, context), len(payload), {})

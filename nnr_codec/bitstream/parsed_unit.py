"""Units with what they hold, in the context in which they stand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InvalidBitstream, TruncatedBitstream, UnsupportedFeature
from ..factorization.tensor_order import NameRole
from ..factorization.unit_index import IndexedUnit, short_digest
from .codes import PayloadType, UnitType
from .context import Context
from .lazy_bytes import Data, RangeSource, loaded, part_of
from .records import DataUnit
from .syntax import unit_header
from .units import STRUCTURES, Record, Unit, UnitCutter
from .visitors import Element, ListVisitor, ReadVisitor

RECORDS = {unit_type: record for record, (unit_type, _) in STRUCTURES.items()}


@dataclass(frozen=True, slots=True)
class ParsedUnit:
    """A unit and what it holds.

    Attributes:
        unit: the unit.
        record: what it holds; None for a private unit.
        context: the profile, the parameter sets and the model map that were in force (before a
            parameter set, with the map of a topology unit itself).
        payload: a data unit's bytes after its header; empty for the others, but a private
            unit's body.
        payload_offset: bytes from the start of the bitstream to the payload.
        digest: that of the unit in the table of contents, until it was compared; empty without.
    """

    unit: Unit
    record: Record | None
    context: Context
    payload: Data
    payload_offset: int
    digest: bytes = b""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the unit's bytes once, the payload being a part of them, and of a model map what
        concerns the unit."""
        start = self.payload_offset - self.unit.byte_offset
        context = replace(self.context, reference_list=())  # the record has its names
        if context.model_map is not None and isinstance(self.record, DataUnit):
            names = [name for name, _ in self.record.decoded_roles()]
            context = replace(context, model_map=context.model_map.part(names))
        return parsed_unit, (self.unit, self.record, context, start, self.digest)

    def fetched(self) -> ParsedUnit:
        """Return the same with all bytes in memory."""
        if isinstance(self.unit.data, memoryview):
            return self
        return self._with_data(loaded(self.unit.data), self.digest)

    def checked(self) -> ParsedUnit:
        """Return the same with all bytes in memory, which are those that were written, as far as
        the table of contents tells.

        Raises:
            InvalidBitstream: they are others.
        """
        fetched = self.fetched()
        if self.digest and short_digest(loaded(fetched.unit.data)) != self.digest:
            reason = "is damaged: it has another digest than in index"
            raise InvalidBitstream(self.unit.label, self.unit.byte_offset, reason)
        return replace(fetched, digest=b"")

    def copy(self) -> ParsedUnit:
        """Return the same with a copy of the bytes, which no longer refers to where they are."""
        return self._with_data(memoryview(bytes(loaded(self.unit.data))), self.digest)

    def _with_data(self, data: memoryview, digest: bytes) -> ParsedUnit:
        start = self.payload_offset - self.unit.byte_offset
        return parsed_unit(replace(self.unit, data=data), self.record, self.context, start, digest)

    def release(self) -> None:
        """Release the memory that the bytes refer to; the unit is of no further use."""
        for data in (self.payload, self.unit.data):
            if isinstance(data, memoryview):
                data.release()

    def elements(self) -> list[Element]:
        """Every syntax element of the unit's headers, in the order of the bitstream."""
        visitor = ListVisitor()
        unit_header(visitor, self.unit.header)
        if self.record is not None:
            STRUCTURES[type(self.record)][1](visitor, self.record, self.context)
        return visitor.elements


def parsed_unit(
    unit: Unit, record: Record | None, context: Context, start: int, digest: bytes = b""
) -> ParsedUnit:
    """Return a unit whose payload begins after `start` bytes."""
    payload = part_of(unit.data, start)
    return ParsedUnit(unit, record, context, payload, unit.byte_offset + start, digest)


@dataclass(frozen=True, slots=True)
class PassedUnit:
    """A data unit of which the table of contents alone was looked at.

    Attributes:
        source: the bitstream.
        index: units before this one.
        byte_offset: where it begins.
        entry: what the table says of it.
        context: as of :class:`ParsedUnit`.
    """

    source: RangeSource
    index: int
    byte_offset: int
    entry: IndexedUnit
    context: Context

    def expect(self) -> None:
        """Tell the source that all of the unit is to be fetched."""
        start, size = self.byte_offset, self.source.size  # which may be that of a part alone
        self.source.expect([(min(start, size), min(start + self.entry.size, size))])

    def parsed(self) -> ParsedUnit:
        """Fetch and parse the unit's header.

        Raises:
            BitstreamError: it is damaged, not that of the table, or asks for what is not
                supported or allowed.
        """
        cutter = UnitCutter(self.source, self.context.limits, self.index, self.byte_offset)
        unit = cutter.next(self._check_header)
        if unit is None:
            raise TruncatedBitstream("bitstream", self.byte_offset, "a unit of index is missing")
        record, start = read_record(unit, self.context)
        if isinstance(record, DataUnit):
            check_data_unit(unit, record, self.context, unit.size - start)
        if not isinstance(record, DataUnit) or tuple(record.decoded_roles()) != self.entry.tensors:
            raise _invalid(unit, "has other tensors than index says")
        return parsed_unit(unit, record, self.context, start, self.entry.digest)

    def _check_header(self, unit: Unit) -> None:
        header = unit.header
        if (header.nnr_unit_type, header.nnr_unit_size) != (UnitType.NNR_NDU, self.entry.size):
            raise _invalid(unit, "is of another type or size than index says")
        if header.partial_data_counter is not None:
            raise UnsupportedFeature("partial_data_counter_present_flag", 1, "partial data")


def header_of(unit: ParsedUnit | PassedUnit) -> ParsedUnit:
    """Return a unit that is parsed; raises what `PassedUnit.parsed` raises."""
    return unit.parsed() if isinstance(unit, PassedUnit) else unit


def tensors_of(unit: ParsedUnit | PassedUnit) -> list[NameRole]:
    """Return the names and roles of what a unit decodes to."""
    if isinstance(unit, PassedUnit):
        return [*unit.entry.tensors]
    return unit.record.decoded_roles() if isinstance(unit.record, DataUnit) else []


def read_record(unit: Unit, context: Context) -> tuple[Record, int]:
    """Read what a unit of a known type holds, as its syntax has it; and the bytes before its
    payload.

    Raises:
        InvalidBitstream: the unit breaks the syntax.
        UnsupportedFeature, LimitExceeded: as they say.
    """
    record = RECORDS[UnitType(unit.unit_type)]()
    reader = unit.reader()
    STRUCTURES[type(record)][1](ReadVisitor(reader, context.limits), record, context)
    if not isinstance(record, DataUnit) and reader.bits_left:
        raise reader.invalid(f"{reader.bits_left // 8} bytes too many in the unit")
    return record, reader.bytes_read


def check_data_unit(unit: Unit, record: DataUnit, context: Context, payload_bytes: int) -> None:
    """Check the header of a data unit, as far as it alone and its context tell; give it the names
    that it refers to.

    Raises:
        InvalidBitstream: it contradicts itself, or refers to what is not there.
        UnsupportedFeature: it has no shape.
    """
    if context.indexed:
        listed = context.reference_list
        for index in record.indices:
            if index >= len(listed):
                reason = f"topology_elem_id_index = {index}: not in a reference list before it"
                raise _invalid(unit, reason)
        record.names = [listed[index] for index in record.indices]
    stem = record.dense_name if record.is_decomposed_block else None
    if stem is not None and record.names[:2] != [f"{stem}_G", f"{stem}_H"]:
        raise _invalid(unit, f"factors named {record.names[:2]}: not X_G and X_H")
    if not record.tensor_dimensions:
        # The format lets the topology say them; we support no topology that does.
        raise UnsupportedFeature("count_tensor_dimensions", 0, "the unit gives no shape")
    if record.payload_type == PayloadType.RAW_FLOAT:
        (shape,) = record.weight_shapes()
        if payload_bytes != 4 * math.prod(shape):
            reason = f"{math.prod(shape)} raw floats in {payload_bytes} bytes"
            raise _invalid(unit, reason)
    elif record.payload_type != PayloadType.INT and context.quantization is None:
        raise _invalid(unit, "no parameter set gives a quantization parameter")


def _invalid(unit: Unit, reason: str) -> InvalidBitstream:
    return InvalidBitstream(unit.label, unit.byte_offset, reason)

"""Bad headers are refused here: units in their context, which may follow which, what they hold.

See spec/bitstream.md, "Units" for the order and "Checks" for the
refusals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InvalidBitstream, LimitExceeded, TruncatedBitstream, UnsupportedFeature
from ..factorization.factorizations import FactorChecks
from ..factorization.map_checks import MapError
from ..factorization.model_map import parse_model_map
from ..factorization.tensor_order import TensorOrder
from ..options import DecodeLimits
from .codes import PayloadType, TopologyFormat, UnitType
from .context import Context
from .records import (
    DataUnit,
    LayerParameterSet,
    ModelParameterSet,
    QuantizationData,
    StartUnit,
    Topology,
)
from .syntax import unit_header
from .units import STRUCTURES, Record, Unit, read_units
from .visitors import Element, ListVisitor, ReadVisitor

_START_BYTES = 1  # of NNR_STR behind the common header
_UNIT_ENTRIES = 16
"""What a unit counts in ``max_header_entries``: its objects take 1 KiB, an entry 30 to 80 bytes."""

_RECORDS = {unit_type: record for record, (unit_type, _) in STRUCTURES.items()}


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
    """

    unit: Unit
    record: Record | None
    context: Context
    payload: memoryview
    payload_offset: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the unit's bytes once, the payload being a part of them, and of a model map what
        concerns the unit."""
        start = self.payload_offset - self.unit.byte_offset
        context = replace(self.context, reference_list=())  # the record has its names
        if context.model_map is not None and isinstance(self.record, DataUnit):
            names = [name for name, _ in self.record.decoded_roles()]
            context = replace(context, model_map=context.model_map.part(names))
        return _parsed, (self.unit, self.record, context, start)

    def copy(self) -> ParsedUnit:
        """Return the same with a copy of the bytes, which no longer refers to where they are."""
        unit = replace(self.unit, data=memoryview(bytes(self.unit.data)))
        return _parsed(unit, self.record, self.context, unit.size - len(self.payload))

    def elements(self) -> list[Element]:
        """Every syntax element of the unit's headers, in the order of the bitstream."""
        visitor = ListVisitor()
        unit_header(visitor, self.unit.header)
        if self.record is not None:
            STRUCTURES[type(self.record)][1](visitor, self.record, self.context)
        return visitor.elements


class StreamParser:
    """Parses the units of one bitstream, in order. After an error it is of no further use.

    Attributes:
        context: the profile and the parameter sets that the next unit sees.
        unit_count: units parsed so far.
    """

    def __init__(self, limits: DecodeLimits | None = None) -> None:
        self.context = Context(limits=limits or DecodeLimits())
        self.unit_count = 0
        self._names: dict[str, int] = {}  # with their positions
        self._least_name = ""  # of the data unit before
        self._factors = FactorChecks({}, self.context.limits)
        self._header_entries = 0
        self._text_bytes = 0  # of topology and quantization data

    def check_header(self, unit: Unit) -> None:
        """Check the bitstream's next unit as far as its common header tells, before it is read.

        Args:
            unit: the unit, of whose bytes those of the common header are enough.

        Raises:
            InvalidBitstream: it must not come here.
            UnsupportedFeature: it is of a kind that is not supported.
        """
        self._check_order(unit)
        if unit.unit_type == UnitType.NNR_STR:
            behind = unit.header.nnr_unit_size - unit.header.byte_length - _START_BYTES
            if behind > 0:
                raise _invalid(unit, f"{behind} bytes too many in the unit")

    def parse(self, unit: Unit) -> ParsedUnit:
        """Parse the bitstream's next unit.

        Raises:
            InvalidBitstream: the unit breaks the syntax, or must not come here.
            UnsupportedFeature, LimitExceeded: as they say.
        """
        self._check_order(unit)
        before = self.context
        if unit.is_private:
            parsed = _parsed(unit, None, before, unit.header.byte_length)
        else:
            parsed = self._parse_known(unit)
        self.unit_count += 1
        return parsed

    def finish(self) -> None:
        """Check at the bitstream's end that there was one at all.

        Raises:
            TruncatedBitstream: no units.
        """
        if self.unit_count == 0:
            raise TruncatedBitstream("bitstream", 0, "empty: no unit at all")
        if self.context.model_map is not None:
            try:
                self.context.model_map.check(self._names)
            except MapError as error:
                raise InvalidBitstream("model map", 0, str(error)) from None

    def _check_order(self, unit: Unit) -> None:
        kind = unit.unit_type
        if (kind == UnitType.NNR_STR) != (self.unit_count == 0):
            hint = "" if self.unit_count else "; this looks like no NNR bitstream"
            raise _invalid(unit, f"NNR_STR must be the first unit, and only the first{hint}")
        if unit.is_private:
            return
        if kind == UnitType.NNR_AGG:
            raise UnsupportedFeature("nnr_unit_type", "NNR_AGG", "aggregate units")
        if kind not in _RECORDS:
            raise _invalid(unit, f"nnr_unit_type = {kind}: reserved value")
        if unit.header.partial_data_counter is not None:
            raise UnsupportedFeature("partial_data_counter_present_flag", 1, "partial data")
        if kind == UnitType.NNR_MPS and self.context.mps is not None:
            raise _invalid(unit, "a second NNR_MPS")
        if kind in (UnitType.NNR_LPS, UnitType.NNR_NDU) and self.context.mps is None:
            raise _invalid(unit, "comes before the NNR_MPS")

    def _parse_known(self, unit: Unit) -> ParsedUnit:
        before = self.context
        record = _RECORDS[UnitType(unit.unit_type)]()
        reader = unit.reader()
        STRUCTURES[type(record)][1](ReadVisitor(reader, before.limits), record, before)
        self._count(record)
        if isinstance(record, DataUnit):
            self._check_data_unit(unit, record, unit.size - reader.bytes_read)
        elif reader.bits_left:
            raise reader.invalid(f"{reader.bits_left // 8} bytes too many in the unit")
        if isinstance(record, StartUnit):
            self.context = replace(before, profile=record.general_profile_idc)
        elif isinstance(record, ModelParameterSet):
            self.context = replace(before, mps=record)
        elif isinstance(record, LayerParameterSet):
            self.context = replace(before, lps=record)
        elif isinstance(record, Topology):
            self._read_topology(unit, record)
            before = replace(before, model_map=self.context.model_map)
        return _parsed(unit, record, before, reader.bytes_read)

    def _count(self, record: Record) -> None:
        """Count what a unit's header is kept as.

        Raises:
            LimitExceeded: all headers together are more than is allowed.
        """
        limits = self.context.limits
        self._header_entries += _UNIT_ENTRIES
        if isinstance(record, DataUnit):
            lists: list[Sequence[Any]] = [record.names, record.indices, record.entry_points]
            lists += [book.values for book in record.codebooks]
            self._header_entries += sum(map(len, lists)) + len(record.tensor_dimensions or ())
        elif isinstance(record, Topology):
            self._header_entries += len(record.names)
            self._text_bytes += _length(record.topology_data)
        elif isinstance(record, QuantizationData):
            self._text_bytes += _length(record.quantization_data)
        for limit, value in (
            ("max_header_entries", self._header_entries),
            ("max_topology_bytes", self._text_bytes),
        ):
            if value > getattr(limits, limit):
                raise LimitExceeded(limit, value, getattr(limits, limit))

    def _read_topology(self, unit: Unit, record: Topology) -> None:
        """Keep what a topology unit tells decoders: a reference list, or a model map."""
        if record.names:
            self.context = replace(self.context, reference_list=tuple(record.names))
        text = record.topology_data
        if record.topology_storage_format != TopologyFormat.UNREC or not isinstance(text, str):
            return
        try:
            model_map = parse_model_map(text, self.context.limits.max_dimensions)
        except MapError as error:
            raise _invalid(unit, f"model map: {error}") from None
        if model_map is None:
            return
        if self._names or self.context.model_map is not None:
            raise _invalid(unit, "a model map behind a data unit or another map")
        self._factors = FactorChecks(model_map.factorizations, self.context.limits)
        self.context = replace(self.context, model_map=model_map)

    def _check_data_unit(self, unit: Unit, record: DataUnit, payload_bytes: int) -> None:
        if self.context.indexed:
            listed = self.context.reference_list
            for index in record.indices:
                if index >= len(listed):
                    reason = f"topology_elem_id_index = {index}: not in a reference list before it"
                    raise _invalid(unit, reason)
            record.names = [listed[index] for index in record.indices]
        stem = record.dense_name if record.is_decomposed_block else None
        if stem is not None and record.names[:2] != [f"{stem}_G", f"{stem}_H"]:
            raise _invalid(unit, f"factors named {record.names[:2]}: not X_G and X_H")
        self._note_names(unit, record)
        if not record.tensor_dimensions:
            # The format lets the topology say them; we support no topology that does.
            raise UnsupportedFeature("count_tensor_dimensions", 0, "the unit gives no shape")
        if record.payload_type == PayloadType.RAW_FLOAT:
            if payload_bytes != 4 * record.element_count:
                reason = f"{record.element_count} raw floats in {payload_bytes} bytes"
                raise _invalid(unit, reason)
        elif record.payload_type != PayloadType.INT and self.context.quantization is None:
            raise _invalid(unit, "no parameter set gives a quantization parameter")
        self._check_factors(unit, record)

    def _check_factors(self, unit: Unit, record: DataUnit) -> None:
        """Compare the unit's factors, if it holds any, with the model map and the limits."""
        if record.is_decomposed_block:
            rank = record.factor_shapes()[0][1]
            self._factors.count(rank * record.element_count)
        model_map = self.context.model_map
        if model_map is None or not model_map.factorizations:
            return
        for name, role in record.decoded_roles():
            if name in model_map.factorizations:
                raise _invalid(unit, f"{name!r} is a factored weight of the model map")
            if name not in self._factors:
                continue
            entry = model_map.tensors.get(name)
            is_integer = record.payload_type == PayloadType.INT
            if role != "weight" or (is_integer and (entry is None or entry.meaning is None)):
                raise _invalid(unit, f"{name!r} cannot be a factor: it is no weight of floats")
            try:
                self._factors.note(name, record.weight_shapes()[0])
            except MapError as error:
                raise _invalid(unit, f"model map: {error}") from None

    def _note_names(self, unit: Unit, record: DataUnit) -> None:
        """Give the names their positions, in the order of the model map within the unit."""
        order = self.context.model_map.order if self.context.model_map else TensorOrder()
        tensors = record.decoded_roles()
        if order:
            tensors = order.within_unit(tensors)
        for name, _ in tensors:
            if name in self._names:
                raise _invalid(unit, f"{name!r} is in the bitstream already")
            self._names[name] = len(self._names)
        if order.by_name:
            if tensors[0].name < self._least_name:
                raise _invalid(unit, f"{tensors[0].name!r}: the units are not ordered by name")
            self._least_name = tensors[0].name


def _length(data: str | bytes) -> int:
    return len(data.encode() if isinstance(data, str) else data)


def _invalid(unit: Unit, reason: str) -> InvalidBitstream:
    return InvalidBitstream(unit.label, unit.byte_offset, reason)


def _parsed(unit: Unit, record: Record | None, context: Context, start: int) -> ParsedUnit:
    return ParsedUnit(unit, record, context, unit.data[start:], unit.byte_offset + start)


def parse_units(source: Any, limits: DecodeLimits | None = None) -> Iterator[ParsedUnit]:
    """Parse a whole bitstream, unit by unit: :func:`read_units` and :class:`StreamParser`.

    Args:
        source: bytes, anything with the buffer interface, or a binary file or pipe.
        limits: what the bitstream may ask for.

    Raises:
        BitstreamError: from the unit on that is at fault.
    """
    parser = StreamParser(limits)
    for unit in read_units(source, limits, parser.check_header):
        yield parser.parse(unit)
    parser.finish()

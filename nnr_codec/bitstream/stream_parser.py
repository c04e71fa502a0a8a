"""Bad headers are refused here: units in their context, which may follow which, what they hold.

See spec/bitstream.md, "Units" for the order and "Checks" for the
refusals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import InvalidBitstream, LimitExceeded, TruncatedBitstream, UnsupportedFeature
from ..factorization.factorizations import FactorChecks
from ..factorization.map_checks import MapError
from ..factorization.model_map import MAP_BEGIN, parse_model_map
from ..factorization.tensor_order import NameRole, TensorOrder
from ..factorization.unit_index import IndexedUnit
from ..options import DecodeLimits
from .codes import PayloadType, TopologyFormat, UnitType
from .context import Context
from .index_check import IndexCheck
from .parsed_unit import (
    RECORDS,
    ParsedUnit,
    check_data_unit,
    parsed_unit,
    read_record,
)
from .records import (
    DataUnit,
    LayerParameterSet,
    ModelParameterSet,
    QuantizationData,
    StartUnit,
    Topology,
)
from .units import Record, Unit

_START_BYTES = 1  # of NNR_STR behind the common header
_MOST_HEADER_BYTES = 8  # of a topology unit, before the topology
_UNIT_ENTRIES = 16
"""What a unit counts in ``max_header_entries``: its objects take 1 KiB, an entry 30 to 80 bytes."""


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
        self._index = IndexCheck()

    @property
    def end(self) -> int | None:
        """Bytes of the bitstream, if it is the first quality layer of a file."""
        model_map = self.context.model_map
        return model_map.quality_layers[0] if model_map and model_map.quality_layers else None

    @property
    def entries(self) -> tuple[IndexedUnit, ...]:
        """What the table of contents says of the units behind it."""
        return self._index.index.units if self._index.index is not None else ()

    @property
    def next_entry(self) -> IndexedUnit | None:
        """What the table of contents says of the next unit; None without, and behind its last."""
        return self._index.entry_at(self.unit_count)

    def check_header(self, unit: Unit) -> None:
        """Check the bitstream's next unit as far as its common header tells, before it is read.

        Args:
            unit: the unit, of whose bytes those of the common header are enough.

        Raises:
            InvalidBitstream: it must not come here.
            UnsupportedFeature: it is of a kind that is not supported.
        """
        self._check_order(unit)
        self._index.check_size(unit)
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
            parsed = parsed_unit(unit, None, before, unit.header.byte_length)
        else:
            parsed = self._parse_known(unit)
        if not isinstance(parsed.record, DataUnit) and parsed.context.model_map is None:
            _refuse_damaged_map(unit)
        parsed = self._index.checked(parsed)
        self.unit_count += 1
        return parsed

    def pass_over(self, entry: IndexedUnit) -> None:
        """Note the next unit, of which the table of contents has `entry`, without looking at it.

        Raises:
            InvalidBitstream: a tensor must not come here.
        """
        label = f"unit {self.unit_count} (in index)"
        self._header_entries += _UNIT_ENTRIES + len(entry.tensors)
        self._check_header_entries()
        self._note_names(label, 0, list(entry.tensors))
        self.unit_count += 1

    def finish(self) -> None:
        """Check at the bitstream's end that there was one, and all that is told of.

        Raises:
            TruncatedBitstream: no units, or not all of the table of contents.
            InvalidBitstream: the model map tells of what is not there.
        """
        if self.unit_count == 0:
            raise TruncatedBitstream("bitstream", 0, "empty: no unit at all")
        self._index.finish(self.unit_count)
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
        if kind not in RECORDS:
            raise _invalid(unit, f"nnr_unit_type = {kind}: reserved value")
        if unit.header.partial_data_counter is not None:
            raise UnsupportedFeature("partial_data_counter_present_flag", 1, "partial data")
        if kind == UnitType.NNR_MPS and self.context.mps is not None:
            raise _invalid(unit, "a second NNR_MPS")
        if kind in (UnitType.NNR_LPS, UnitType.NNR_NDU) and self.context.mps is None:
            raise _invalid(unit, "comes before the NNR_MPS")

    def _parse_known(self, unit: Unit) -> ParsedUnit:
        before = self.context
        record, start = read_record(unit, before)
        self._count(record)
        if isinstance(record, DataUnit):
            check_data_unit(unit, record, before, unit.size - start)
            self._note_names(unit.label, unit.byte_offset, record.decoded_roles())
            self._check_factors(unit, record)
        elif isinstance(record, StartUnit):
            self.context = replace(before, profile=record.general_profile_idc)
        elif isinstance(record, ModelParameterSet):
            self.context = replace(before, mps=record)
        elif isinstance(record, LayerParameterSet):
            self.context = replace(before, lps=record)
        elif isinstance(record, Topology):
            self._read_topology(unit, record)
            before = replace(before, model_map=self.context.model_map)
        return parsed_unit(unit, record, before, start)

    def _count(self, record: Record) -> None:
        """Count what a unit's header is kept as.

        Raises:
            LimitExceeded: all headers together are more than is allowed.
        """
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
        self._check_header_entries()

    def _check_header_entries(self) -> None:
        limits = self.context.limits
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
        if model_map.index is not None:
            self._index.begin(model_map.index, unit)
        self._factors = FactorChecks(model_map.factorizations, self.context.limits)
        self.context = replace(self.context, model_map=model_map)

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

    def _note_names(self, label: str, byte_offset: int, tensors: list[NameRole]) -> None:
        """Give the names their positions, in the order of the model map within the unit."""
        order = self.context.model_map.order if self.context.model_map else TensorOrder()
        if order:
            tensors = order.within_unit(tensors)
        for name, _ in tensors:
            if name in self._names:
                raise InvalidBitstream(label, byte_offset, f"{name!r} is in the bitstream already")
            self._names[name] = len(self._names)
        if order.by_name:
            if tensors[0].name < self._least_name:
                reason = f"{tensors[0].name!r}: the units are not ordered by name"
                raise InvalidBitstream(label, byte_offset, reason)
            self._least_name = tensors[0].name


def _refuse_damaged_map(unit: Unit) -> None:
    """Raise InvalidBitstream if a unit that was not taken for that of a model map begins like one:
    else a stream of which a bit is flipped here would pass for one without a map."""
    expected = MAP_BEGIN.encode()
    begin = bytes(unit.data[: _MOST_HEADER_BYTES + len(expected)])
    for start in range(len(begin) - len(expected) + 1):
        window = begin[start : start + len(expected)]
        if sum(a != b for a, b in zip(window, expected, strict=True)) <= 1:
            raise _invalid(unit, "a damaged model map")


def _length(data: str | bytes) -> int:
    return len(data.encode() if isinstance(data, str) else data)


def _invalid(unit: Unit, reason: str) -> InvalidBitstream:
    return InvalidBitstream(unit.label, unit.byte_offset, reason)

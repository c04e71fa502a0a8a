"""Framing: a bitstream as a sequence of units, read one by one and written one by one.

See spec/bitstream.md, "Units". What the units mean together is the business of
:class:`.stream_parser.StreamParser`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidBitstream, InvalidModel, LimitExceeded, TruncatedBitstream
from ..options import DecodeLimits
from .bits import BitReader, BitWriter
from .codes import FIRST_PRIVATE_UNIT_TYPE, UnitType
from .context import Context
from .data_unit import data_unit
from .lazy_bytes import Data, loaded
from .records import (
    DataUnit,
    LayerParameterSet,
    ModelParameterSet,
    QuantizationData,
    StartUnit,
    Topology,
    UnitHeader,
)
from .syntax import (
    layer_parameter_set,
    model_parameter_set,
    quantization_unit,
    start_unit,
    topology_unit,
    unit_header,
)
from .unit_readers import reader_of
from .visitors import ReadVisitor, Visitor, WriteVisitor

SHORT_UNIT_BYTES = 1 << 15
"""Units of fewer bytes have a 15-bit size."""

MAX_UNIT_BYTES = (1 << 31) - 1

Record = StartUnit | ModelParameterSet | LayerParameterSet | Topology | QuantizationData | DataUnit

STRUCTURES: dict[type[Record], tuple[UnitType, Callable[[Visitor, Any, Context], None]]] = {
    StartUnit: (UnitType.NNR_STR, start_unit),
    ModelParameterSet: (UnitType.NNR_MPS, model_parameter_set),
    LayerParameterSet: (UnitType.NNR_LPS, layer_parameter_set),
    Topology: (UnitType.NNR_TPL, topology_unit),
    QuantizationData: (UnitType.NNR_QNT, quantization_unit),
    DataUnit: (UnitType.NNR_NDU, data_unit),
}
"""By what a unit holds: its type, and its syntax behind the common header."""

_MAX_TYPE_BYTES = 2  # of a unit's common header, behind the size
_TYPE_NAMES = {int(code): code.name for code in UnitType}


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit as it stands in the bitstream.

    Attributes:
        index: units before this one.
        header: the common header.
        byte_offset: bytes from the start of the bitstream to the unit.
        data: all bytes of the unit, the size field included; of a source with random access they
            are fetched where they are looked at.
    """

    index: int
    header: UnitHeader
    byte_offset: int
    data: Data

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with a copy of the bytes, for workers in other processes."""
        return _unpickled, (self.index, self.header, self.byte_offset, bytes(loaded(self.data)))

    @property
    def unit_type(self) -> int:
        """nnr_unit_type, 0 to 63."""
        return self.header.nnr_unit_type

    @property
    def size(self) -> int:
        """Bytes of the unit."""
        return len(self.data)

    @property
    def is_private(self) -> bool:
        """Whether the unit is of a type (32 to 63) that every decoder skips."""
        return self.unit_type >= FIRST_PRIVATE_UNIT_TYPE

    @property
    def label(self) -> str:
        """What errors call the unit: ``"unit 3 (NNR_NDU)"``, ``"unit 4 (private 40)"``."""
        kind = "private" if self.is_private else "reserved"
        name = _TYPE_NAMES.get(self.unit_type) or f"{kind} {self.unit_type}"
        return f"unit {self.index} ({name})"

    def reader(self) -> BitReader:
        """A bit reader that stands after the common header."""
        return BitReader(self.data, self.label, self.byte_offset, self.header.byte_length)


def _unpickled(index: int, header: UnitHeader, byte_offset: int, data: bytes) -> Unit:
    return Unit(index, header, byte_offset, memoryview(data))


def read_units(
    source: Any,
    limits: DecodeLimits | None = None,
    check: Callable[[Unit], object] = lambda unit: None,
) -> Iterator[Unit]:
    """Cut a bitstream into units, without looking into them.

    Args:
        source: anything with the buffer interface (bytes, memoryview, mmap), whose memory the
            units then refer to (an mmap can be closed only once they are gone); or a binary file
            or pipe, which is read unit by unit and never beyond the unit that is needed; or a
            `RangeSource`, of which the bytes of units are fetched where they are looked at.
        limits: max_units, max_unit_bytes and max_stream_bytes are what counts here.
        check: called with each unit before it is read, when only the bytes of its common header
            are there. It may raise an error, so that nothing of the rest is read.

    Raises:
        TruncatedBitstream: the source ends inside a unit.
        InvalidBitstream: a size smaller than the unit's common header.
        LimitExceeded: too many units, too large a one, or too many bytes in all.
    """
    cutter = UnitCutter(source, limits or DecodeLimits())
    while (unit := cutter.next(check)) is not None:
        yield unit


class UnitCutter:
    """Cuts a bitstream into units, one after the other; arguments and errors: `read_units`.

    Attributes:
        index: units so far.
        byte_offset: where the next one begins.
        end: where the bitstream ends, though its source may go on; None: with the source.
    """

    def __init__(
        self, source: Any, limits: DecodeLimits, index: int = 0, byte_offset: int = 0
    ) -> None:
        """`index`, `byte_offset`: of the first unit, in a source of ranges."""
        self.index = index
        self.byte_offset = byte_offset
        self.end: int | None = None
        self._limits = limits
        self._reader = reader_of(source, byte_offset)

    def next(self, check: Callable[[Unit], object]) -> Unit | None:
        """Return the next unit; None at the end."""
        label = f"unit {self.index}"
        if self.byte_offset == self.end:
            return None
        start = self._reader.peek(2)
        if not start:
            if self.end is None:
                return None
            reason = f"the data ends before byte {self.end}, at which its quality layer does"
            raise TruncatedBitstream(label, self.byte_offset, reason)
        size_bytes = 4 if start[0] >> 7 else 2
        if size_bytes == 4:
            start = self._reader.peek(4)
        if len(start) < size_bytes:
            reason = "the data ends inside a unit's size"
            raise TruncatedBitstream(label, self.byte_offset, reason)
        size = int.from_bytes(start, "big") & ((1 << (8 * size_bytes - 1)) - 1)
        if size <= size_bytes:
            reason = f"nnr_unit_size = {size}: no room for a header"
            raise InvalidBitstream(label, self.byte_offset, reason)
        self._check_limits(size)
        if self.end is not None and self.byte_offset + size > self.end:
            reason = f"goes on behind byte {self.end}, at which its quality layer ends"
            raise InvalidBitstream(label, self.byte_offset, reason)
        header = UnitHeader()
        begin = memoryview(self._reader.peek(min(size, size_bytes + _MAX_TYPE_BYTES)))
        if len(begin) == min(size, size_bytes + _MAX_TYPE_BYTES):  # else the data end here
            reader = BitReader(begin, label, self.byte_offset)
            unit_header(ReadVisitor(reader, self._limits), header)
            check(Unit(self.index, header, self.byte_offset, begin))
        return self._cut(size, header)

    def skip(self, size: int) -> None:
        """Go on behind a unit of that size, without looking at it."""
        self._check_limits(size)
        self._cut(size, UnitHeader())

    def _check_limits(self, size: int) -> None:
        limits, end = self._limits, self.byte_offset + size
        for limit, value in (
            ("max_units", self.index + 1),
            ("max_unit_bytes", size),
            ("max_stream_bytes", end),
        ):
            if value > getattr(limits, limit):
                raise LimitExceeded(limit, value, getattr(limits, limit))

    def _cut(self, size: int, header: UnitHeader) -> Unit:
        data = self._reader.read(size)
        if len(data) < size:
            reason = f"nnr_unit_size = {size}: only {len(data)} bytes left"
            if self.index == 0:
                reason += "; this looks like no NNR bitstream"
            raise TruncatedBitstream(f"unit {self.index}", self.byte_offset, reason)
        unit = Unit(self.index, header, self.byte_offset, data)
        self.index += 1
        self.byte_offset += size
        return unit


def unit_start(unit_type: int, body_bytes: int) -> bytes:
    """The common header of a unit with ``body_bytes`` bytes behind it, with the shorter size.

    Raises:
        ValueError: more bytes than a unit can have.
    """
    header = UnitHeader(nnr_unit_type=int(unit_type))
    header.nnr_unit_size = header.byte_length + body_bytes
    if header.nnr_unit_size >= SHORT_UNIT_BYTES:
        header.nnr_unit_size_flag = 1
        header.nnr_unit_size = header.byte_length + body_bytes
    writer = BitWriter()
    unit_header(WriteVisitor(writer), header)
    return writer.to_bytes()


def write_unit(unit_type: int, *parts: bytes | bytearray | memoryview) -> bytes:
    """A whole unit whose body is ``parts``, one after the other."""
    return b"".join([unit_start(unit_type, sum(len(part) for part in parts)), *parts])


def _written(record: Record, context: Context) -> bytes:
    writer = BitWriter()
    STRUCTURES[type(record)][1](WriteVisitor(writer), record, context)
    return writer.to_bytes()


def write_record(record: Record, profile: int = 0) -> bytes:
    """The unit of any record but a data unit's, in the syntax of a profile.

    Raises:
        ValueError: a record that the syntax cannot say.
    """
    return write_unit(STRUCTURES[type(record)][0], _written(record, Context(profile)))


def write_data_unit(
    record: DataUnit, payload: bytes | bytearray | memoryview, context: Context
) -> bytes:
    """An NNR_NDU unit.

    Raises:
        ValueError: a record that the syntax cannot say.
        InvalidModel: a name that is no proper string, or more bytes than a unit can have.
    """
    header = _written(record, context)
    if len(header) + len(payload) > MAX_UNIT_BYTES - UnitHeader(1).byte_length:
        name = record.names[0] if record.names else f"index {record.indices[0]}"
        raise InvalidModel(name, "its code is longer than a unit can be (2**31 - 1 bytes)")
    return write_unit(UnitType.NNR_NDU, header, payload)

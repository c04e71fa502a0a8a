"""Framing: a bitstream as a sequence of units, read one by one and written one by one.

See spec/bitstream.md, "Units". What the units mean together is the business of
:class:`.stream_parser.StreamParser`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import InvalidBitstream, InvalidModel, LimitExceeded, TruncatedBitstream
from ..options import DecodeLimits
from .bits import BitReader, BitWriter
from .codes import FIRST_PRIVATE_UNIT_TYPE, UnitType
from .context import Context
from .data_unit import data_unit
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

_READ_BYTES = 1 << 20
_MAX_TYPE_BYTES = 2  # of a unit's common header, behind the size
_TYPE_NAMES = {int(code): code.name for code in UnitType}


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit as it stands in the bitstream.

    Attributes:
        index: units before this one.
        header: the common header.
        byte_offset: bytes from the start of the bitstream to the unit.
        data: all bytes of the unit, the size field included.
    """

    index: int
    header: UnitHeader
    byte_offset: int
    data: memoryview

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with a copy of the bytes, for workers in other processes."""
        return _unpickled, (self.index, self.header, self.byte_offset, bytes(self.data))

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
            or pipe, which is read unit by unit and never beyond the unit that is needed.
        limits: max_units, max_unit_bytes and max_stream_bytes are what counts here.
        check: called with each unit before it is read, when only the bytes of its common header
            are there. It may raise an error, so that nothing of the rest is read.

    Raises:
        TruncatedBitstream: the source ends inside a unit.
        InvalidBitstream: a size smaller than the unit's common header.
        LimitExceeded: too many units, too large a one, or too many bytes in all.
    """
    limits = limits or DecodeLimits()
    reader = _BufferReader(source) if _is_buffer(source) else _FileReader(source)
    byte_offset = 0
    index = 0
    while first := reader.peek(2):
        if index >= limits.max_units:
            raise LimitExceeded("max_units", index + 1, limits.max_units)
        unit = _read_unit(reader, first, index, byte_offset, limits, check)
        yield unit
        byte_offset += unit.size
        index += 1


def _is_buffer(source: Any) -> bool:
    try:
        memoryview(source)
    except TypeError:
        return False
    return True


class _BufferReader:
    """Reads the bytes of a buffer, unit by unit."""

    def __init__(self, source: Any) -> None:
        self._view = memoryview(source).cast("B").toreadonly()
        self._position = 0

    def peek(self, count: int) -> bytes:
        """The next unit's first ``count`` bytes, or all there are."""
        return bytes(self._view[self._position : self._position + count])

    def read(self, size: int) -> memoryview:
        """The next unit, of ``size`` bytes, or all there are."""
        self._position += size
        return self._view[self._position - size : self._position]


class _FileReader:
    """Reads the bytes of a binary file or pipe, unit by unit."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = bytearray()

    def _fill(self, count: int) -> None:
        # Piece by piece, so that memory grows with what is there and not with what is announced.
        while len(self._data) < count:
            piece = self._file.read(min(count - len(self._data), _READ_BYTES))
            if not piece:
                break
            self._data += piece

    def peek(self, count: int) -> bytes:
        """The next unit's first ``count`` bytes, or all there are."""
        self._fill(count)
        return bytes(self._data[:count])

    def read(self, size: int) -> memoryview:
        """The next unit, of ``size`` bytes, or all there are."""
        self._fill(size)
        data, self._data = self._data, bytearray()
        return memoryview(data).toreadonly()


def _read_unit(
    reader: _BufferReader | _FileReader,
    start: bytes,
    index: int,
    byte_offset: int,
    limits: DecodeLimits,
    check: Callable[[Unit], object],
) -> Unit:
    """Read the unit whose first two bytes are ``start``."""
    label = f"unit {index}"
    size_bytes = 4 if start[0] >> 7 else 2
    if size_bytes == 4:
        start = reader.peek(4)
    if len(start) < size_bytes:
        raise TruncatedBitstream(label, byte_offset, "the data ends inside a unit's size")
    size = int.from_bytes(start, "big") & ((1 << (8 * size_bytes - 1)) - 1)
    if size <= size_bytes:
        raise InvalidBitstream(label, byte_offset, f"nnr_unit_size = {size}: no room for a header")
    if size > limits.max_unit_bytes:
        raise LimitExceeded("max_unit_bytes", size, limits.max_unit_bytes)
    if byte_offset + size > limits.max_stream_bytes:
        raise LimitExceeded("max_stream_bytes", byte_offset + size, limits.max_stream_bytes)
    header = UnitHeader()
    begin = memoryview(reader.peek(min(size, size_bytes + _MAX_TYPE_BYTES)))
    if len(begin) == min(size, size_bytes + _MAX_TYPE_BYTES):  # else the data end here
        unit_header(ReadVisitor(BitReader(begin, label, byte_offset), limits), header)
        check(Unit(index, header, byte_offset, begin))
    data = reader.read(size)
    if len(data) < size:
        reason = f"nnr_unit_size = {size}: only {len(data)} bytes left"
        if index == 0:
            reason += "; this looks like no NNR bitstream"
        raise TruncatedBitstream(label, byte_offset, reason)
    return Unit(index, header, byte_offset, data)


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

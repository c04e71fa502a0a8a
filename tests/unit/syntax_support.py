"""What the tests of the headers' syntax share: writing, reading and listing must agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from nnr_codec.bitstream.bits import BitReader, BitWriter
from nnr_codec.bitstream.context import Context
from nnr_codec.bitstream.records import ModelParameterSet
from nnr_codec.bitstream.visitors import ListVisitor, ReadVisitor, Visitor, WriteVisitor
from nnr_codec.errors import BitstreamError
from nnr_codec.options import DecodeLimits

Structure = Callable[[Visitor, Any, Context], None]

PROFILES = [
    Context(0, ModelParameterSet()),
    Context(1, ModelParameterSet()),
    Context(1, ModelParameterSet(mps_parent_signalling_enabled_flag=1)),
    Context(0, ModelParameterSet(mps_topology_indexed_reference_flag=1)),
]


def written(structure: Structure, record: Any, context: Context) -> bytes:
    writer = BitWriter()
    structure(WriteVisitor(writer), record, context)
    return writer.to_bytes()


def read(structure: Structure, factory: type, data: bytes, context: Context) -> Any:
    record = factory()
    reader = BitReader(data, "unit 3 (test)", 1000)
    structure(ReadVisitor(reader, context.limits), record, context)
    assert reader.bits_left < 8
    return record


class RecordingReader(ReadVisitor):
    """A reader that also lists what it reads, for comparison with the lister."""

    def __init__(self, reader: BitReader) -> None:
        super().__init__(reader, DecodeLimits())
        self.elements: list[tuple[str, Any]] = []

    def code(self, element: str, kind: str, size: Any, value: Any) -> Any:
        value = super().code(element, kind, size, value)
        self.elements.append((element, value))
        return value

    def u(self, record: Any, name: str, bits: int) -> None:
        super().u(record, name, bits)
        self.elements.append((name, getattr(record, name)))

    def ue(self, record: Any, name: str, order: int) -> None:
        super().ue(record, name, order)
        self.elements.append((name, getattr(record, name)))

    def present(self, element: str, present: bool) -> bool:
        found = super().present(element, present)
        self.elements.append((element, int(found)))
        return found

    def field(self, record: Any, name: str, kind: str, size: Any, element: str = "") -> None:
        super().field(record, name, kind, size, element)
        self.elements.append((element or name, getattr(record, name)))

    def choice(self, record: Any, name: str, bits: int, codes: Any, element: str = "") -> None:
        super().choice(record, name, bits, codes, element)
        self.elements.append((element or name, getattr(record, name)))

    def values(
        self, record: Any, name: str, count: int, kind: str, size: Any, element: str = ""
    ) -> None:
        super().values(record, name, count, kind, size, element)
        self.elements += [(element or name, value) for value in getattr(record, name)]

    def align(self) -> None:
        super().align()
        self.elements.append(("align", None))


def check_identity(structure: Structure, record: Any, context: Context) -> None:
    before = copy.deepcopy(record)
    data = written(structure, record, context)
    assert record == before, "writing leaves the record alone"
    again = read(structure, type(record), data, context)
    assert again == record
    assert written(structure, again, context) == data
    lister, recorder = ListVisitor(), RecordingReader(BitReader(data))
    structure(lister, record, context)
    structure(recorder, type(record)(), context)
    assert [(e.name, e.value) for e in lister.elements] == recorder.elements
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            read(structure, type(record), data[:length], context)

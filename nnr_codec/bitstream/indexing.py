"""Putting a table of contents into the model map of a bitstream."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import BinaryIO

from ..errors import InvalidModel
from ..factorization.map_checks import MapError
from ..factorization.model_map import ModelMap
from ..factorization.unit_index import DIGEST_BYTES, IndexedUnit, UnitIndex, short_digest
from .lazy_bytes import loaded
from .parsed_unit import tensors_of
from .records import Topology
from .stream_parser import StreamParser
from .units import read_units, write_record


def write_indexed(source: BinaryIO, output: BinaryIO) -> int:
    """Copy a bitstream of ours, its model map with a table of contents; return the bytes of its
    head, up to the end of the topology unit.

    Args:
        source: the bitstream, which has a topology unit before all data units; read from its
            start on, twice.
        output: where it goes.

    Raises:
        InvalidModel: the names of the tensors are too long together.
    """
    source.seek(0)
    start, model_map, profile = b"", ModelMap(), 0  # of the head, without the topology unit
    units: list[IndexedUnit] = []
    is_head, head_bytes = True, 0
    parser = StreamParser()
    for unit in read_units(source, check=parser.check_header):
        parsed = parser.parse(unit)
        data, record = loaded(parsed.unit.data), parsed.record
        if isinstance(record, Topology):
            is_head, head_bytes = False, parsed.unit.byte_offset + len(data)
            model_map, profile = parsed.context.model_map or model_map, parsed.context.profile
        elif is_head:
            start += data
        else:
            units.append(IndexedUnit(len(data), short_digest(data), tuple(tensors_of(parsed))))
    try:
        head = _indexed_head(start, replace(model_map, index=None), profile, tuple(units))
    except MapError as error:
        raise InvalidModel("index", str(error)) from None
    output.write(head)
    source.seek(head_bytes)
    shutil.copyfileobj(source, output)
    return len(head)


def _indexed_head(
    start: bytes, model_map: ModelMap, profile: int, units: tuple[IndexedUnit, ...]
) -> bytes:
    """Return the units `start`, and behind them that of the topology with the table of `units`."""

    def with_index(digest: bytes) -> tuple[bytes, bytes]:
        index = UnitIndex(digest, units)
        text = replace(model_map, index=index).to_text()
        unit = write_record(Topology(topology_data=text), profile)
        return start + unit, index.to_text().encode()

    head, text = with_index(bytes(DIGEST_BYTES))  # as long as the final one
    before, _, behind = head.rpartition(text)
    head, _ = with_index(short_digest(before, behind))
    return head

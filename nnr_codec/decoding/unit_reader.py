"""Reading of a stream's units from bytes, a path, a file or a pipe, within the limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, BinaryIO

from ..bitstream import DataUnit, ParsedUnit, Topology, parse_units
from ..errors import BitstreamError, LimitExceeded, naming
from ..options import DecodeLimits
from ..support.rereadable_file import RereadableFile
from .stream_map import Selection, StreamMap

Bytes = bytes | bytearray | memoryview
Source = Bytes | str | os.PathLike[str] | BinaryIO | RereadableFile
"""What a bitstream is read from."""


@contextmanager
def opened(source: Source) -> Iterator[Any]:
    """Give bytes as they are, files and pipes as they are, and paths opened; errors name them."""
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file, naming(source, BitstreamError):
            yield file
        return
    name = getattr(source, "name", None)  # of an unnamed temporary file: a number
    with naming(name, BitstreamError) if isinstance(name, str) else nullcontext():
        yield source


def limited_units(source: Any, limits: DecodeLimits, stream: StreamMap) -> Iterator[ParsedUnit]:
    """Parse all units of a stream, within the limit of all elements, and note them in `stream`.

    The weights that are made of factors count with the first unit already, ties with their tensor.
    """
    coded, formed = 0, 0
    for parsed in parse_units(source, limits):
        stream.note(parsed)
        if isinstance(parsed.record, Topology):
            weights = stream.model_map.factorizations.items()
            formed = sum(entry.elements * (1 + len(stream.ties(n))) for n, entry in weights)
        elif isinstance(parsed.record, DataUnit):
            coded += parsed.record.decoded_elements
            if stream.model_map.extras:
                names = [name for name, _ in parsed.record.decoded_roles()]
                ties = sum(len(stream.ties(name)) for name in names)
                coded += parsed.record.decoded_elements * ties
            if coded + formed > limits.max_elements:
                raise LimitExceeded("max_elements", coded + formed, limits.max_elements)
        yield parsed


def data_units(
    source: Any, limits: DecodeLimits, selection: Selection, stream: StreamMap
) -> Iterator[tuple[ParsedUnit, DataUnit]]:
    """Yield the data units to decode, with their headers; note all units in `stream`."""
    for parsed in limited_units(source, limits, stream):
        record = parsed.record
        if isinstance(record, DataUnit) and selection.needs(record, stream):
            yield parsed, record

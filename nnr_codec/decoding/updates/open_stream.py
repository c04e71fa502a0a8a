"""One stream of a base, open: what its headers say, and its tensors, decoded when they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ...bitstream import DataUnit, ParsedUnit
from ...bitstream.parsed_unit import PassedUnit, header_of, tensors_of
from ...bitstream.qp import step_size
from ...errors import BitstreamError, naming
from ...factorization.base_entry import BaseEntry
from ...model import Array
from ...options import DecodeLimits
from ..finishing import ValueMaker
from ..lazy_tensors import LazyMaker, LazyTensor
from ..series import Series
from ..source import Path, Source, data_of, name_of
from ..stream_map import Layers, Selection, StreamMap
from ..unit_decoder import DecodedTensor, outline_data_unit
from ..walk import Walk
from .series_pass import WantedUnit, decoded_unit
from .stream_units import StreamUnits, header
from .unread_tensors import UnreadTensors


class QuantizerStep(NamedTuple):
    """The step of a quantizer, and whether that is dependent (trellis-coded)."""

    size: float = 0.0
    is_dependent: bool = False


@dataclass(frozen=True, slots=True)
class StreamTensor:
    """A tensor of an open stream.

    Attributes:
        outline: its name, role, shape and element type; its values are zeros.
        lazy: decodes it.
    """

    outline: DecodedTensor
    lazy: LazyTensor


class OpenStream:
    """A stream whose headers were read.

    Attributes:
        name: what errors call it.
        digest: SHA-256 of all of its bytes, in hexadecimal digits.
        stream: its model map, and its weights in factors.
        units: all of its units.
        coded: its data units, as later streams need them.
        unread: what was decoded of units and is not yet read; shared with the streams before it.
    """

    def __init__(
        self,
        source: Source,
        limits: DecodeLimits,
        base: OpenStream | None = None,
        cache: Path | None = None,
    ) -> None:
        """Read the headers of a stream.

        Args:
            source: the stream.
            limits: what it may ask for.
            base: the stream before it, whose contexts its own may need.
            cache: of an address.

        Raises:
            BitstreamError: they are damaged, or ask for what is not supported or allowed.
            OSError: the source cannot be read.
        """
        self.name = None if (name := name_of(source)) is None else os.fspath(name)
        self.stream = StreamMap()
        with naming(self.name, BitstreamError):
            data = data_of(source, cache, limits)
            self.digest = hashlib.sha256(data).hexdigest()
            self.units: list[ParsedUnit] = list(self.stream.units(data, limits))
        self._units = {name: unit for unit, names in self.data_units() for name in names}
        earlier: tuple[StreamUnits, ...] = () if base is None else (*base.coded.earlier, base.coded)
        self.coded: StreamUnits = StreamUnits(
            self.name, (unit for unit, _ in self.data_units()), earlier
        )
        self.unread: UnreadTensors = UnreadTensors() if base is None else base.unread

    @property
    def base(self) -> BaseEntry | None:
        """What it is an update of, if it is one."""
        return self.stream.model_map.base

    def data_units(self) -> Iterator[tuple[ParsedUnit, list[str]]]:
        """Yield the data units, and the names of what each decodes to."""
        for unit in self.units:
            if isinstance(unit.record, DataUnit):
                yield unit, [name for name, _ in unit.record.decoded_roles()]

    def tensors(self, layers: Layers) -> Iterator[StreamTensor]:
        """Yield what the stream decodes to by itself; of an update, the differences."""
        selection = Selection(layers)
        data_units = [unit for unit, _ in self.data_units()]
        outlines = map(outline_data_unit, data_units)
        maker = _StreamMaker(self)
        walks = (
            Walk(self.stream, selection, ValueMaker(outlines=True)).tensors(outlines),
            Walk(self.stream, selection, maker).tensors(maker.coded(data_units)),
        )
        yield from map(StreamTensor, *walks)

    def decoded(self, unit: ParsedUnit) -> list[DecodedTensor]:
        """Decode a unit of the stream, and give its integers, too.

        Raises:
            BitstreamError: it is damaged.
        """
        return decoded_unit(self.coded, unit, keep_integers=True)

    def read(self, unit: ParsedUnit, name: str) -> Array:
        """Decode one tensor of a unit of the stream, for the caller alone.

        Raises:
            BitstreamError: it is damaged.
        """
        values = self.unread.pop(unit, name)
        if values is None:
            tensors = decoded_unit(self.coded, unit)
            values = next(tensor.values for tensor in tensors if tensor.name == name)
            self.unread.put(unit, (tensor for tensor in tensors if tensor.name != name))
        return values

    def units_of(self, name: str) -> tuple[WantedUnit, ...]:
        """Return the units that a tensor is decoded of: its own, and that of its second part."""
        rule = self.stream.model_map.tensors.get(name)
        names = (name,) if rule is None or rule.part is None else (name, rule.part)
        return tuple(WantedUnit(self.coded, self._units[each]) for each in names)

    def step(self, name: str) -> QuantizerStep:
        """Return the step that coded tensor `name` was quantized with; 0 if it was not."""
        unit = self._units[name]
        try:
            qp = self.coded.known_qp(name)
        except KeyError:  # in a block each tensor has a qp of its own
            qp = next(tensor.qp for tensor in decoded_unit(self.coded, unit) if tensor.name == name)
        return QuantizerStep() if qp is None else _step(unit, qp)


class _StreamMaker(LazyMaker):
    """Makes the tensors of an open stream."""

    def __init__(self, stream: OpenStream) -> None:
        super().__init__(Series(), None)
        self._stream = stream

    def coded(self, units: Iterable[ParsedUnit | PassedUnit]) -> Iterator[list[LazyTensor]]:
        for unit in map(header_of, units):
            yield [
                LazyTensor(name, role, partial(self._stream.read, unit, name))
                for name, role in tensors_of(unit)
            ]


def _step(unit: ParsedUnit, qp: int) -> QuantizerStep:
    density, _ = unit.context.quantization or (0, 0)
    try:
        return QuantizerStep(step_size(qp, density), bool(header(unit).dq_flag))
    except ValueError:  # decoding refuses it
        return QuantizerStep()

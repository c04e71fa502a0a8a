"""One stream of a base, open: what its headers say, and its tensors, decoded when they are read."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..._core import peek_qp_delta
from ...bitstream import DataUnit, NodeId, ParsedUnit, PayloadType
from ...bitstream.lazy_bytes import loaded
from ...bitstream.qp import qp_delta_bits, step_size
from ...bitstream.unit_layout import Integers, tensor_layouts
from ...errors import BitstreamError, naming
from ...factorization.base_entry import BaseEntry
from ...options import DecodeLimits
from ..finishing import ValueMaker
from ..lazy_tensors import LazyMaker, LazyTensor
from ..series import Series
from ..source import Path, Source, data_of, name_of
from ..stream_map import Layers, Selection, StreamMap
from ..unit_decoder import DecodedTensor, decode_data_unit, outline_data_unit
from ..walk import Walk


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
    """

    def __init__(
        self, source: Source, limits: DecodeLimits, series: Series, cache: Path | None = None
    ) -> None:
        """Read the headers of `source`; `series`: the streams before it; `cache`: of an address.

        Raises:
            BitstreamError: they are damaged, or ask for what is not supported or allowed.
            OSError: the source cannot be read.
        """
        self.name = None if (name := name_of(source)) is None else os.fspath(name)
        self.stream = StreamMap()
        self._series = series
        self._last = threading.local()  # the unit that each thread decoded last, and its tensors
        with naming(self.name, BitstreamError):
            data = data_of(source, cache, limits)
            self.digest = hashlib.sha256(data).hexdigest()
            self.units: list[ParsedUnit] = list(self.stream.units(data, limits))
        self._units = {name: unit for unit, names in self.data_units() for name in names}

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
        maker = _UnitTensors(self)
        walks = (
            Walk(self.stream, selection, ValueMaker(outlines=True)).tensors(outlines),
            Walk(self.stream, selection, maker).tensors(maker.coded(data_units)),
        )
        yield from map(StreamTensor, *walks)

    def decoded(self, unit: ParsedUnit) -> list[DecodedTensor]:
        """Decode a unit; each thread keeps what it decoded last.

        Raises:
            BitstreamError: it is damaged.
        """
        if getattr(self._last, "unit", None) is not unit:
            with naming(self.name, BitstreamError):
                self._last.tensors = decode_data_unit(unit, self._series)
            self._last.unit = unit
        tensors: list[DecodedTensor] = self._last.tensors
        return tensors

    def integers(self, names: Iterable[str]) -> dict[str, tuple[Integers | None, NodeId | None]]:
        """Return the integers of those tensors that the stream has, and their units' identities."""
        found: dict[str, tuple[Integers | None, NodeId | None]] = {}
        for name in names:
            if name in self._units and name not in found:
                for tensor in self.decoded(self._units[name]):
                    if tensor.name == name and tensor.role != "dense":
                        found[name] = tensor.integers, tensor.node_id
        return found

    @cached_property
    def identities(self) -> Mapping[str, tuple[NodeId | None, int | None]]:
        """The identity of each coded tensor's unit, and how many integers it has; None: none, but
        raw floats."""
        found: dict[str, tuple[NodeId | None, int | None]] = {}
        for unit, _ in self.data_units():
            record = _record(unit)
            is_raw = record.payload_type == PayloadType.RAW_FLOAT
            for layout in tensor_layouts(record, unit.context):
                count = None if is_raw else math.prod(layout.shape)
                found[layout.name] = record.node_id, count
        return found

    def step(self, name: str) -> QuantizerStep:
        """Return the step that coded tensor `name` was quantized with; 0 if it was not."""
        unit = self._units[name]
        record = _record(unit)
        if record.payload_type == PayloadType.FLOAT:
            density, base_qp = unit.context.quantization or (0, 0)
            payload = np.frombuffer(loaded(unit.payload), np.uint8)
            qp: int | None = base_qp + peek_qp_delta(payload, qp_delta_bits(density))
        else:  # in a block each tensor has a qp of its own
            qp = next(tensor.qp for tensor in self.decoded(unit) if tensor.name == name)
        return QuantizerStep() if qp is None else _step(unit, qp)


class _UnitTensors(LazyMaker):
    """Makes the tensors of an open stream, whose units are decoded once for all of their tensors,
    while they are read one after the other."""

    def __init__(self, stream: OpenStream) -> None:
        super().__init__(Series(), None)
        self._stream = stream

    def decoded(self, unit: ParsedUnit) -> list[DecodedTensor]:
        return self._stream.decoded(unit)


def _step(unit: ParsedUnit, qp: int) -> QuantizerStep:
    density, _ = unit.context.quantization or (0, 0)
    try:
        return QuantizerStep(step_size(qp, density), bool(_record(unit).dq_flag))
    except ValueError:  # decoding refuses it
        return QuantizerStep()


def _record(unit: ParsedUnit) -> DataUnit:
    if not isinstance(unit.record, DataUnit):
        raise TypeError(f"{unit.unit.label} is no data unit")
    return unit.record

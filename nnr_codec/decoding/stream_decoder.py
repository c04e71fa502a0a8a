"""Decoding of the streams of one series: units to tensors, in the order of the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from ..bitstream import DataUnit, NodeId, ParsedUnit
from ..bitstream.lazy_bytes import RangeSource
from ..bitstream.parsed_unit import PassedUnit, tensors_of
from ..bitstream.unit_layout import Integers
from ..errors import BitstreamError, InvalidOptions, WrongBase, naming
from ..factorization.factorizations import Factorization
from ..options import DecodeLimits
from ..support.ordered_calls import OrderedCalls, has_threads
from ..support.read_ahead import read_ahead
from ..support.shared_function import call_portably
from .finishing import ValueMaker
from .series import Series
from .source import Source, check_sources, for_thread, may_wait, name_of, opened
from .stream_map import Layers, Selection, StreamMap
from .unit_decoder import DecodedTensor, decode_data_unit, outline_data_unit
from .updates.base_model import MISSING, BaseModel, opened_base
from .updates.quality_layers import LayersFound, without_layers
from .walk import Walk

_BYTES_PER_ELEMENT = 8
"""What decoding holds of an element: its integer and its value."""

_Units = Generator[tuple[ParsedUnit, DataUnit], None, None]
"""The data units to decode, with their headers."""


class StreamDecoder:
    """Decodes bitstreams of one series, tensor by tensor.

    Attributes:
        series: the earlier streams.
        base: what streams are updates of; None: they stand by themselves.
        factorizations: the weights that come as factors, of the stream whose headers were read
            last, by name.
        metadata: the text entries of the model's file, of that stream.
    """

    def __init__(
        self,
        *,
        parents: Sequence[Source] = (),
        base: Sequence[Source] | BaseModel = (),
        only: str | None = None,
        limits: DecodeLimits | None = None,
        executor: Executor | None = None,
        cache: str | os.PathLike[str] | None = None,
        quality: int | None = None,
    ) -> None:
        """Decode `parents`, the earlier streams, or open the base; the other arguments are those of
        `decode`."""
        self._selection = Selection(only=only)
        self._limits = limits or DecodeLimits()
        self._executor = executor
        self._cache = cache
        self._quality = quality
        check_sources(base=base, parents=parents, quality=quality)
        self.base: BaseModel | None = None
        if isinstance(base, BaseModel):
            self.base = base
        elif base:
            self.base = opened_base(base, self._limits, cache)
        self.factorizations: Mapping[str, Factorization] = {}
        self.metadata: Mapping[str, str] = {}
        self.series = Series()
        for parent in parents:
            self.series.add(self._states(parent))

    def tensors(
        self, source: Source, layers: Layers = "dense"
    ) -> Generator[DecodedTensor, None, None]:
        """Yield the tensors of a stream in order; arguments and errors are those of `decode`.

        With a pipe, each unit's tensors come as soon as the unit is there and decoded (of a stream
        with blocks that is ordered by name: with a unit behind them); with an executor, other units
        are decoded meanwhile, those that have arrived.
        Of what was handed out nothing is kept but tensors that others are tied to, so that memory
        is that of one tensor, if the caller keeps none either.
        """
        selection, stream = replace(self._selection, layers=layers), StreamMap()
        if self.base is not None:
            model = self._updated(self.base, source)
            if selection.only is None:
                self.base.check_digest(model, self._executor)
            yield from model.tensors(selection, self._executor)
            return
        self.factorizations, self.metadata = stream.factorizations, stream.metadata
        units = self._decode(source, selection, stream)
        try:
            yield from Walk(stream, selection, ValueMaker()).tensors(units)
            return
        except LayersFound as found:  # before any tensor
            streams = found.streams
        yield from self._known(opened_base(streams, self._limits)).tensors(
            selection, self._executor
        )

    def outline(self, source: Source, layers: Layers = "dense") -> Iterator[DecodedTensor]:
        """Yield what `tensors` would, but with zeros that take no memory as values.

        Reads the headers, and decodes nothing.
        """
        selection, stream = replace(self._selection, layers=layers), StreamMap()
        if self.base is not None:
            yield from self._updated(self.base, source).outlines(selection)
            return
        self.factorizations, self.metadata = stream.factorizations, stream.metadata
        try:
            with (
                naming(name_of(source), BitstreamError),
                closing(self._needed_units(source, selection, stream)) as units,
            ):
                outlines = (outline_data_unit(parsed) for parsed, _ in units)
                yield from Walk(stream, selection, ValueMaker(outlines=True)).tensors(outlines)
            return
        except LayersFound as found:
            streams = found.streams
        yield from self._known(opened_base(streams, self._limits)).outlines(selection)

    def _updated(self, base: BaseModel, source: Source) -> BaseModel:
        """Open an update of the base."""
        return self._known(base.with_update(source, self._cache))

    def _known(self, model: BaseModel) -> BaseModel:
        """Note what a model of several streams has beside its tensors."""
        made = model.composition
        self.factorizations, self.metadata = made.factorizations, made.metadata
        return model

    def _needed_units(
        self,
        source: Source,
        selection: Selection,
        stream: StreamMap,
        *,
        fetched: bool = False,
        differences: bool = False,
    ) -> _Units:
        """Yield the data units to decode, with their headers; note all units in `stream`.

        Args:
            source, selection, stream: what of which stream.
            fetched: with all their bytes, as the source is closed when there are no more units.
            differences: whether those of an update to a base will do.

        Raises:
            LayersFound: the source has quality layers.
            WrongBase: the stream is an update of a base, and differences will not do.
        """
        name = name_of(source)
        with opened(source, self._cache) as data:
            units = self._units(data, selection, stream)
            for parsed in without_layers(units, data, self._limits, self._quality, name):
                if stream.model_map.base is not None and not differences:
                    raise WrongBase(MISSING)
                if not (tensors := tensors_of(parsed)):
                    continue
                is_needed = selection.needs(tensors, stream)
                stream.passed.append([] if is_needed else tensors)
                if not is_needed or isinstance(parsed, PassedUnit):
                    continue
                if isinstance(parsed.record, DataUnit):
                    yield parsed.fetched() if fetched else parsed, parsed.record

    def _units(
        self, data: Any, selection: Selection, stream: StreamMap
    ) -> Iterator[ParsedUnit] | Iterator[ParsedUnit | PassedUnit]:
        """Yield the units, but of ranges without what the table of contents makes unnecessary."""
        if not isinstance(data, RangeSource):
            return stream.units(data, self._limits)
        if selection.only is None and self._quality is None:
            data.expect([(0, data.size)])
        return stream.wanted_units(data, self._limits, partial(selection.needs, stream=stream))

    def _states(self, parent: Source) -> dict[str, tuple[Integers | None, NodeId | None]]:
        units = self._decode(parent, Selection(), StreamMap(), keep_integers=True)
        try:
            return {
                tensor.name: (tensor.integers, tensor.node_id)
                for unit in units
                for tensor in unit
                if tensor.role != "dense"
            }
        except LayersFound:
            reason = "has quality layers, which make one model: it can be a base, and no parent"
            raise InvalidOptions("parents", f"{name_of(parent) or 'a stream'} {reason}") from None

    def _decode(
        self, source: Source, selection: Selection, stream: StreamMap, keep_integers: bool = False
    ) -> Iterator[list[DecodedTensor]]:
        """Yield the tensors of each data unit that is needed."""
        with naming(name_of(source), BitstreamError):
            is_slow = self._executor is not None and may_wait(source)
            source = for_thread(source) if is_slow else source
            units = self._needed_units(
                source, selection, stream, fetched=True, differences=keep_integers
            )
            if self._executor is None:
                with closing(units):
                    for parsed, _ in units:
                        yield decode_data_unit(parsed, self.series, keep_integers=keep_integers)
                return
            with read_ahead(units, is_slow, _payload_bytes) as (arriving, has_next):
                yield from self._decode_ahead(arriving, has_next, self._executor, keep_integers)

    def _decode_ahead(
        self,
        units: Iterator[tuple[ParsedUnit, DataUnit]],
        has_next: Callable[[], bool],
        executor: Executor,
        keep_integers: bool,
    ) -> Iterator[list[DecodedTensor]]:
        """Yield the tensors of units that an executor decodes; `has_next`: whether one is there."""
        decode = partial(_decoded_unit, keep_integers=keep_integers)
        with OrderedCalls(executor, decode) as calls:
            while True:
                yield from calls.until(has_next)
                try:
                    unit = next(units, None)
                except Exception:
                    yield from calls.rest()  # errors of the units before it come first
                    raise
                if unit is None:
                    break
                parsed, record = unit
                if record.entry_points and has_threads(executor):
                    # The threads decode parts of a unit rather than units.
                    yield from calls.rest()
                    yield decode_data_unit(parsed, self.series, executor, keep_integers)
                    continue
                size = len(parsed.payload) + _BYTES_PER_ELEMENT * record.decoded_elements
                yield from calls.room_for(size)
                names = [name for name, _ in record.decoded_roles()]
                calls.submit(size, (parsed, names[0], self.series.part(names)))
            yield from calls.rest()


def _payload_bytes(unit: tuple[ParsedUnit, DataUnit]) -> int:
    return len(unit[0].payload)


def _decoded_unit(unit: tuple[ParsedUnit, str, Series], keep_integers: bool) -> list[DecodedTensor]:
    """Decode a unit, given with the name of its first tensor and its part of the series."""
    parsed, name, series = unit
    return call_portably(name, decode_data_unit, parsed, series, None, keep_integers)

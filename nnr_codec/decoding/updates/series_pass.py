"""One way through the streams of a base, oldest first, on which each unit is decoded once.

Contexts of a unit may need the integers of its tensors in all streams before it, and the units
that hold these may need further tensors. What is needed in all is known before anything is
decoded; of each stream only those integers stay in memory that a later one needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from ...bitstream import NodeId, ParsedUnit
from ...bitstream.unit_layout import Integers
from ..series import Series
from ..unit_decoder import DecodedTensor
from .stream_units import StreamUnits, header

CodedIntegers = dict[str, tuple[Integers | None, NodeId | None]]
"""Integers of tensors, None for raw floats, and the identities of their units, by name."""


class WantedUnit(NamedTuple):
    """A unit that is to be decoded for its values, and its stream."""

    stream: StreamUnits
    unit: ParsedUnit


class _Step(NamedTuple):
    """What a pass needs of one stream.

    Attributes:
        names: the tensors whose integers later streams need.
        units: those of this stream that hold them.
    """

    names: frozenset[str]
    units: list[ParsedUnit]


class SeriesPass:
    """Decodes units of a series of streams."""

    def __init__(
        self,
        streams: Sequence[StreamUnits],
        wanted: Collection[WantedUnit] = (),
        names: Iterable[str] = (),
    ) -> None:
        """Find out what is needed, without decoding.

        Args:
            streams: oldest first.
            wanted: units of them that are to be decoded.
            names: of tensors whose integers are needed after all streams.
        """
        self._streams = streams
        self._wanted = {id(unit): unit for _, unit in wanted}
        self._steps = self._needed(wanted, set(names))
        self._series = Series()
        self._passed = 0  # streams whose integers the series has, as far as they are needed
        self._held: dict[int, CodedIntegers] = {}  # of wanted units of the next stream

    def _needed(self, wanted: Iterable[WantedUnit], names: set[str]) -> list[_Step]:
        wanted_of: dict[int, list[ParsedUnit]] = {}
        for stream, unit in wanted:
            wanted_of.setdefault(len(stream.earlier), []).append(unit)
        steps = []
        for place in reversed(range(len(self._streams))):
            by_name = self._streams[place].by_name
            units = {id(by_name[name]): by_name[name] for name in names if name in by_name}
            steps.append(_Step(frozenset(names), list(units.values())))
            for unit in [*units.values(), *wanted_of.get(place, [])]:
                if header(unit).parent is not None:
                    names.update(header(unit).names)
        return steps[::-1]

    def covers(self, stream: StreamUnits, unit: ParsedUnit) -> bool:
        """Whether a unit is one of those wanted, and its stream is still to come."""
        return id(unit) in self._wanted and len(stream.earlier) >= self._passed

    def decoded(
        self, stream: StreamUnits, unit: ParsedUnit, keep_integers: bool = False
    ) -> list[DecodedTensor]:
        """Decode a unit that the pass covers.

        Args:
            stream, unit: what is decoded.
            keep_integers: give the integers; else they are there only if a later stream needs them.

        Raises:
            BitstreamError: it is damaged, or one that it needs is.
        """
        place = len(stream.earlier)
        self._go_to(place)
        is_needed = not self._steps[place].names.isdisjoint(header(unit).names)
        tensors = stream.decoded(unit, self._series, keep_integers or is_needed)
        if is_needed:
            self._held[id(unit)] = _integers(tensors)
        return tensors

    def series(self) -> Series:
        """Return the series after all streams; raises what `decoded` raises."""
        self._go_to(len(self._streams))
        return self._series

    def ends_with(self, streams: Sequence[StreamUnits], names: set[str]) -> bool:
        """Whether `series` returns that of these streams, and has these tensors."""
        last = self._steps[-1].names if self._steps else frozenset()
        return tuple(self._streams) == tuple(streams) and names <= last

    def _go_to(self, place: int) -> None:
        """Put the integers of all streams before number `place` into the series."""
        while self._passed < place:
            stream, step = self._streams[self._passed], self._steps[self._passed]
            found: CodedIntegers = {}
            for unit in step.units:
                found |= self._held.get(id(unit)) or _integers(
                    stream.decoded(unit, self._series, keep_integers=True)
                )
            self._series.add({name: found[name] for name in found if name in step.names})
            self._series = self._series.part(step.names)
            self._held.clear()
            self._passed += 1


def _integers(tensors: Iterable[DecodedTensor]) -> CodedIntegers:
    coded = (tensor for tensor in tensors if tensor.role != "dense")
    return {tensor.name: (tensor.integers, tensor.node_id) for tensor in coded}


_current: ContextVar[SeriesPass | None] = ContextVar("current pass", default=None)


@contextmanager
def one_pass(wanted: Collection[WantedUnit]) -> Iterator[None]:
    """Let one pass decode all of these units that are read, oldest first, while the block runs."""
    current = _current.get()
    if len(wanted) < 2 or (current is not None and all(current.covers(*each) for each in wanted)):
        yield
        return
    newest = max((stream for stream, _ in wanted), key=lambda stream: len(stream.earlier))
    with under_way(SeriesPass([*newest.earlier, newest], wanted)):
        yield


@contextmanager
def under_way(series_pass: SeriesPass) -> Iterator[None]:
    """Let a pass decode the units that it covers while the block runs, in this thread."""
    token = _current.set(series_pass)
    try:
        yield
    finally:
        _current.reset(token)


def series_after(streams: Sequence[StreamUnits], names: Iterable[str]) -> Series:
    """Return the series of the tensors `names` alone after all streams; of a pass that is under way
    if that goes as far.

    Raises:
        BitstreamError: a stream is damaged.
    """
    names, current = set(names), _current.get()
    if current is None or not current.ends_with(streams, names):
        current = SeriesPass(streams, names=names)
    return current.series().part(names)


def decoded_unit(
    stream: StreamUnits, unit: ParsedUnit, keep_integers: bool = False
) -> list[DecodedTensor]:
    """Decode a unit, in the pass of `one_pass` if that covers it, or in one of its own.

    Raises:
        BitstreamError: it is damaged, or one that it needs is.
    """
    current = _current.get()
    if current is None or not current.covers(stream, unit):
        current = SeriesPass([*stream.earlier, stream], [WantedUnit(stream, unit)])
    return current.decoded(stream, unit, keep_integers)

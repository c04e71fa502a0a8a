"""Decoding of the streams of one series: units to tensors, in the order of the model."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, BinaryIO, Literal

from ..bitstream import DataUnit, ParsedUnit, parse_units
from ..errors import BitstreamError, InvalidOptions, LimitExceeded, naming
from ..factorization.factorizations import Factorization
from ..factorization.tensor_order import in_order
from ..options import DecodeLimits
from ..support.ordered_calls import OrderedCalls
from ..support.rereadable_file import RereadableFile
from .extra_tensors import ExtraTensors
from .recomposition import Recomposition
from .series import CodedState, Series
from .unit_decoder import DecodedTensor, decode_data_unit, outline_data_unit

Source = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO | RereadableFile
Layers = Literal["dense", "factorized"]

_MAX_PENDING = 64
"""Units decoded ahead of the one handed out, with an executor."""

_BYTES_PER_ELEMENT = 8
"""What decoding holds of an element: its integer and its value."""


def unwanted_roles(layers: Layers) -> set[str]:
    """Return the roles of tensors that `layers` leaves out: the factors or their product.

    Raises:
        InvalidOptions: `layers` is neither "dense" nor "factorized".
    """
    if layers not in ("dense", "factorized"):
        raise InvalidOptions("layers", f"{layers!r} is neither 'dense' nor 'factorized'")
    return {"G", "H", "factor"} if layers == "dense" else {"dense"}


class StreamDecoder:
    """Decodes bitstreams of one series, tensor by tensor.

    Attributes:
        series: the earlier streams.
        factorizations: the weights that come as factors, of the stream whose headers were read
            last, by name.
    """

    def __init__(
        self,
        *,
        parents: Sequence[Source] = (),
        only: str | None = None,
        limits: DecodeLimits | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Decode `parents`, the earlier streams; the other arguments are those of `decode`."""
        if only is not None and not isinstance(only, str):
            raise InvalidOptions("only", f"{only!r} is no glob")
        self._only = only
        self._limits = limits or DecodeLimits()
        self._executor = executor
        self.factorizations: Mapping[str, Factorization] = {}
        self.series = Series()
        for parent in parents:
            self.series.add(self._states(parent))

    def tensors(self, source: Source, layers: Layers = "dense") -> Iterator[DecodedTensor]:
        """Yield the tensors of a stream in order; arguments and errors are those of `decode`.

        With a pipe, each unit's tensors come as soon as the unit is there (with an executor: a
        few units later; of a stream with blocks that is ordered by name: with a unit behind them).
        Of what was handed out nothing is kept but tensors that others are tied to, so that memory
        is that of one tensor, if the caller keeps none either.
        """
        unwanted, extras = unwanted_roles(layers), ExtraTensors()

        def wanted(weight: str) -> bool:
            names = extras.aliases(weight)
            return any(map(self._matches_name, [weight, *names] if layers == "dense" else names))

        units = self._decode(source, self._only, extras)
        weights = Recomposition(wanted)
        yield from self._arranged(units, extras, unwanted, extras.joined, weights)

    def outline(self, source: Source, layers: Layers = "dense") -> Iterator[DecodedTensor]:
        """Yield what `tensors` would, but with zeros that take no memory as values.

        Reads the headers, and decodes nothing.
        """
        unwanted, extras = unwanted_roles(layers), ExtraTensors()
        self.factorizations = extras.factorizations
        with _opened(source) as data:
            units = _data_units(data, self._only, self._limits, extras)
            outlines = (outline_data_unit(parsed) for parsed, _ in units)
            weights = Recomposition()
            yield from self._arranged(outlines, extras, unwanted, extras.outlined, weights)

    def _arranged(
        self,
        units: Iterable[list[DecodedTensor]],
        extras: ExtraTensors,
        unwanted: set[str],
        join: Callable[[DecodedTensor], DecodedTensor | None],
        weights: Recomposition,
    ) -> Iterator[DecodedTensor]:
        """Yield the tensors that are wanted, and the extras between them.

        `join` completes a tensor by its part; it gives None for a part itself.
        """
        for tensors in in_order(units, lambda: extras.order):
            weights.use(extras.model_map)
            yield from filter(self._selects, extras.after(None))
            while tensors:
                tensor = join(tensors.pop(0))
                if tensor is None:
                    continue
                results = weights.results(tensor)
                del tensor  # so that its memory is free while the next unit is decoded
                for result in results:
                    if result.role not in unwanted and self._selects(result, extras):
                        yield result
                    yield from filter(self._selects, extras.after(result))
                    del result
        yield from filter(self._selects, extras.rest())

    def _selects(self, tensor: DecodedTensor, extras: ExtraTensors | None = None) -> bool:
        """Whether `only` matches the tensor's name, or for a factor that of a product."""
        names = [tensor.name]
        if tensor.role in ("G", "H"):
            names.append(tensor.name[:-2])
        elif tensor.role == "factor" and extras is not None:
            names += extras.weights_of(tensor.name)
        return any(map(self._matches_name, names))

    def _matches_name(self, name: str) -> bool:
        return self._only is None or fnmatch.fnmatchcase(name, self._only)

    def _states(self, parent: Source) -> dict[str, CodedState]:
        units = self._decode(parent, None, ExtraTensors(), keep_integers=True)
        return {
            tensor.name: CodedState(tensor.integers, tensor.node_id)
            for unit in units
            for tensor in unit
            if tensor.role != "dense"
        }

    def _decode(
        self, source: Source, only: str | None, extras: ExtraTensors, keep_integers: bool = False
    ) -> Iterator[list[DecodedTensor]]:
        with _opened(source) as data:
            units = _data_units(data, only, self._limits, extras)
            if self._executor is not None:
                yield from self._decode_ahead(units, self._executor, keep_integers)
                return
            for parsed, _ in units:
                yield decode_data_unit(parsed, self.series, keep_integers=keep_integers)

    def _decode_ahead(
        self,
        units: Iterator[tuple[ParsedUnit, DataUnit]],
        executor: Executor,
        keep_integers: bool,
    ) -> Iterator[list[DecodedTensor]]:
        decode = partial(_decoded_unit, keep_integers=keep_integers)
        with OrderedCalls(executor, decode, _MAX_PENDING) as calls:
            while True:
                try:
                    unit = next(units, None)
                except BitstreamError:
                    yield from calls.rest()  # errors of the units before it come first
                    raise
                if unit is None:
                    break
                parsed, record = unit
                if self._splits(record):
                    yield from calls.rest()
                    yield decode_data_unit(parsed, self.series, executor, keep_integers)
                    continue
                size = len(parsed.payload) + _BYTES_PER_ELEMENT * record.decoded_elements
                yield from calls.room_for(size)
                names = [name for name, _ in record.decoded_roles()]
                calls.submit(size, (parsed, self.series.part(names)))
            yield from calls.rest()

    def _splits(self, record: DataUnit) -> bool:
        """Whether the threads decode parts of a unit rather than units."""
        return bool(record.entry_points) and isinstance(self._executor, ThreadPoolExecutor)


def _decoded_unit(unit: tuple[ParsedUnit, Series], keep_integers: bool) -> list[DecodedTensor]:
    """Decode a unit with the part of the series that concerns it."""
    parsed, series = unit
    return decode_data_unit(parsed, series, keep_integers=keep_integers)


def limited_units(
    source: Any, limits: DecodeLimits, extras: ExtraTensors | None = None
) -> Iterator[ParsedUnit]:
    """Parse all units of a stream, within the limit of all elements; tell `extras` the map.

    The weights that are made of factors count with the first unit already.
    """
    elements = 0
    extras = extras or ExtraTensors()
    for parsed in parse_units(source, limits):
        extras.note(parsed)
        if isinstance(parsed.record, DataUnit):
            elements += parsed.record.decoded_elements * (1 + _aliases(parsed.record, extras))
            found = elements + extras.weight_elements
            if found > limits.max_elements:
                raise LimitExceeded("max_elements", found, limits.max_elements)
        yield parsed


def _aliases(record: DataUnit, extras: ExtraTensors) -> int:
    """Return how many extras are tied to tensors of a unit."""
    if not extras.has_ties:
        return 0
    return sum(len(extras.aliases(name)) for name, _ in record.decoded_roles())


def _data_units(
    source: Any, only: str | None, limits: DecodeLimits, extras: ExtraTensors
) -> Iterator[tuple[ParsedUnit, DataUnit]]:
    """Yield the data units to decode, with their headers; tell `extras` the model map."""
    for parsed in limited_units(source, limits, extras):
        record = parsed.record
        if isinstance(record, DataUnit) and (only is None or _matches(record, only, extras)):
            yield parsed, record


def _matches(record: DataUnit, only: str, extras: ExtraTensors) -> bool:
    """Whether a unit holds a tensor that `only` matches, or one that such a one is tied to or
    made of."""
    names = [found for name, _ in record.decoded_roles() for found in extras.results(name)]
    return any(fnmatch.fnmatchcase(name, only) for name in names)


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """Give bytes as they are, files and pipes as they are, and paths opened; errors name them."""
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file, naming(source, BitstreamError):
            yield file
        return
    name = getattr(source, "name", None)  # of an unnamed temporary file: a number
    with naming(name, BitstreamError) if isinstance(name, str) else nullcontext():
        yield source

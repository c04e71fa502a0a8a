"""A bitstream as a lazily read mapping: names to tensors, decoded when asked for."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext, suppress
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .bitstream import DataUnit, ParsedUnit
from .decoding.extra_tensors import ExtraTensors, join
from .decoding.recomposition import Recomposition, SharedFactors
from .decoding.stream_decoder import Layers, Source, StreamDecoder, limited_units, unwanted_roles
from .decoding.stream_info import StreamInfo, stream_info
from .decoding.unit_decoder import DecodedTensor, decode_data_unit
from .errors import BitstreamError, naming
from .factorization.factorizations import Factorization
from .factorization.model_map import Extra, ModelMap
from .factorization.tensor_order import in_order
from .options import DecodeLimits

Bytes = bytes | bytearray | memoryview

_NO_VALUES = np.zeros(0, np.float32)


class _Place(NamedTuple):
    """Where a tensor is found."""

    name: str
    role: str
    unit: ParsedUnit


class NnrStream(Mapping[str, npt.NDArray[Any]]):
    """The tensors of a bitstream by name, in stream order; each access decodes anew.

    Only a factor that several weights share is kept, until each of them was read once.

    Attributes:
        factorizations: the weights that come as factors, by name: their form, shape, and the names
            of the factors (which ``layers="factorized"`` gives).
    """

    def __init__(
        self,
        source: Bytes | str | os.PathLike[str],
        *,
        parents: Sequence[Source] = (),
        layers: Layers = "dense",
        limits: DecodeLimits | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Read the headers; the arguments and errors are those of :func:`nnr_codec.decode`."""
        unwanted = unwanted_roles(layers)
        self._closed = False
        self._executor = executor
        limits = limits or DecodeLimits()
        self._series = StreamDecoder(parents=parents, limits=limits, executor=executor).series
        data = source if isinstance(source, Bytes) else _mapped(source)
        self._file = data if isinstance(data, mmap.mmap) else None
        self._units: list[ParsedUnit] = []
        self._naming = (
            nullcontext if isinstance(source, Bytes) else partial(naming, source, BitstreamError)
        )
        try:
            with self._naming():
                self._units.extend(limited_units(data, limits))
        except BaseException:
            self.close()
            raise
        self._results: dict[str, Extra | None] = {}  # None: decoded from units of its own
        self._units_by_name: dict[str, ParsedUnit] = {}  # of factors and products alike
        self._map = ModelMap()
        self._shared = SharedFactors()
        self.factorizations: Mapping[str, Factorization] = {}
        self._index(unwanted)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if self._closed:
            raise ValueError("the stream is closed")
        extra = self._results[name]
        if extra is not None:
            if extra.tied_to is None:
                return extra.empty()
            name = extra.tied_to
        with self._naming():
            weight = self._map.factorizations.get(name)
            if weight is None:
                return self._coded(name)
            return self._shared.weight(name, weight, self._coded)

    def _coded(self, name: str) -> npt.NDArray[Any]:
        """Decode a tensor of a unit, with its part if it has one."""
        tensor = self._decoded(name)
        entry = self._map.tensors.get(name)
        if entry is None or entry.part is None:
            return tensor.values
        return join(tensor, entry, self._decoded(entry.part).values)

    def _decoded(self, name: str) -> DecodedTensor:
        unit = self._units_by_name[name]  # the map was checked against the units
        decoded = decode_data_unit(unit, self._series, self._executor)
        return next(tensor for tensor in decoded if tensor.name == name)

    def _index(self, unwanted: set[str]) -> None:
        """Note where each name is found, in the order of the stream."""
        extras, weights = ExtraTensors(), Recomposition()
        self.factorizations = extras.factorizations
        for places in in_order(self._places(extras), lambda: extras.order):
            weights.use(extras.model_map)
            self._add_extras(extras.placed_after(None))
            for name, role, parsed in places:
                self._units_by_name[name] = parsed
                if extras.is_part(name):
                    continue
                for result in weights.results(DecodedTensor(name, role, _NO_VALUES)):
                    if result.role not in unwanted:
                        self._results[result.name] = None
                    self._add_extras(extras.placed_after(result.name))
        self._map = extras.model_map or self._map
        readable = {extra.tied_to if extra else name for name, extra in self._results.items()}
        entries = self._map.factorizations.items()
        self._shared = SharedFactors({name: entry for name, entry in entries if name in readable})

    def _places(self, extras: ExtraTensors) -> Iterator[list[_Place]]:
        """Yield what each data unit holds; tell `extras` the model map."""
        for parsed in self._units:
            extras.note(parsed)
            if isinstance(parsed.record, DataUnit):
                yield [_Place(name, role, parsed) for name, role in parsed.record.decoded_roles()]

    def _add_extras(self, extras: list[Extra]) -> None:
        for extra in extras:
            self._results[extra.name] = extra

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, name: object) -> bool:
        return name in self._results

    def info(self) -> StreamInfo:
        """Return what the headers say, without decoding."""
        return stream_info(self._units)

    def units(self) -> list[ParsedUnit]:
        """Return all units, parsed."""
        return list(self._units)

    def close(self) -> None:
        """Release the file; tensors cannot be read any more."""
        self._closed = True
        self._units = []
        self._results = {}
        self._shared = SharedFactors()
        if self._file is not None:
            with suppress(BufferError):  # somebody still holds a unit: it goes with the last one
                self._file.close()

    def __enter__(self) -> NnrStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _mapped(path: str | os.PathLike[str]) -> mmap.mmap | bytes:
    """Map a file; what cannot be mapped, pipes and empty files, is read."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            return file.read()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def open_stream(
    source: Bytes | str | os.PathLike[str],
    *,
    parents: Sequence[Source] = (),
    layers: Layers = "dense",
    limits: DecodeLimits | None = None,
    executor: Executor | None = None,
) -> NnrStream:
    """Open a bitstream as a mapping of names to tensors, decoded one by one when asked for.

    The arguments are those of :func:`nnr_codec.decode`.

    Raises:
        BitstreamError: the headers are damaged, or ask for what is not supported or allowed; a
            damaged payload shows when its tensor is asked for.
        OSError: the file cannot be read.
    """
    return NnrStream(source, parents=parents, layers=layers, limits=limits, executor=executor)

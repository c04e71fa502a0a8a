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

import numpy.typing as npt

from .bitstream import DataUnit, ParsedUnit
from .decoder import Layers, Source, StreamDecoder, limited_units, unwanted_roles
from .errors import BitstreamError, naming
from .extra_tensors import ExtraTensors, join
from .factorization.model_map import Extra
from .factorization.tensor_order import in_order
from .options import DecodeLimits
from .report import StreamInfo
from .stream_info import stream_info
from .unit_decoder import DecodedTensor, decode_data_unit

Bytes = bytes | bytearray | memoryview


class _Place(NamedTuple):
    """Where a tensor is found."""

    name: str
    role: str
    unit: ParsedUnit


class NnrStream(Mapping[str, npt.NDArray[Any]]):
    """The tensors of a bitstream by name, in stream order; each access decodes anew."""

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
        self._map = data if isinstance(data, mmap.mmap) else None
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
        self._by_name: dict[str, ParsedUnit] = {}
        self._units_by_name: dict[str, ParsedUnit] = {}  # of factors and products alike
        self._extras: dict[str, Extra] = {}
        self._index(unwanted)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if self._closed:
            raise ValueError("the stream is closed")
        extra = self._extras.get(name)
        if extra is not None and extra.tied_to is None:
            return extra.empty()
        unit = self._by_name[name]
        if extra is not None:
            name = extra.tied_to or name
        with self._naming():
            tensor = self._decoded(unit, name)
            model_map = unit.context.model_map
            entry = model_map.tensors.get(name) if model_map is not None else None
            if entry is None or entry.part is None:
                return tensor.values
            part_unit = self._units_by_name[entry.part]  # the map was checked against the units
            return join(tensor, entry, self._decoded(part_unit, entry.part).values)

    def _decoded(self, unit: ParsedUnit, name: str) -> DecodedTensor:
        decoded = decode_data_unit(unit, self._series, self._executor)
        return next(tensor for tensor in decoded if tensor.name == name)

    def _index(self, unwanted: set[str]) -> None:
        """Note where each name is found, in the order of the stream."""
        extras = ExtraTensors()
        for places in in_order(self._places(extras), lambda: extras.order):
            self._add_extras(extras.placed_after(None))
            for name, role, parsed in places:
                self._units_by_name[name] = parsed
                if role not in unwanted and not extras.is_part(name):
                    self._by_name[name] = parsed
                self._add_extras(extras.placed_after(name))

    def _places(self, extras: ExtraTensors) -> Iterator[list[_Place]]:
        """Yield what each data unit holds; tell `extras` the model map."""
        for parsed in self._units:
            extras.use(parsed.context.model_map)
            if isinstance(parsed.record, DataUnit):
                yield [_Place(name, role, parsed) for name, role in parsed.record.decoded_roles()]

    def _add_extras(self, extras: list[Extra]) -> None:
        for extra in extras:
            self._extras[extra.name] = extra
            # An empty tensor has no unit: any will do, as it is not looked at.
            unit = self._units_by_name.get(extra.tied_to or "", self._units[0])
            self._by_name[extra.name] = unit

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

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
        self._by_name = {}
        if self._map is not None:
            with suppress(BufferError):  # somebody still holds a unit: it goes with the last one
                self._map.close()

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

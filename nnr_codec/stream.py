"""A bitstream as a mapping of names to tensors, which are decoded when they are read."""

from __future__ import annotations

import mmap
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import Any

import numpy.typing as npt

from .bitstream import ParsedUnit
from .bitstream.lazy_bytes import RangeSource
from .bitstream.parsed_unit import PassedUnit, header_of
from .decoding.lazy_tensors import LazyMaker, LazyTensor
from .decoding.source import Bytes, Path, Source, check_sources, name_of
from .decoding.stream_decoder import StreamDecoder
from .decoding.stream_description import describe_layers, describe_stream
from .decoding.stream_info import StreamInfo
from .decoding.stream_map import Layers, Selection, StreamMap
from .decoding.updates.base_model import MISSING, BaseModel, opened_base
from .decoding.updates.quality_layers import Buffer, LayersFound, Section, without_layers
from .decoding.walk import Walk
from .errors import BitstreamError, InvalidBitstream, WrongBase, naming
from .factorization.factorizations import Factorization
from .options import DecodeLimits
from .remote.addresses import is_address, local_path
from .remote.remote_file import RemoteFile, forget
from .support.mapped_file import mapped


class NnrStream(Mapping[str, npt.NDArray[Any]]):
    """The tensors of a bitstream by name, in stream order; each access decodes again.

    Only a factor that several weights share is kept, until each of them was read once, and up to
    64 MiB of the tensors of a base. The arguments are those of :func:`nnr_codec.decode`; `source`
    is bytes, a path or an address, of which a tensor is fetched when it is read; of several quality
    layers all are fetched at once. An executor decodes parts of a unit, of a single stream. A base
    is compared with what the update says of it by its bytes alone.

    Attributes:
        factorizations: the weights that come as factors, by name: their form, shape, and the names
            of the factors (which ``layers="factorized"`` gives).
        metadata: the text entries of the model's file, such as ``{"author": "…"}``.

    Raises:
        BitstreamError: the headers are damaged, or ask for what is not supported or allowed; a
            damaged payload shows when its tensor is read.
        WrongBase: the stream is an update, and its base is missing, or another one.
        OSError: the file cannot be read.
        ValueError: a tensor, `info` or `units` is read after `close`.
    """

    def __init__(
        self,
        source: Bytes | RangeSource | Path,
        *,
        base: Sequence[Source] = (),
        parents: Sequence[Source] = (),
        layers: Layers = "dense",
        limits: DecodeLimits | None = None,
        executor: Executor | None = None,
        cache: Path | None = None,
        quality: int | None = None,
    ) -> None:
        check_sources(base=base, parents=parents, quality=quality)
        selection, self._limits = Selection(layers), limits or DecodeLimits()
        self._closed = False
        self._units: list[ParsedUnit | PassedUnit] = []
        self._layers: list[list[ParsedUnit]] = []  # units of the streams of several
        self._tensors: dict[str, LazyTensor] = {}
        self.factorizations: Mapping[str, Factorization] = {}
        self.metadata: Mapping[str, str] = {}
        self._file: mmap.mmap | RangeSource | None = None
        self._path = None if isinstance(source, Bytes) else name_of(source)
        self._is_damaged = False
        self._remote = ExitStack()
        self._remote.callback(self._drop_damaged, source, cache)  # behind the file's end
        decoder = StreamDecoder(parents=parents, limits=limits, executor=executor, cache=cache)
        try:
            with (
                naming(self._path, BitstreamError),
                _forgetting(),
                _opened(source, cache, self._remote) as data,
            ):
                self._file = data if isinstance(data, mmap.mmap | RangeSource) else None
                if base:
                    model = opened_base(base, self._limits, cache)
                    self._take(model.with_update(_update(data, self._path)), selection, last=True)
                else:
                    self._read_headers(
                        data, quality, selection, LazyMaker(decoder.series, executor)
                    )
        except BaseException:
            self.close()
            raise

    def _read_headers(
        self, data: Any, quality: int | None, selection: Selection, maker: LazyMaker
    ) -> None:
        """Read the headers of a stream that stands by itself."""
        stream = StreamMap()
        units = _units(stream, data, self._limits)
        try:
            for unit in without_layers(units, data, self._limits, quality, self._path):
                self._units.append(unit)
                if stream.model_map.base is not None:
                    raise WrongBase(MISSING)
        except LayersFound as found:
            self._units = []
            self._take(opened_base(found.streams, self._limits), selection)
            return
        self.factorizations, self.metadata = stream.factorizations, stream.metadata
        walk = Walk(stream, selection, maker)
        self._tensors = {t.name: t for t in walk.tensors(maker.coded(self._units))}

    def _take(self, model: BaseModel, selection: Selection, last: bool = False) -> None:
        """Take the tensors that several streams make together; `last`: and the units of the last
        one alone."""
        self.factorizations = model.composition.factorizations
        self.metadata = model.composition.metadata
        self._tensors = model.lazy_tensors(selection)
        self._layers = [stream.units for stream in model.streams[-1 if last else 0 :]]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        self._check_open()
        try:
            tensor = self._tensors[name]
            with naming(self._path, BitstreamError), _forgetting():
                return tensor.read()
        except (KeyError, ValueError):
            self._check_open()  # it was closed meanwhile, in another thread
            raise
        except InvalidBitstream:
            self._is_damaged = True
            raise

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def info(self) -> StreamInfo:
        """Return what the headers say, without decoding."""
        if len(self._layers) > 1:
            return describe_layers(self._layers)
        return describe_stream(self._headers())

    def units(self) -> list[ParsedUnit]:
        """Return all units, parsed; those of a file with copies of their bytes."""
        return [unit if self._file is None else unit.copy() for unit in self._headers()]

    def _headers(self) -> Iterator[ParsedUnit]:
        self._check_open()
        with naming(self._path, BitstreamError), _forgetting():
            yield from map(header_of, self._units or chain.from_iterable(self._layers))

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the stream is closed")

    def close(self) -> None:
        """Release the file; nothing can be read any more, and the mapping is empty."""
        self._closed = True
        units, self._units, self._layers = self._units, [], []
        self._tensors = {}
        if isinstance(self._file, mmap.mmap):
            with suppress(BufferError):  # a read in another thread still uses it, and closes it
                for unit in units:  # whoever holds them, which may be the traceback of an error
                    if isinstance(unit, ParsedUnit):
                        unit.release()
                self._file.close()
        self._remote.close()

    def _drop_damaged(self, source: Any, cache: Path | None) -> None:
        """Let the cache fetch anew what turned out to be damaged."""
        if self._is_damaged and cache is not None and is_address(source):
            with suppress(OSError):
                forget(str(source), cache)

    def __enter__(self) -> NnrStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _units(
    stream: StreamMap, data: Any, limits: DecodeLimits
) -> Iterator[ParsedUnit] | Iterator[ParsedUnit | PassedUnit]:
    """Yield the units of a stream; of ranges those parsed that tell of weights in factors."""
    if isinstance(data, RangeSource):
        return stream.wanted_units(data, limits, stream.makes_products)
    return stream.units(data, limits)


def _update(data: Any, name: Path | None) -> Any:
    """Return what is opened, as a source."""
    if not isinstance(data, mmap.mmap):
        return data
    return Section(Buffer(data), 0, len(data), None if name is None else os.fspath(name))


@contextmanager
def _forgetting() -> Iterator[None]:
    """Let the tracebacks of errors hold no variables, some of which are parts of a mapped file."""
    try:
        yield
    except BitstreamError as raised:
        error: BaseException | None = raised
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        raise


@contextmanager
def _opened(
    source: Bytes | RangeSource | Path, cache: Path | None, kept: ExitStack
) -> Iterator[Any]:
    """Give bytes and ranges as they are, a file mapped, an address opened in `kept`, and a pipe
    opened; but for the latter, what is given outlives the block."""
    if isinstance(source, Bytes | RangeSource):
        yield source
    elif is_address(source):
        yield kept.enter_context(RemoteFile(str(source), cache=cache))
    else:
        with open(local_path(source), "rb") as file:
            yield mapped(file)

"""What decoders have after a stream and its updates: the model that all of them make together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from ...errors import BitstreamError, LimitExceeded, WrongBase, naming
from ...model import Array
from ...options import DecodeLimits
from ...support.digest import digest
from ...support.ordered_calls import given, has_threads, ordered_results
from ..lazy_tensors import LazyTensor, SharedFactors
from ..source import Path, Source, data_of, name_of
from ..stream_map import Selection
from ..unit_decoder import DecodedTensor
from .composition import Composition, composition_of
from .kept_tensors import KeptTensors
from .merge import updated
from .open_stream import OpenStream
from .output_tensors import output_tensors
from .quality_layers import Section, quality_layers_of
from .stream_series import StreamSeries

MISSING = "is an update: name its base, which are the streams before it, oldest first"
"""Why such a stream cannot be decoded by itself."""

_MOST_STREAMS = 256
"""Of a base."""

_BYTES_PER_ELEMENT = 20
"""What decoding holds of an element: its sum, a summand, and integers of two streams."""


class BaseModel:
    """Streams, oldest first, each of which is an update of those before it.

    Nothing is decoded before it is read. Of decoded tensors the first 64 MiB are kept.

    Attributes:
        streams: oldest first.
        composition: the model that they make.
        before: the model of all streams but the last; None: there is one stream alone.
        update: what the last one decodes to by itself; None likewise.
    """

    def __init__(
        self,
        streams: Sequence[OpenStream],
        composition: Composition,
        limits: DecodeLimits,
        before: BaseModel | None = None,
        update: Composition | None = None,
    ) -> None:
        """Take what was opened: see :func:`opened_base` and :meth:`with_update`."""
        self.streams = tuple(streams)
        self.composition = composition
        self.before = before
        self.update = update
        self._limits = limits
        self._kept = KeptTensors()

    def with_update(
        self, source: Source, cache: Path | None = None, keep: bool = True
    ) -> BaseModel:
        """Return the model with one more update, whose headers are read.

        Args:
            source: the update.
            cache: of an address, as of :class:`~nnr_codec.remote.remote_file.RemoteFile`.
            keep: whether tensors of this model will be read otherwise, too.

        Raises:
            WrongBase: the source is no update, or one of another base.
            BitstreamError: its headers are damaged, do not fit the base, or ask for too much.
        """
        limits = self._limits
        stream = OpenStream(source, limits, self.streams[-1], cache)
        with naming(stream.name, BitstreamError):
            entry, last = stream.base, self.streams[-1]
            if entry is None:
                raise WrongBase("is no update, but stands by itself: it needs no base")
            if entry.stream != last.digest:
                other = (
                    "another stream" if last.name is None else f"another stream than {last.name}"
                )
                reason = f"is an update of {other}: of the one with the SHA-256 {entry.stream}"
                raise WrongBase(reason)
            own = composition_of(stream)
            before = self._with_kept_pieces() if keep else self.composition
            made = updated(before, own, entry)
            made.check(limits, merges=len(self.streams))
        if len(self.streams) == _MOST_STREAMS:
            raise LimitExceeded("streams of a base", _MOST_STREAMS + 1, _MOST_STREAMS)
        return BaseModel([*self.streams, stream], made, limits, self, own)

    def _with_kept_pieces(self) -> Composition:
        pieces = {
            name: piece.kept_by(partial(self._kept.get, name))
            for name, piece in self.composition.pieces.items()
        }
        return replace(self.composition, pieces=pieces)

    @cached_property
    def series(self) -> StreamSeries:
        """The streams as the earlier ones of a series."""
        return StreamSeries([stream.coded for stream in self.streams])

    def read(self, name: str) -> Array:
        """Return what is there under the name of a tensor, or of a factor; not to be changed.

        Raises:
            BitstreamError: a stream is damaged.
            KeyError: there is nothing.
        """
        piece = self.composition.piece(name)
        if piece is not None:
            return self._kept.get(name, piece.read)
        tensor = self.composition.tensors[name]
        return np.zeros(tensor.shape, tensor.dtype)

    def digest(self, executor: Executor | None = None) -> str:
        """Return the digest of the model, the whole of which is decoded."""
        tensors = self.tensors(Selection(), executor, keep=True)
        return digest((tensor.name, tensor.values) for tensor in tensors)

    def check_digest(self, update: BaseModel, executor: Executor | None = None) -> None:
        """Decode this model, and compare it with what an update of it expects.

        Raises:
            WrongBase: it is another one.
            BitstreamError: it is damaged.
        """
        entry = update.streams[-1].base
        found = self.digest(executor)
        if entry is None or entry.digest != found:
            expected = None if entry is None else entry.digest
            with naming(update.streams[-1].name, BitstreamError):
                raise WrongBase(f"expects a base with the digest {expected}; this one's is {found}")

    def outlines(self, selection: Selection) -> Iterator[DecodedTensor]:
        """Yield what `tensors` would, but with zeros that take no memory as values."""
        for output in output_tensors(self.composition, selection):
            zeros = np.broadcast_to(np.zeros((), output.dtype), output.shape)
            yield DecodedTensor(output.name, output.role, zeros, tied_to=output.tied_to)

    def tensors(
        self, selection: Selection, executor: Executor | None = None, keep: bool = False
    ) -> Iterator[DecodedTensor]:
        """Yield the tensors that are selected, in the order of the model.

        Args:
            selection: which, and whether weights come as factors.
            executor: if its workers are threads, they decode tensors ahead.
            keep: whether tensors will be read again, and not be changed by the caller.

        Raises:
            BitstreamError: a stream is damaged.
        """
        outputs = output_tensors(self.composition, selection)
        uses = Counter(output.source for output in outputs)
        firsts = {output.source: output for output in reversed(outputs)}
        shared: dict[str, Array] = {}
        lazy = self.lazy_tensors(selection, keep)
        calls = (
            (_BYTES_PER_ELEMENT * output.elements, given(lazy[output.name]))
            for output in outputs
            if firsts[output.source] is output
        )
        threads = executor if has_threads(executor) else None
        results = ordered_results(threads, _read, calls)
        for output in outputs:
            source = output.source
            values = shared.pop(source) if source in shared else next(results)
            uses[source] -= 1
            if uses[source]:
                shared[source] = values
            yield DecodedTensor(output.name, output.role, values, tied_to=output.tied_to)
            del values

    def lazy_tensors(self, selection: Selection, keep: bool = False) -> dict[str, LazyTensor]:
        """Return what decodes each tensor that is selected, by name, in the order of the model;
        arguments as of `tensors`."""
        read = self.read if keep else self._read_anew
        shared, weights = SharedFactors(), self.composition.factorizations
        found = {}
        for output in output_tensors(self.composition, selection):
            weight = output.tied_to or output.name
            read_it: Callable[[], Array] = partial(read, output.name)
            if weight in weights and weight not in self.composition.products:
                names = weights[weight].factors
                factors = [LazyTensor(name, "weight", partial(read, name)) for name in names]
                shared.add_weight(weight, factors)
                read_it = partial(shared.form, weight, weights[weight], factors)
            found[output.name] = LazyTensor(output.name, output.role, read_it)
        return found

    def _read_anew(self, name: str) -> Array:
        """Return what `read` does, as an array of the caller's own."""
        piece = self.composition.piece(name)
        values = self.read(name) if piece is None else piece.read()
        return values if values.flags.writeable else values.copy()


def _read(tensor: LazyTensor) -> Array:
    return tensor.read()


def opened_base(
    sources: Sequence[Source], limits: DecodeLimits | None = None, cache: Path | None = None
) -> BaseModel:
    """Open the streams of a base, of which headers are read, and compared with each other.

    Args:
        sources: oldest first, one or more, of which each may have quality layers; files are to stay
            as they are while they are read.
        limits: what each may ask for; by default ``DecodeLimits()``.
        cache: of addresses, as of :class:`~nnr_codec.remote.remote_file.RemoteFile`.

    Raises:
        WrongBase: the first is an update itself, or another one is none of those before it.
        BitstreamError: headers are damaged, or ask for what is not allowed.
        OSError: a source cannot be read.
    """
    limits = limits or DecodeLimits()
    sections = [section for source in sources for section in _sections(source, limits, cache)]
    first = OpenStream(sections[0], limits)
    if first.base is not None:
        with naming(first.name, BitstreamError):
            raise WrongBase("is an update itself: name the streams before it, oldest first")
    made = BaseModel([first], composition_of(first), limits)
    for section in sections[1:]:
        made = made.with_update(section, keep=False)
    return made


def _sections(source: Source, limits: DecodeLimits, cache: Path | None) -> list[Section]:
    if isinstance(source, Section):
        return [source]
    name = name_of(source)
    with naming(name, BitstreamError):
        return quality_layers_of(data_of(source, cache, limits), limits, name)

"""The encoder: load, quantize, code, write."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from typing import Any

from .bitstream import Context, ModelParameterSet, Topology, write_mps, write_start, write_topology
from .checkpoints import open_checkpoint
from .checkpoints.atomic import atomic_output
from .decoder import Source, StreamDecoder
from .errors import InvalidModel, InvalidOptions
from .exact import Representation, name_parts, represent
from .factorization.model_map import ModelMap
from .model import Model, Parameter
from .model_mapping import coded_names, map_model, travels_exactly, with_representations
from .options import DecodeLimits, EncodeOptions
from .report import EncodeReport, TensorReport
from .series import Series
from .tensor_encoder import EncodedTensor, TensorEncoder

ModelLike = str | os.PathLike[str] | Model | Mapping[str, Any]


@dataclass(frozen=True)
class EncodeResult:
    """What `encode` made.

    Attributes:
        report: sizes and errors, by tensor and in all.
        data: the bitstream; None if it was written to a file.
    """

    report: EncodeReport
    data: bytes | None


def encode(
    model_or_path: ModelLike,
    out: str | os.PathLike[str] | None = None,
    options: EncodeOptions | None = None,
    *,
    parents: Sequence[Source] = (),
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Callable[[TensorReport], object] | None = None,
) -> EncodeResult:
    """Encode a model into an NNR bitstream.

    Args:
        model_or_path: a checkpoint's path, a Model, or arrays by name.
        out: file to write, which appears complete or not at all; None: return the bytes.
        options: how; by default ``EncodeOptions()``.
        parents: the earlier streams of a series, oldest first, for contexts alone: the model
            already is a difference.
        overwrite: replace an existing file.
        executor: codes tensors side by side, in threads, processes or elsewhere; the bytes do
            not depend on it.
        progress: called with each tensor's report when it is written.

    Raises:
        InvalidModel: a tensor cannot be coded; the message names it.
        InvalidOptions: an option is out of range, or `out` cannot be written.
        BitstreamError: a parent is damaged.
        OSError: a file cannot be read or written.
    """
    options = options or EncodeOptions()
    start = time.perf_counter()
    series = StreamDecoder(parents=parents, executor=executor).series
    with _opened_model(model_or_path) as model, _naming(model):
        encoder = StreamEncoder(options, series, executor, progress)
        if out is None:
            data = b"".join(encoder.units(model))
        else:
            data = None
            with atomic_output(out, overwrite=overwrite) as file:
                for unit in encoder.units(model):
                    file.write(unit)
    return EncodeResult(encoder.report(time.perf_counter() - start), data)


@contextmanager
def _naming(model: Model) -> Iterator[None]:
    """Let errors of the model name its file, unless they do."""
    try:
        yield
    except InvalidModel as error:
        if model.source is not None and model.source not in str(error):
            error.source = model.source
        raise


def _opened_model(source: ModelLike) -> Model:
    if isinstance(source, Model):
        # The caller's stays open.
        return Model(source.values(), metadata=source.metadata, source=source.source)
    if isinstance(source, str | os.PathLike):
        return open_checkpoint(source)
    return Model.from_arrays(source)


class StreamEncoder:
    """Writes one bitstream, unit by unit."""

    def __init__(
        self,
        options: EncodeOptions,
        series: Series | None = None,
        executor: Executor | None = None,
        progress: Callable[[TensorReport], object] | None = None,
    ) -> None:
        """`series`: the earlier streams; without any, the stream is no update."""
        self._options = options
        self._series = series or Series()
        self._executor = executor
        self._progress = progress
        self._tensors: list[TensorReport] = []
        self._unmatched: tuple[str, ...] = ()
        self._header_bytes = 0
        self.profile = self._choose_profile()

    def _choose_profile(self) -> int:
        if self._options.profile == 0 and self._series.depth:
            raise InvalidOptions("profile", "updates with parents need profile 1")
        if self._options.profile != "auto":
            return self._options.profile
        tools = [self._options.row_skipping]
        tools += [bool(values.get("row_skipping")) for _, values in self._options.overrides]
        return int(any(tools) or self._series.depth > 0)

    def units(self, model: Model) -> Iterator[bytes]:
        """Yield the stream's units in order.

        Raises:
            InvalidModel: a tensor cannot be coded.
        """
        mps = ModelParameterSet(
            mps_qp_density=self._options.qp_density,
            mps_parent_signalling_enabled_flag=int(self._series.depth > 0),
        )
        coded, model_map = map_model(model.values())
        exact = name_parts(self._represented(coded), model.names())
        model_map = with_representations(model_map, exact)
        topology = Topology(topology_data=_map_text(model_map))
        head = write_start(self.profile) + write_mps(mps, self.profile) + write_topology(topology)
        self._header_bytes += len(head)
        yield head
        self._unmatched = tuple(self._options.unmatched_globs(model.names()))
        tensor_encoder = TensorEncoder(
            self._options,
            Context(self.profile, mps),
            self._series,
            coded_names(coded, exact),
            exact,
        )
        for encoded in self._encoded(tensor_encoder, coded):
            self._tensors.append(encoded.report)
            yield encoded.data
            if self._progress is not None:
                self._progress(encoded.report)

    def _represented(self, parameters: list[Parameter]) -> dict[str, Representation]:
        """Find the representations of tensors that travel exactly, in a first pass over them."""
        chosen = [p for p in parameters if travels_exactly(p, self._options)]
        calls = ((parameter.read(), self._options.qp_density) for parameter in chosen)
        if self._executor is None:
            found: Iterable[Representation | None] = starmap(represent, calls)
        else:
            found = _in_order(self._executor, represent, calls)
        return {p.name: r for p, r in zip(chosen, found, strict=True) if r is not None}

    def _encoded(
        self, encoder: TensorEncoder, parameters: list[Parameter]
    ) -> Iterable[EncodedTensor]:
        arrays = ((parameter.name, parameter.read()) for parameter in parameters)
        if self._executor is None:
            return starmap(encoder.encode, arrays)
        return _in_order(self._executor, encoder.encode, arrays)

    def report(self, seconds: float) -> EncodeReport:
        """Return sizes and errors of what was encoded."""
        return EncodeReport(
            tuple(self._tensors), self._header_bytes, seconds, self.profile, self._unmatched
        )


def _map_text(model_map: ModelMap) -> str:
    """Return the map's text; empty if it says nothing."""
    text = model_map.to_text() if model_map else ""
    limit = DecodeLimits().max_topology_bytes
    if len(text.encode()) > limit:
        raise InvalidModel("model map", f"longer than {limit} bytes")
    return text


def _in_order(executor: Executor, function: Any, calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Call with an executor, in order, with few results waiting: their memory stays bounded."""
    pending: deque[Any] = deque()
    try:
        for arguments in calls:
            pending.append(executor.submit(function, *arguments))
            if len(pending) > _MAX_PENDING:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


_MAX_PENDING = 16
"""Tensors encoded ahead of the one written, with an executor."""


def save_file(
    tensors: Mapping[str, Any],
    filename: str | os.PathLike[str],
    options: EncodeOptions | None = None,
) -> None:
    """Encode arrays into the file `filename`, replacing it; raises what `encode` raises."""
    encode(tensors, filename, options, overwrite=True)

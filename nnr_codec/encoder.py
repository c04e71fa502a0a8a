"""The encoder: load, put factors in place of weights, represent what travels exactly, group layers,
encode unit by unit, write."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO

import numpy.typing as npt

from .bitstream import Context, ModelParameterSet, Topology, write_mps, write_start, write_topology
from .carriage import (
    Carriage,
    CarriedWeight,
    carry,
    merged_reports,
    with_blocks,
    with_weights,
)
from .checkpoints import open_checkpoint
from .checkpoints.atomic import atomic_output
from .choices import Draft, draft_file, smaller_profile, within_target
from .decoder import Source, StreamDecoder
from .decompose import decompose_model
from .errors import InvalidModel, InvalidOptions, naming
from .exact import Representation, name_parts, represent
from .factorization.forms import FactoredWeight
from .factorization.model_map import ModelMap
from .factorization.tensor_order import TensorOrder
from .grouping import SAVED_BYTES, Group, Grouping, group_layers, ungrouped
from .model import Model, Parameter
from .model_mapping import (
    coded_names,
    is_quantized,
    map_model,
    travels_exactly,
    with_representations,
)
from .options import DecodeLimits, EncodeOptions
from .ordered_calls import ordered_results
from .quantize.moments import Calibration
from .report import EncodeReport, TensorReport
from .series import Series
from .tensor_encoder import EncodedTensors, TensorEncoder
from .weight_errors import WeightErrors

_MAX_PENDING = 64
"""Tensors encoded ahead of the one written, with an executor."""

_BYTES_PER_ELEMENT = 12
"""What encoding holds of an element: its value, its integer, and what decoders make of that."""

_NODE_ID_BYTES = 2
"""What a data unit of profile 1 has more than one of profile 0."""

_WORTH_ENCODING_AGAIN = 0.005
"""The part of a stream that must be there to be saved."""

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
    factorizations: Mapping[str, FactoredWeight] | None = None,
    carriage: Carriage | None = None,
    calibration: Calibration | None = None,
    parents: Sequence[Source] = (),
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Callable[[TensorReport], object] | None = None,
) -> EncodeResult:
    """Encode a model into an NNR bitstream.

    Args:
        model_or_path: a checkpoint's path, a Model, or arrays by name. One of factors with their
            map, as ``nnr-decode --layers factorized`` writes it, is the model of their weights.
        out: file to write, which appears complete or not at all; None: return the bytes.
        options: how; by default ``EncodeOptions()``.
        factorizations: weights of the model, by name, that travel as these factors; their dense
            values are read for the report alone, which tells the error of what decoders make of the
            factors. An array that several of them have is coded once. What `options` say of a
            weight holds for its factors ``<weight>.factor0``, … as well. None: what
            `options.decomposition` asks for (:func:`nnr_codec.decompose.decompose_model`).
        carriage: "dc": weights of the form "lr" as DC blocks of the standard, where their factors
            are quantized with the same dq, unary_length and scan_order; the other ones, and with
            "factors" all, as a tensor for each factor. None: as `options.decomposition` says.
        calibration: second moments of the layers' inputs, for the decomposition.
        parents: the earlier streams of a series, oldest first, for contexts alone: the model
            already is a difference.
        overwrite: replace an existing file.
        executor: codes tensors side by side, in threads, processes or elsewhere; the bytes do
            not depend on it.
        progress: called with each tensor's report when it is coded; where the stream is made more
            than once (for a target size, or to compare profiles), each time.

    Raises:
        InvalidModel: a tensor cannot be coded; the message names it.
        InvalidOptions: an option is out of range, or `out` cannot be written.
        BitstreamError: a parent is damaged.
        OSError: a file cannot be read or written.
    """
    options = options or EncodeOptions()
    start = time.perf_counter()
    series = StreamDecoder(parents=parents, executor=executor).series

    def draft(chosen: EncodeOptions) -> Draft:
        encoder = StreamEncoder(chosen, series, executor, progress, carried)
        file = files.enter_context(draft_file())
        for unit in encoder.units(model):
            file.write(unit)
        return Draft(file, encoder.report(), encoder.skippable_bytes)

    with (
        ExitStack() as files,
        _opened_model(model_or_path) as opened,
        _naming(opened),
        _output(out, overwrite=overwrite) as output,
    ):
        model, found = with_weights(opened)
        if factorizations is None and options.decomposes:
            dense = {name: parameter for name, parameter in model.items() if name not in found}
            made = decompose_model(dense, options, calibration=calibration, executor=executor)
            factorizations, options = made.factorizations, made.adapted(options)
        chosen_carriage = carriage or options.decomposition.carriage
        carried = carry(model, {**found, **(factorizations or {})}, options, chosen_carriage)
        kept = _smallest(draft, model, options)
        kept.copy_to(output)
        data = output.getvalue() if isinstance(output, io.BytesIO) else None
    return EncodeResult(replace(kept.report, seconds=time.perf_counter() - start), data)


def _smallest(
    draft: Callable[[EncodeOptions], Draft], model: Model, options: EncodeOptions
) -> Draft:
    """Return the draft of the smaller profile, within the target size if there is one."""
    smaller = partial(smaller_profile, draft)
    if options.target_size is None:
        return smaller(options)
    quantizes = any(is_quantized(p, options) for p in model.values())
    original_bytes = sum(p.nbytes for p in model.values())
    return within_target(smaller, options, original_bytes, quantizes)


def _output(
    out: str | os.PathLike[str] | None, *, overwrite: bool
) -> AbstractContextManager[BinaryIO]:
    return nullcontext(io.BytesIO()) if out is None else atomic_output(out, overwrite=overwrite)


def _naming(model: Model) -> AbstractContextManager[None]:
    return nullcontext() if model.source is None else naming(model.source, InvalidModel)


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
        carried: Mapping[str, CarriedWeight] | None = None,
    ) -> None:
        """`series`: the earlier streams; without any, the stream is no update. `carried`: the
        weights that travel as factors, by name."""
        self._options = options
        self._series = series or Series()
        self._executor = executor
        self._progress = progress
        self._carried = carried or {}
        self._errors = WeightErrors(self._carried)
        self._tensors: list[TensorReport] = []
        self._unmatched: tuple[str, ...] = ()
        self._header_bytes = 0
        self._grouped_vectors = 0
        self._skippable_bytes = 0.0
        self.profile = self._choose_profile()

    def _choose_profile(self) -> int:
        if self._options.profile == 0 and self._series.depth:
            raise InvalidOptions("profile", "updates with parents need profile 1")
        if self._options.profile != "auto":
            return self._options.profile
        tools = [self._options.row_skipping is True]
        tools += [values.get("row_skipping") is True for _, values in self._options.overrides]
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
        coded, model_map = map_model(model.values(), self._carried)
        taken = [name for weight in self._carried.values() for name in weight.names]
        exact = name_parts(self._represented(coded), [*model.names(), *taken])
        model_map = with_representations(model_map, exact)
        names = coded_names(coded, exact)
        tensor_encoder = TensorEncoder(
            self._options, Context(self.profile, mps), self._series, names, exact, self._carried
        )
        grouping = self._grouping(coded, model_map, tensor_encoder)
        model_map = replace(model_map, order=grouping.order)
        topology = Topology(topology_data=_map_text(model_map))
        head = write_start(self.profile) + write_mps(mps, self.profile) + write_topology(topology)
        self._header_bytes += len(head)
        yield head
        self._unmatched = tuple(self._options.unmatched_globs([*model.names(), *names]))
        for encoded in self._encoded(tensor_encoder, grouping.groups):
            self._tensors += encoded.reports
            self._errors.take(encoded.factors)
            self._grouped_vectors += len(encoded.reports) - 1
            self._skippable_bytes += encoded.skippable_bytes
            yield encoded.data
            if self._progress is not None:
                for report in encoded.reports:
                    self._progress(report)
        places = {parameter.name: place for place, parameter in enumerate(coded)}
        self._tensors.sort(key=lambda report: places[report.name])

    def _represented(self, parameters: list[Parameter]) -> dict[str, Representation]:
        """Find the representations of tensors that travel exactly, in a first pass over them."""
        chosen = [p for p in parameters if travels_exactly(p, self._options)]
        calls = (
            (_BYTES_PER_ELEMENT * p.size, partial(_with_options, p, self._options)) for p in chosen
        )
        found = ordered_results(self._executor, _representation, calls, _MAX_PENDING)
        return {p.name: r for p, r in zip(chosen, found, strict=True) if r is not None}

    def _grouping(
        self, coded: list[Parameter], model_map: ModelMap, encoder: TensorEncoder
    ) -> Grouping:
        # In the second edition a unit has one identity, for all of its tensors: an update could
        # refer to the block as a whole alone.
        if not self._options.group or self.profile == 1:
            return with_blocks(ungrouped(coded), self._carried)

        def map_bytes(order: TensorOrder) -> int:
            return len(_map_text(replace(model_map, order=order)).encode())

        # Parts of tensors stand before them, whatever their names; so do the factors of a block.
        any_block = any(weight.is_block for weight in self._carried.values())
        by_name = not model_map.owners and not any_block
        grouping = group_layers(coded, encoder.may_join, map_bytes, by_name=by_name)
        return with_blocks(grouping, self._carried)

    def _encoded(self, encoder: TensorEncoder, groups: list[Group]) -> Iterator[EncodedTensors]:
        values = (
            (_BYTES_PER_ELEMENT * sum(p.size for p in group.values()), partial(_values, group))
            for group in groups
        )
        return ordered_results(self._executor, encoder.encode_unit, values, _MAX_PENDING)

    def report(self, seconds: float = 0.0) -> EncodeReport:
        """Return sizes and errors of what was encoded."""
        tensors = merged_reports(self._tensors, self._carried, self._errors.found)
        return EncodeReport(
            tuple(tensors), self._header_bytes, seconds, self.profile, self._unmatched
        )

    @property
    def skippable_bytes(self) -> float:
        """About how many bytes row skipping would have saved, less what profile 1 costs.

        0 or less if that is too little for encoding once more.
        """
        if self._options.profile != "auto" or self.profile == 1:
            return 0.0
        cost: float = _NODE_ID_BYTES * len(self._tensors) + SAVED_BYTES * self._grouped_vectors
        cost += _WORTH_ENCODING_AGAIN * sum(report.bytes for report in self._tensors)
        return self._skippable_bytes - cost


def _map_text(model_map: ModelMap) -> str:
    """Return the map's text; empty if it says nothing."""
    text = model_map.to_text() if model_map else ""
    limit = DecodeLimits().max_topology_bytes
    if len(text.encode()) > limit:
        raise InvalidModel("model map", f"longer than {limit} bytes")
    return text


def _with_options(
    parameter: Parameter, options: EncodeOptions
) -> tuple[npt.NDArray[Any], EncodeOptions]:
    """Read a tensor: its values, and its own options."""
    return parameter.read(), options.for_tensor(parameter.name)


def _representation(
    tensor: tuple[npt.NDArray[Any], EncodeOptions],
) -> Representation | None:
    values, options = tensor
    return represent(values, options.qp_density, codebook=bool(options.codebook))


def _values(group: Group) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    """Read the tensors of a unit: (name, values) by role."""
    return {role: (parameter.name, parameter.read()) for role, parameter in group.items()}


def save_file(
    tensors: Mapping[str, Any],
    filename: str | os.PathLike[str],
    options: EncodeOptions | None = None,
) -> None:
    """Encode arrays into the file `filename`, replacing it; raises what `encode` raises."""
    encode(tensors, filename, options, overwrite=True)

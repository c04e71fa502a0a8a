"""Encoding of one bitstream, unit by unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy.typing as npt

from ..bitstream import Context, ModelParameterSet, Topology, write_mps, write_start, write_topology
from ..decoding.series import Series
from ..errors import InvalidModel, InvalidOptions
from ..factorization.model_map import ModelMap
from ..factorization.tensor_order import TensorOrder
from ..model import Model, Parameter
from ..options import DecodeLimits, EncodeOptions
from ..report import EncodeReport, TensorReport
from ..support.ordered_calls import ordered_results
from .exact import Representation, name_parts, represent
from .factor_transport import CarriedWeight, merged_reports, with_blocks
from .grouping import SAVED_BYTES, Group, Grouping, group_layers, ungrouped
from .model_mapping import coded_names, map_model, travels_exactly, with_representations
from .tensor_encoder import EncodedTensors, TensorEncoder, UnitValues
from .weight_errors import WeightErrors

_MAX_PENDING = 64
"""Tensors encoded ahead of the one written, with an executor."""

_BYTES_PER_ELEMENT = 12
"""What encoding holds of an element: its value, its integer, and what decoders make of that."""

_NODE_ID_BYTES = 2
"""What a data unit of profile 1 has more than one of profile 0."""

_WORTH_ENCODING_AGAIN = 0.005
"""The part of a stream that must be there to be saved."""


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
        for encoded in self._encoded(tensor_encoder, grouping.groups, exact):
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

    def _encoded(
        self, encoder: TensorEncoder, groups: list[Group], exact: Mapping[str, Representation]
    ) -> Iterator[EncodedTensors]:
        units = (
            (
                _BYTES_PER_ELEMENT * sum(p.size for p in group.values()),
                partial(_unit, group, self._series.part(coded_names(group.values(), exact))),
            )
            for group in groups
        )
        encode = partial(_encoded_unit, encoder)
        return ordered_results(self._executor, encode, units, _MAX_PENDING)

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


def _unit(group: Group, series: Series) -> tuple[UnitValues, Series]:
    """Read the tensors of a unit; `series`: what concerns them of the earlier streams."""
    return {role: (parameter.name, parameter.read()) for role, parameter in group.items()}, series


def _encoded_unit(encoder: TensorEncoder, unit: tuple[UnitValues, Series]) -> EncodedTensors:
    values, series = unit
    return encoder.with_series(series).encode_unit(values)

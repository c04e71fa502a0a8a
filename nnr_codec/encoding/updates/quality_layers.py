"""Splitting a stream into quality layers: a coarse stream, and updates that refine it.

The steps of successive layers have the ratio 3, and all are uniformly quantized. As the ratio is
odd, each cell of a step is made of whole cells of the next one: what a layer adds is what was not
known before, and all layers together take hardly more than one stream with the last step (Equitz
and Cover, Successive refinement of information, 1991). With dependent quantization the cells of
successive layers would overlap, and each layer cost 0.1 to 0.2 bits a weight.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ...bitstream import Context, DataUnit, ModelParameterSet, ParsedUnit, PayloadType
from ...bitstream.lazy_bytes import loaded
from ...bitstream.qp import qp_of_step, step_size
from ...bitstream.unit_layout import Integers
from ...decoding.unit_decoder import DecodedTensor
from ...decoding.updates.base_model import BaseModel, opened_base
from ...decoding.updates.open_stream import OpenStream
from ...decoding.updates.stream_units import header
from ...errors import InvalidOptions
from ...factorization.base_entry import BaseEntry
from ...factorization.model_map import ModelMap
from ...options import EncodeOptions
from ...support.ordered_calls import given, has_threads, ordered_results
from ..tool_search import ToolSearch
from ..unit_encoder import CodedLevels, encode_data_unit
from ..verification import NO_LIMITS
from .layer_stream import LayerStream, LayerUnit

RATIO = 3
"""Of the steps of successive layers."""

FEWEST_ELEMENTS = 1024
"""Of a weight that is refined: a refinement's header takes about 30 bytes, and its integers 1.6
bits each."""

_MOST_DENSITY = 7
_BYTES_PER_TASK = 1 << 24
"""About what work on a unit holds."""

T = TypeVar("T")


class Refined(NamedTuple):
    """A weight whose integers are shared out among the layers.

    Attributes:
        name, shape: of the weight.
        unit: that which has it in the stream.
        qp: its quantization parameter there.
    """

    name: str
    shape: tuple[int, ...]
    unit: ParsedUnit
    qp: int


def split_into_layers(
    data: bytes, options: EncodeOptions, executor: Executor | None = None
) -> list[LayerStream]:
    """Split a stream, which is uniformly quantized, has no codebooks, and the profile 0.

    The weights of two and more dimensions and of `FEWEST_ELEMENTS` are refined; all else is in the
    first layer.

    Args:
        data: the stream.
        options: how many layers, and what each tensor is coded with.
        executor: its threads work on units side by side.

    Raises:
        InvalidOptions: a quantization parameter cannot say a step of the first layer.
    """
    splitting = _Splitting(data, options, executor)
    layers = [splitting.first()]
    while len(layers) < options.quality_layers:
        base = opened_base([layer.data for layer in layers], NO_LIMITS)
        layers.append(splitting.refinement(base, len(layers)))
    return _chained(layers, options.index)


def _chained(layers: list[LayerStream], index: bool) -> list[LayerStream]:
    """Return the layers with maps that tell of each other: the first one of the sizes of all, the
    others of what they are updates of."""
    first, *later = (replace(layer, is_indexed=index) for layer in layers)
    sizes: tuple[int, ...] = ()
    while sizes != (found := tuple(len(layer.data) for layer in [first, *later])):
        sizes = found
        first = first.with_map(quality_layers=sizes)  # whose size depends on its own digits
    chained = [first]
    for layer in later:
        entry = layer.model_map.base
        last = hashlib.sha256(chained[-1].data).hexdigest()
        chained.append(layer.with_map(base=entry and replace(entry, stream=last)))
    return chained


class _Splitting:
    """Makes the layers of one stream, the first one first."""

    def __init__(self, data: bytes, options: EncodeOptions, executor: Executor | None) -> None:
        self._stream = OpenStream(data, NO_LIMITS)
        self._options = options
        self._executor = executor if has_threads(executor) else None
        self._source_density = options.qp_density
        self._refined = {refined.name: refined for refined in self._weights()}
        self._density = self._least_density()

    def _weights(self) -> Iterator[Refined]:
        for unit, _ in self._stream.data_units():
            record = header(unit)
            shape = tuple(record.tensor_dimensions or ())
            kinds = (PayloadType.FLOAT, PayloadType.BLOCK)
            is_large = len(shape) > 1 and math.prod(shape) >= FEWEST_ELEMENTS
            if record.payload_type in kinds and not record.is_decomposed and is_large:
                weight = self._stream.decoded(unit)[0]
                if weight.qp is not None:
                    yield Refined(weight.name, shape, unit, weight.qp)

    def _least_density(self) -> int:
        """Return the least density at which the steps of all layers can be said."""
        least = density = self._source_density
        factor = RATIO ** (self._options.quality_layers - 1)
        for refined in self._refined.values():
            mantissa = (1 << density) + refined.qp % (1 << density)
            product = mantissa * factor
            bits = (product // (product & -product)).bit_length() - 1  # of its odd part
            if bits > _MOST_DENSITY:
                reason = (
                    f"{self._options.quality_layers}, but the step of {refined.name!r} cannot be "
                    f"made {factor} times as large: take fewer layers, or a lower qp_density"
                )
                raise InvalidOptions("quality_layers", reason)
            least = max(least, bits)
        return least

    def _qp(self, refined: Refined, layer: int) -> int:
        """Return the quantization parameter of a weight in layer number `layer`, from 0 on."""
        power = self._options.quality_layers - 1 - layer
        step = step_size(refined.qp, self._source_density) * RATIO**power
        return qp_of_step(step, self._density)

    def first(self) -> LayerStream:
        """Return the first layer: coarse weights, and all that is not refined."""
        mps = ModelParameterSet(mps_qp_density=self._density)
        context = Context(0, mps)
        units = [unit for unit, _ in self._stream.data_units()]
        coded = self._encoded(partial(self._first_unit, context), units)
        return LayerStream(context, self._stream.stream.model_map, coded)

    def _first_unit(self, context: Context, unit: ParsedUnit) -> LayerUnit:
        record = header(unit)
        name = record.names[0]
        if record.payload_type in (PayloadType.INT, PayloadType.RAW_FLOAT):
            return LayerUnit(name, bytes(loaded(unit.unit.data)))
        tensors = self._stream.decoded(unit)
        coded = {tensor.role: self._coded(tensor) for tensor in tensors if tensor.role != "dense"}
        if name not in self._refined:
            return LayerUnit(name, encode_data_unit(replace(record), coded, context))
        qp = self._qp(self._refined[name], 0)
        levels = self._rounded(tensors[0].values, qp)
        options, vectors = self._options.for_tensor(name), {**coded}
        del vectors["weight"]
        search = ToolSearch(context)
        return LayerUnit(name, search.smallest(replace(record), options, levels, qp, vectors))

    def _coded(self, tensor: DecodedTensor) -> CodedLevels:
        """Return the integers of a tensor, with its quantization parameter at the new density."""
        levels = np.zeros(0, np.int32) if tensor.integers is None else tensor.integers
        return CodedLevels(levels, (tensor.qp or 0) << (self._density - self._source_density))

    def refinement(self, base: BaseModel, layer: int) -> LayerStream:
        """Return a layer from the second on: what its steps add to `base`, the layers before."""
        mps = ModelParameterSet(mps_qp_density=self._density, mps_parent_signalling_enabled_flag=1)
        context = Context(1, mps)
        node_ids = base.series.node_ids(list(self._refined))

        def encoded(refined: Refined) -> LayerUnit:
            record = DataUnit(
                PayloadType.FLOAT,
                [refined.name],
                node_id=node_ids[refined.name],
                tensor_dimensions=list(refined.shape),
            )
            qp = self._qp(refined, layer)
            weight = self._stream.decoded(refined.unit)[0].values.astype(np.float64)
            with base.series.in_one_pass([refined.name]):
                known = base.read(refined.name).astype(np.float64)
                levels = self._rounded(weight - known.reshape(weight.shape), qp)
                if not levels.any():
                    return LayerUnit(refined.name, b"")
                options = self._options.for_tensor(refined.name)
                search = ToolSearch(context, base.series, node_ids)
                return LayerUnit(refined.name, search.smallest(record, options, levels, qp))

        units = self._encoded(encoded, list(self._refined.values()))
        entry = BaseEntry(base.streams[-1].digest, base.digest(self._executor))
        metadata = self._stream.stream.model_map.metadata
        return LayerStream(context, ModelMap(metadata=metadata, base=entry), units)

    def _rounded(self, values: npt.NDArray[Any], qp: int) -> Integers:
        """Return the integers, flat, that times the step of `qp` are nearest to values."""
        levels = np.rint(values.reshape(-1).astype(np.float64) / step_size(qp, self._density))
        integers: Integers = levels.astype(np.int32)
        return integers

    def _encoded(self, encode: Callable[[T], LayerUnit], tasks: Iterable[T]) -> list[LayerUnit]:
        calls = ((_BYTES_PER_TASK, given(task)) for task in tasks)
        units = ordered_results(self._executor, encode, calls)
        return [unit for unit in units if unit.data]

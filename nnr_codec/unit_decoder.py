"""Decoding of one data unit: codeword to integers, integers to values."""

from __future__ import annotations

import math
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ._core import BlockRowDecoder, DecodeStatus, decode_codeword, dequantize, dequantize_in_place
from .bitstream import Codebook, DataFormat, DataUnit, NodeId, ParsedUnit, PayloadType
from .errors import InvalidBitstream, LimitExceeded, TruncatedBitstream, UnsupportedFeature
from .factorization.model_map import MapError
from .factorization.restored import restore
from .model import dtype_of
from .quantize.qp import qp_delta_bits, step_size
from .series import Series
from .unit_layout import (
    Integers,
    ParentData,
    TensorLayout,
    look_up,
    role_shape,
    tensor_layouts,
)

_REASONS = {
    DecodeStatus.INTEGER_OVERFLOW: "an integer does not fit 32 bits",
    DecodeStatus.ENTRY_POINT_MISMATCH: "an entry point differs from what its block row starts with",
    DecodeStatus.NOT_TERMINATED: "the codeword does not end where its integers do",
    DecodeStatus.BAD_STOP_BIT: "no stop bit at the codeword's end",
    DecodeStatus.VALUE_OUT_OF_RANGE: "the codeword is none that an encoder writes",
    DecodeStatus.TRAILING_BYTES: "bytes are left behind the codeword",
}
_INTEGER_RANGES: dict[DataFormat, tuple[int, int, type[np.signedinteger[Any]]]] = {
    DataFormat.INT2: (-2, 1, np.int8),
    DataFormat.INT3: (-4, 3, np.int8),
    DataFormat.INT4: (-8, 7, np.int8),
    DataFormat.INT8: (-128, 127, np.int8),
    DataFormat.INT16: (-(2**15), 2**15 - 1, np.int16),
    DataFormat.INT32: (-(2**31), 2**31 - 1, np.int32),
    DataFormat.INT64: (-(2**63), 2**63 - 1, np.int64),
}
_FLOAT_TYPES: dict[DataFormat, type[np.floating[Any]]] = {
    DataFormat.FLOAT16: np.float16,
    DataFormat.FLOAT32: np.float32,
    DataFormat.FLOAT64: np.float64,
}
LARGEST_EXACT = 2**53
"""What integers in binary64, and so their products of factors, stay below."""

_RUNS = 16
"""Jobs that the block rows of a tensor are dealt out to: enough for a few threads each."""


@dataclass(frozen=True, slots=True)
class DecodedTensor:
    """One tensor of a data unit.

    Attributes:
        name: its name.
        role: "weight", "G", "H", "local_scaling", "bias", "beta", "gamma", "mean", "var"; or
            "dense": the product of G and H; or "tied" or "empty": without a unit of its own.
        values: float32, or what nnr_decompressed_data_format says; integers: int32 likewise.
        integers: the coded integers after the doubling, flat int32, for later streams of a
            series; None for raw floats and for the product, and where they are not kept.
        qp: the quantization parameter; None for integers, raw floats and the product.
        node_id: the unit's identity in a series, or None.
        tied_to: name of the tensor whose values these are, of role "tied", or None.
    """

    name: str
    role: str
    values: npt.NDArray[Any]
    integers: Integers | None = None
    qp: int | None = None
    node_id: NodeId | None = None
    tied_to: str | None = None


@dataclass(frozen=True, slots=True)
class _Coded:
    """A tensor as the core gives it back."""

    layout: TensorLayout
    qp_delta: int
    integers: Integers


def decode_data_unit(
    parsed: ParsedUnit,
    series: Series | None = None,
    executor: Executor | None = None,
    keep_integers: bool = True,
) -> list[DecodedTensor]:
    """Decode a data unit: its tensors in payload order, the product of G and H last.

    Args:
        parsed: the unit.
        series: the earlier streams, for an update.
        executor: if its workers are threads, they decode block rows side by side.
        keep_integers: give the integers beside the values, for a later stream of the series.

    Raises:
        BitstreamError: the unit is damaged, needs a missing parent, or asks for too much.
    """
    unit = _UnitDecoder(parsed, series or Series(), keep_integers)
    try:
        return [unit.restored(tensor) for tensor in unit.tensors(executor)]
    except MemoryError:
        elements = unit.record.decoded_elements
        raise LimitExceeded("memory of this machine, in elements", elements, 0) from None


def outline_data_unit(parsed: ParsedUnit) -> list[DecodedTensor]:
    """Return what `decode_data_unit` would, but with zeros that take no memory as values.

    Names, roles, shapes and element types follow from the headers, which alone are looked at.

    Raises:
        BitstreamError: the unit asks for what is not supported, or contradicts the model map.
    """
    unit = _UnitDecoder(parsed, Series())
    return [unit.outlined(name, role) for name, role in unit.record.decoded_roles()]


class _UnitDecoder:
    def __init__(self, parsed: ParsedUnit, series: Series, keep_integers: bool = True) -> None:
        if not isinstance(parsed.record, DataUnit):
            raise TypeError(f"{parsed.unit.label} is no data unit")
        self.parsed = parsed
        self.record = parsed.record
        self._series = series
        self._keep_integers = keep_integers
        self._quantization = parsed.context.quantization or (0, 0)

    def invalid(self, reason: str) -> InvalidBitstream:
        reason = f"tensor {self.record.names[0]!r}: {reason}"
        return InvalidBitstream(self.parsed.unit.label, self.parsed.payload_offset, reason)

    def tensors(self, executor: Executor | None) -> list[DecodedTensor]:
        """Decode everything, in the order of the names in the header, the product last."""
        if self.record.payload_type == PayloadType.RAW_FLOAT:
            return self._raw_floats()
        coded = self._decode(executor)
        by_name = {tensor.layout.name: self._reconstruct(tensor) for tensor in coded}
        tensors = [by_name[name] for name in self.record.names]
        if self.record.is_decomposed_block:
            tensors.append(self._recompose(coded[-2], coded[-1]))
        return tensors

    def restored(self, tensor: DecodedTensor) -> DecodedTensor:
        """Give a tensor the values, element type and shape that the model map has for it.

        What is made of two tensors waits for both (``ExtraTensors.joined``).
        """
        model_map = self.parsed.context.model_map
        entry = model_map.tensors.get(tensor.name) if model_map else None
        if entry is None or entry.part is not None:
            return tensor
        try:
            return replace(tensor, values=restore(entry, tensor.values))
        except MapError as error:
            raise self.invalid(str(error)) from None

    def outlined(self, name: str, role: str) -> DecodedTensor:
        """Return a tensor as `restored` gives it, without its values."""
        shape, dtype = role_shape(self.record, role), np.dtype(np.float32)
        if self.record.payload_type == PayloadType.INT:
            dtype = np.dtype(self._integer_range()[2])
        elif role != "dense":
            dtype = np.dtype(self._float_type())
        model_map = self.parsed.context.model_map
        entry = model_map.tensors.get(name) if model_map else None
        if entry is not None and entry.shape is not None:
            self._check_size(math.prod(shape), entry.shape)
            shape = entry.shape
        if entry is not None and entry.dtype is not None:
            dtype = dtype_of(entry.dtype)
        return DecodedTensor(name, role, np.broadcast_to(np.zeros((), dtype), shape))

    def _check_size(self, size: int, shape: tuple[int, ...]) -> None:
        if math.prod(shape) != size:
            raise self.invalid(f"{size} elements, not {shape} as in the model map")

    def _raw_floats(self) -> list[DecodedTensor]:
        (layout,) = tensor_layouts(self.record, self.parsed.context, self._parent_data)
        values = np.frombuffer(self.parsed.payload, dtype="<f4").astype(np.float32)
        values = self._to_float_type(values.reshape(layout.shape))
        return [DecodedTensor(layout.name, layout.role, values, node_id=self.record.node_id)]

    def _decode(self, executor: Executor | None) -> list[_Coded]:
        """Decode the codeword."""
        layouts = tensor_layouts(self.record, self.parsed.context, self._parent_data)
        if self.record.parent is not None and self.record.parent.temporal_context_modeling_flag:
            self._require_parents(layouts)
        density = self._quantization[0]
        bits = 0 if self.record.payload_type == PayloadType.INT else qp_delta_bits(density)
        payload = np.frombuffer(self.parsed.payload, dtype=np.uint8)
        # Block rows share their output's memory: threads alone can do that.
        threads = executor if isinstance(executor, ThreadPoolExecutor) else None
        if threads and len(layouts) == 1 and layouts[0].syntax.block_rows > 1:
            found = [self._decode_block_rows(payload, layouts[0], bits, threads)]
        else:
            syntaxes = [layout.syntax for layout in layouts]
            status, found = decode_codeword(payload, syntaxes, bits, self._entries(layouts))
            self._check_history(layouts, any(history for _, history, _ in found))
            self._check(status)
        return [
            _Coded(layout, qp_delta, integers)
            for layout, (qp_delta, _, integers) in zip(layouts, found, strict=True)
        ]

    def _entries(self, layouts: list[TensorLayout]) -> list[tuple[int, int, int]]:
        """Return the entry points that block rows answer to.

        A matrix of one column has entries too, which say nothing: it is scanned row by row.
        """
        rest = [(e.offset, e.value8, e.dq_state) for e in self.record.entry_points]
        if not rest:
            return []
        entries = []
        for layout in layouts[-len(self.record.weight_shapes()) :]:
            count = -(-layout.shape[0] // (4 << self.record.scan_order)) - 1
            if layout.syntax.block_rows > 1:
                entries += rest[:count]
            rest = rest[count:]
        return entries

    def _decode_block_rows(
        self, payload: npt.NDArray[np.uint8], layout: TensorLayout, bits: int, executor: Executor
    ) -> tuple[int, bool, Integers]:
        """Decode a tensor's block rows side by side, and compare all of them with their entries."""
        decoder = BlockRowDecoder(payload, layout.syntax, bits)
        self._check_history([layout], decoder.history_enabled)
        self._check(decoder.status)
        starts = [(decoder.start_position, 0, 0)]
        for entry in self.record.entry_points:
            starts.append((starts[-1][0] + entry.offset, entry.value8, entry.dq_state))
        if starts[-1][0] > 8 * len(payload):
            raise self.invalid(_REASONS[DecodeStatus.ENTRY_POINT_MISMATCH])
        count = len(starts)
        run = -(-count // _RUNS)
        firsts = range(0, count, run)
        jobs = [
            executor.submit(decoder.decode, first, min(first + run, count), starts[first])
            for first in firsts
        ]
        # What no thread has begun is done here: with all of them waiting like us, none would.
        results = [
            decoder.decode(first, min(first + run, count), starts[first])
            if job.cancel()
            else job.result()
            for first, job in zip(firsts, jobs, strict=True)
        ]
        for first, (status, ends) in zip(firsts, results, strict=True):
            if ends != starts[first + 1 : first + 1 + len(ends)]:
                raise self.invalid(_REASONS[DecodeStatus.ENTRY_POINT_MISMATCH])
            self._check(status)
        return decoder.qp_delta, decoder.history_enabled, decoder.integers

    def _parent_data(self, name: str, elements: int) -> ParentData:
        unit = self.parsed.unit
        return self._series.parent_data(name, elements, label=unit.label, offset=unit.byte_offset)

    def _check_history(self, layouts: list[TensorLayout], enabled: bool) -> None:
        """Tell a missing parent from damage: without history, the codeword is misread."""
        if enabled:
            self._require_parents(layouts)

    def _require_parents(self, layouts: list[TensorLayout]) -> None:
        for layout in layouts:
            self._series.require(layout.name)

    def _check(self, status: DecodeStatus) -> None:
        if status == DecodeStatus.OK:
            return
        unit = self.parsed.unit
        if status == DecodeStatus.TRUNCATED:
            end = unit.byte_offset + unit.size
            reason = f"tensor {self.record.names[0]!r}: the codeword goes on past the unit's end"
            raise TruncatedBitstream(unit.label, end, reason)
        raise self.invalid(_REASONS[status])

    def _reconstruct(self, tensor: _Coded) -> DecodedTensor:
        """Turn integers into values."""
        layout = tensor.layout
        integers = tensor.integers if self._keep_integers else None
        indexed = self._apply_codebook(tensor.integers, layout.codebook)
        if self.record.payload_type == PayloadType.INT:
            values = self._to_integer_type(indexed.reshape(layout.shape))
            node_id = self.record.node_id
            return DecodedTensor(layout.name, layout.role, values, integers, node_id=node_id)
        qp, step = self._step(tensor)
        # Factors' integers are needed for the product yet.
        if self._keep_integers or layout.role in ("G", "H"):
            weights = dequantize(indexed, step)
        else:
            dequantize_in_place(indexed, step)
            weights = indexed.view(np.float32)
        values = self._to_float_type(weights.reshape(layout.shape))
        return DecodedTensor(layout.name, layout.role, values, integers, qp, self.record.node_id)

    def _step(self, tensor: _Coded) -> tuple[int, float]:
        density, base = self._quantization
        qp = base + tensor.qp_delta
        try:
            return qp, step_size(qp, density)
        except ValueError as error:
            raise self.invalid(str(error)) from None

    def _apply_codebook(self, integers: Integers, codebook: Codebook | None) -> Integers:
        if codebook is not None:
            lowest, highest = int(integers.min()), int(integers.max())
            past = len(codebook.values) - codebook.zero_offset
            if lowest < -codebook.zero_offset or highest >= past:
                raise self.invalid("an integer points outside the codebook")
        return look_up(integers, codebook)

    def _to_float_type(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        dtype = self._float_type()
        if dtype is np.float32:
            return values
        with np.errstate(over="ignore"):  # what is too large for the type becomes infinite
            return values.astype(dtype)

    def _float_type(self) -> type[np.floating[Any]]:
        data_format = self._data_format(DataFormat.FLOAT32)
        if data_format not in _FLOAT_TYPES:
            reason = "integers were asked for in a unit of floats"
            raise UnsupportedFeature("nnr_decompressed_data_format", data_format.name, reason)
        return _FLOAT_TYPES[data_format]

    def _data_format(self, default: DataFormat) -> DataFormat:
        found = self.record.nnr_decompressed_data_format
        return default if found is None else found

    def _to_integer_type(self, values: Integers) -> npt.NDArray[Any]:
        low, high, dtype = self._integer_range()
        if int(values.min()) < low or int(values.max()) > high:
            data_format = self._data_format(DataFormat.INT32)
            raise self.invalid(f"an integer does not fit {data_format.name}")
        return values.astype(dtype, copy=False)

    def _integer_range(self) -> tuple[int, int, type[np.signedinteger[Any]]]:
        """Return the least and the greatest integer of the unit's data format, and its type."""
        data_format = self._data_format(DataFormat.INT32)
        if data_format not in _INTEGER_RANGES:
            reason = "floats were asked for in a unit of integers"
            raise UnsupportedFeature("nnr_decompressed_data_format", data_format.name, reason)
        return _INTEGER_RANGES[data_format]

    def _recompose(self, g: _Coded, h: _Coded) -> DecodedTensor:
        """Multiply G and H: exactly, with one rounding to binary32.

        The product of the integers is exact in binary64 as long as it stays below 2**53, so that
        the result does not depend on the order in which a processor adds.
        """
        rank = g.layout.shape[1]
        operations = rank * self.record.element_count
        allowed = self.parsed.context.limits.max_product_operations
        if operations > allowed:
            raise LimitExceeded("max_product_operations", operations, allowed)
        left = self._apply_codebook(g.integers, g.layout.codebook).astype(np.float64)
        right = self._apply_codebook(h.integers, h.layout.codebook).astype(np.float64)
        scale = self._step(g)[1] * self._step(h)[1]
        bound = float(np.abs(left).max()) * float(np.abs(right).max()) * rank
        if bound >= LARGEST_EXACT:
            reason = "factors too large for an exact product"
            raise UnsupportedFeature("decomposition_rank", rank, reason)
        product = (left.reshape(g.layout.shape) @ right.reshape(h.layout.shape)) * scale
        with np.errstate(over="ignore"):
            values = product.reshape(self.record.tensor_dimensions).astype(np.float32)
        return DecodedTensor(self.record.dense_name, "dense", values)

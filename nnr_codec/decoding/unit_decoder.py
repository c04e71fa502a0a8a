"""Decoding of one data unit: its integers to values, as its header and the model map have it."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import dequantize, dequantize_in_place
from ..bitstream import Codebook, DataFormat, DataUnit, NodeId, ParsedUnit, PayloadType
from ..bitstream.qp import step_size
from ..bitstream.unit_layout import Integers, look_up, role_shape
from ..errors import InvalidBitstream, LimitExceeded, UnsupportedFeature
from ..factorization.model_map import MapError
from ..factorization.tensor_rules import apply_rule
from ..model import dtype_of
from .codeword_decoder import CodedTensor, CodewordDecoder, invalid_payload
from .ordered_product import summed_by_rank
from .series import Series

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
_LARGEST_EXACT = 2**53  # of integers in binary64
_LARGEST_IN_BINARY32 = 2**24  # up to which every integer is there


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
        return [unit.with_rule(tensor) for tensor in unit.tensors(executor)]
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
        self._codeword = CodewordDecoder(parsed, parsed.record, series)
        self._keep_integers = keep_integers
        self._quantization = parsed.context.quantization or (0, 0)

    def invalid(self, reason: str) -> InvalidBitstream:
        return invalid_payload(self.parsed, self.record, reason)

    def tensors(self, executor: Executor | None) -> list[DecodedTensor]:
        """Decode everything, in the order of the names in the header, the product last."""
        if self.record.payload_type == PayloadType.RAW_FLOAT:
            return self._raw_floats()
        coded = self._codeword.decode(executor)
        by_name = {tensor.layout.name: self._reconstruct(tensor) for tensor in coded}
        tensors = [by_name[name] for name in self.record.names]
        if self.record.is_decomposed_block:
            tensors.append(self._recompose(coded[-2], coded[-1]))
        return tensors

    def with_rule(self, tensor: DecodedTensor) -> DecodedTensor:
        """Give a tensor the values, element type and shape that the model map has for it.

        What is made of two tensors waits for both (``Walk``).
        """
        model_map = self.parsed.context.model_map
        entry = model_map.tensors.get(tensor.name) if model_map else None
        if entry is None or entry.part is not None:
            return tensor
        try:
            return replace(tensor, values=apply_rule(entry, tensor.values))
        except MapError as error:
            raise self.invalid(str(error)) from None

    def outlined(self, name: str, role: str) -> DecodedTensor:
        """Return a tensor as `with_rule` gives it, without its values."""
        shape = role_shape(self.record, role)
        if self.record.payload_type == PayloadType.INT:
            dtype = np.dtype(self._integer_range()[2])
        else:
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
        (layout,) = self._codeword.layouts()
        values = np.frombuffer(self.parsed.payload, dtype="<f4").astype(np.float32)
        values = self._to_float_type(values.reshape(layout.shape))
        return [DecodedTensor(layout.name, layout.role, values, node_id=self.record.node_id)]

    def _reconstruct(self, tensor: CodedTensor) -> DecodedTensor:
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
        if self._keep_integers or layout.role in ("G", "H") or _is_wide(layout.codebook):
            weights = _dequantized(indexed, step, layout.codebook)
        else:
            dequantize_in_place(indexed, step)
            weights = indexed.view(np.float32)
        values = self._to_float_type(weights.reshape(layout.shape))
        return DecodedTensor(layout.name, layout.role, values, integers, qp, self.record.node_id)

    def _step(self, tensor: CodedTensor) -> tuple[int, float]:
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
        data_format = self.record.nnr_decompressed_data_format
        return default if data_format is None else data_format

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

    def _recompose(self, g: CodedTensor, h: CodedTensor) -> DecodedTensor:
        """Multiply G and H: summed in binary64 in the order of the rank, rounded once to binary32.

        Where every partial sum is exact the order makes no difference, and a faster product serves.
        """
        rank = g.layout.shape[1]
        (left, left_unit), (right, right_unit) = self._factor(g), self._factor(h)
        with np.errstate(over="ignore", invalid="ignore"):  # values may be infinite
            bound = _largest(left) * _largest(right) * rank
            exact = bound < _LARGEST_EXACT * left_unit * right_unit
            product = left @ right if exact else summed_by_rank(left, right)
            product += 0.0  # no sum that begins with 0 is -0
            values = product.reshape(self.record.tensor_dimensions).astype(np.float32)
        return DecodedTensor(self.record.dense_name, "dense", self._to_float_type(values))

    def _factor(self, factor: CodedTensor) -> tuple[npt.NDArray[np.float64], float]:
        """Return a factor's binary32 values, and the power of two of which all are multiples."""
        indexed = self._apply_codebook(factor.integers, factor.layout.codebook)
        qp, step = self._step(factor)
        density = self._quantization[0]
        weights = _dequantized(indexed, step, factor.layout.codebook)
        values = weights.reshape(factor.layout.shape).astype(np.float64)
        # Rounding to binary32 leaves multiples: it drops bits where there are more than 24.
        return values, math.ldexp(1.0, (qp >> density) - density)


def _largest(values: npt.NDArray[np.float64]) -> float:
    """Return the largest magnitude, without a copy of the values."""
    return max(float(values.max()), -float(values.min()))


def _is_wide(codebook: Codebook | None) -> bool:
    """Whether a codebook has values that binary32 cannot hold."""
    if codebook is None:
        return False
    return max(-codebook.values[0], codebook.values[-1]) > _LARGEST_IN_BINARY32


def _dequantized(
    indexed: Integers, step: float, codebook: Codebook | None
) -> npt.NDArray[np.float32]:
    """Return the values: integers times the step, those of a codebook rounded once."""
    if not _is_wide(codebook):
        return dequantize(indexed, step)
    with np.errstate(over="ignore"):
        return (indexed * step).astype(np.float32)

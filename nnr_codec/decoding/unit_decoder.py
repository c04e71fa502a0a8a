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
from ..bitstream.lazy_bytes import loaded
from ..bitstream.qp import step_size
from ..bitstream.unit_layout import Integers, role_shape
from ..errors import LimitExceeded, UnsupportedFeature
from ..factorization.map_checks import MapError
from ..factorization.ordered_product import summed_by_rank
from ..factorization.tensor_rules import TensorRule, apply_rule
from ..model import dtype_of
from .codeword_decoder import CodedTensor, CodewordDecoder
from .series import Series

_SMALL_INTEGERS = {DataFormat.INT2: 2, DataFormat.INT3: 3, DataFormat.INT4: 4}  # their bits
_LARGEST_EXACT = 2**53  # of integers in binary64
_LARGEST_IN_BINARY32 = 2**24  # up to which every integer is there


@dataclass(frozen=True, slots=True)
class DecodedTensor:
    """One tensor of a data unit.

    Attributes:
        name: its name.
        role: "weight", "G", "H", "local_scaling", "bias", "beta", "gamma", "mean", "var"; or
            "dense": a product of factors; or "tied" or "empty": without a data unit.
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
        BitstreamError: the unit is damaged, needs a missing parent, or exceeds the memory.
    """
    unit = _UnitDecoder(parsed.checked(), series or Series(), keep_integers)
    try:
        return [unit.with_rule(tensor) for tensor in unit.tensors(executor)]
    except MemoryError:
        elements = unit.record.decoded_elements
        raise LimitExceeded("memory of this machine, in elements", elements, 0) from None


def outline_data_unit(parsed: ParsedUnit) -> list[DecodedTensor]:
    """Return what `decode_data_unit` would, but with zeros that take no memory as values.

    Names, roles, shapes and element types follow from the headers, which alone are looked at.

    Raises:
        BitstreamError: the unit needs what is not supported, or contradicts the model map.
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
        self.invalid = self._codeword.invalid
        self._keep_integers = keep_integers
        self._quantization = parsed.context.quantization or (0, 0)

    def tensors(self, executor: Executor | None) -> list[DecodedTensor]:
        """Decode all tensors, in the order of the names in the header, the product last."""
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
        rule = self._rule(tensor.name)
        if rule is None or rule.part is not None:
            return tensor
        try:
            return replace(tensor, values=apply_rule(rule, tensor.values))
        except MapError as error:
            raise self.invalid(str(error)) from None

    def outlined(self, name: str, role: str) -> DecodedTensor:
        """Return a tensor as `with_rule` gives it, without its values."""
        shape = role_shape(self.record, role)
        dtype = self._dtype()
        rule = self._rule(name) or TensorRule()
        try:
            rule.check_elements(math.prod(shape))
        except MapError as error:
            raise self.invalid(str(error)) from None
        shape = shape if rule.shape is None else rule.shape
        if rule.dtype is not None:
            dtype = dtype_of(rule.dtype)
        return DecodedTensor(name, role, np.broadcast_to(np.zeros((), dtype), shape))

    def _rule(self, name: str) -> TensorRule | None:
        model_map = self.parsed.context.model_map
        return model_map.tensors.get(name) if model_map else None

    def _raw_floats(self) -> list[DecodedTensor]:
        (layout,) = self._codeword.layouts()
        values = np.frombuffer(loaded(self.parsed.payload), dtype="<f4").astype(np.float32)
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
        # The integers of factors are still needed for the product.
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
        if codebook is None:
            return integers
        lowest, highest = int(integers.min()), int(integers.max())
        past = len(codebook.values) - codebook.zero_offset
        if lowest < -codebook.zero_offset or highest >= past:
            raise self.invalid("an integer points outside the codebook")
        values: Integers = np.array(codebook.values, dtype=np.int32)
        looked_up: Integers = values[integers + np.int32(codebook.zero_offset)]
        return looked_up

    def _to_float_type(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        # What is too large for the type becomes infinite, or some integer.
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(self._dtype(), copy=False)

    def _to_integer_type(self, values: Integers) -> npt.NDArray[Any]:
        data_format, dtype = self.record.nnr_decompressed_data_format, self._dtype()
        bits = 8 * dtype.itemsize
        if data_format is not None:
            bits = _SMALL_INTEGERS.get(data_format, bits)
            if int(values.min()) < -(1 << bits - 1) or int(values.max()) >= 1 << bits - 1:
                raise self.invalid(f"an integer does not fit {data_format.name}")
        return values.astype(dtype, copy=False)

    def _dtype(self) -> np.dtype[Any]:
        """Return the element type that the unit's header gives.

        Raises:
            UnsupportedFeature: integers of floats, or floats of integers.
        """
        is_integer = self.record.payload_type == PayloadType.INT
        data_format = self.record.nnr_decompressed_data_format
        if data_format is None:
            return np.dtype(np.int32 if is_integer else np.float32)
        if data_format.name.startswith("INT") != is_integer:
            kinds = ("floats", "integers") if is_integer else ("integers", "floats")
            reason = f"a type of {kinds[0]} in a unit of {kinds[1]}"
            raise UnsupportedFeature("nnr_decompressed_data_format", data_format.name, reason)
        return np.dtype(np.int8 if data_format in _SMALL_INTEGERS else data_format.name.lower())

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

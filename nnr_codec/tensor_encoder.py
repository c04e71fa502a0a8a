"""Encoding of one tensor of a model: which tools, which quantizer, the smallest data unit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ._core import TensorSyntax, dequantize, quantize
from .bitstream import Codebook, Context, DataFormat, DataUnit, ParameterTypes, Parent, PayloadType
from .errors import InvalidModel
from .model import Parameter, is_extension
from .options import EncodeOptions
from .quantize.codebook import codebook_of, promises_codebook
from .quantize.qp import qp_delta_bits, step_size
from .quantize.rate import lambda_of
from .report import TensorReport
from .series import Series
from .unit_encoder import CodedLevels, EncodedUnit, encode_data_unit, encode_raw_floats
from .unit_layout import Integers, ParentData, look_up, matrix_shape

# What nnr_decompressed_data_format tells every decoder; the other types stand in the model map.
_INT_FORMATS = {"int8": DataFormat.INT8, "int16": DataFormat.INT16, "int64": DataFormat.INT64}
_FLOAT_FORMATS = {"float16": DataFormat.FLOAT16, "float64": DataFormat.FLOAT64}
_ADAPTED = 0.25  # of a zero's information: what is left of it in a row of zeros (measured)
_MOST_BITS_OF_SKIPPED = 0.15
_SAVED_BY_BLOCK = 8  # bytes of a vector, about
_LEVEL_LIMIT = 2**31 - 8  # of |weight / step|: the integer, and those tried beside it, fit 32 bits


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A tensor's data unit and what there is to say of it."""

    unit: EncodedUnit
    report: TensorReport


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """The data unit of one or several tensors and what there is to say of each."""

    unit: EncodedUnit
    reports: list[TensorReport]


@dataclass(frozen=True, slots=True)
class _Quantized:
    """A tensor and its integers, before the doubling; `asked`: the qp that was asked for."""

    parameter: Parameter
    options: EncodeOptions
    weights: npt.NDArray[np.float32]
    levels: Integers
    qp: int
    asked: int


class TensorEncoder:
    """Encodes the tensors of one model, each by itself, in any order and from any thread."""

    def __init__(
        self, options: EncodeOptions, context: Context, series: Series, names: list[str]
    ) -> None:
        self._options = options
        self._context = context
        self._series = series
        # The second edition's units have identities, so that updates can refer to them.
        self._node_ids = series.node_ids(names) if context.profile == 1 else {}

    def encode_unit(self, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> EncodedBlock:
        """Encode what goes into one data unit, (name, values) by role; raises as `encode`."""
        if len(tensors) > 1:
            return self.encode_block(tensors)
        encoded = self.encode(*tensors["weight"])
        return EncodedBlock(encoded.unit, [encoded.report])

    def encode(self, name: str, values: npt.NDArray[Any]) -> EncodedTensor:
        """Encode a tensor that is not empty.

        Raises:
            InvalidModel: it cannot be coded.
        """
        parameter = Parameter.from_array(name, values)
        if not _is_float(values.dtype):
            return self._encode_integers(parameter, values)
        if self._is_quantized(parameter):
            return self._encode_quantized(parameter, values)
        return self._encode_raw(parameter, values)

    def _is_quantized(self, parameter: Parameter) -> bool:
        # float8_e8m0fnu holds powers of two alone, no zero: nothing to quantize.
        possible = _is_float(parameter.dtype) and parameter.dtype.name != "float8_e8m0fnu"
        return possible and self._options.quantizes(parameter.name)

    def may_join(self, weight: Parameter, vector: Parameter) -> bool:
        """Whether a weight and a vector can be in one block, whose header says some things once."""
        own, other = (self._options.for_tensor(p.name) for p in (weight, vector))
        return (
            self._is_quantized(weight)
            and self._is_quantized(vector)
            and weight.dtype == vector.dtype
            and (own.dq, own.unary_length) == (other.dq, other.unary_length)
            and not self._wants_codebook(vector, other)
        )

    def _wants_codebook(self, vector: Parameter, options: EncodeOptions) -> bool:
        """Whether a codebook, which the vectors of a block do not have, saves more than a block."""
        if options.dq or not options.codebook:
            return False
        quantized = self._quantized(vector, vector.read())
        with_codebook, without = (
            self._smallest(
                self._record(vector, PayloadType.FLOAT),
                replace(options, codebook=tried),
                quantized.levels,
                quantized.qp,
            )
            for tried in (options.codebook, False)
        )
        return len(with_codebook.data) + _SAVED_BY_BLOCK < len(without.data)

    def _record(self, parameter: Parameter, payload_type: PayloadType) -> DataUnit:
        return DataUnit(
            payload_type,
            [parameter.name],
            node_id=self._node_ids.get(parameter.name),
            tensor_dimensions=list(parameter.shape) or [1],
        )

    def _encode_raw(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensor:
        with np.errstate(over="ignore"):
            as_float32 = values.astype(np.float32)
        if not np.array_equal(as_float32, values, equal_nan=True):
            raise InvalidModel(parameter.name, f"{values.dtype} values that binary32 cannot hold")
        record = self._record(parameter, PayloadType.RAW_FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(values.dtype.name)
        unit = encode_raw_floats(record, as_float32, self._context)
        return EncodedTensor(unit, _report(parameter, "raw", unit))

    def _encode_integers(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensor:
        low, high = int(values.min()), int(values.max())
        if low < -(2**31) or high >= 2**31:
            raise InvalidModel(parameter.name, f"integers from {low} to {high} do not fit 32 bits")
        record = self._record(parameter, PayloadType.INT)
        record.nnr_decompressed_data_format = _INT_FORMATS.get(values.dtype.name)
        options = replace(self._options.for_tensor(parameter.name), dq=False)
        levels = values.astype(np.int32).reshape(-1)
        unit = self._smallest(record, options, levels, 0)
        return EncodedTensor(unit, _report(parameter, "int", unit))

    def _encode_quantized(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensor:
        quantized = self._quantized(parameter, values)
        record = self._record(parameter, PayloadType.FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(values.dtype.name)
        unit = self._smallest(record, quantized.options, quantized.levels, quantized.qp)
        decoded = look_up(unit.integers["weight"], *unit.record.codebooks)
        return EncodedTensor(unit, self._measured(quantized, decoded, unit))

    def encode_block(self, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> EncodedBlock:
        """Encode the tensors of a layer, (name, values) by role, all to be quantized, as a BLOCK.

        Raises:
            InvalidModel: one of them cannot be coded.
        """
        quantized = {
            role: self._quantized(Parameter.from_array(name, values), values)
            for role, (name, values) in tensors.items()
        }
        weight = quantized["weight"]
        record = self._record(weight.parameter, PayloadType.BLOCK)
        record.compressed_parameter_types = _parameter_types(quantized)
        record.names = [quantized[role].parameter.name for role in record.name_roles()]
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(weight.parameter.dtype.name)
        vectors = {
            role: CodedLevels(
                vector.levels,
                vector.qp,
                search_initialization=vector.options.search_initialization,
            )
            for role, vector in quantized.items()
            if role != "weight"
        }
        unit = self._smallest(record, weight.options, weight.levels, weight.qp, vectors)
        reports = []
        for role, source in quantized.items():
            books = unit.record.codebooks if role == "weight" else []
            decoded = look_up(unit.integers[role], *books)
            reports.append(self._measured(source, decoded, unit if role == "weight" else None))
        return EncodedBlock(unit, reports)

    def _quantized(self, parameter: Parameter, values: npt.NDArray[Any]) -> _Quantized:
        options = self._options.for_tensor(parameter.name)
        asked = options.qp if parameter.role == "weight" else options.nonweight_qp
        with np.errstate(over="ignore"):
            weights = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        _check_finite(parameter.name, values)
        if not np.isfinite(weights).all():
            raise InvalidModel(parameter.name, "holds values beyond binary32")
        qp = self._coarse_enough(parameter.name, asked, float(np.abs(weights).max()))
        levels = quantize(
            self._quantizer_syntax(parameter.shape, options),
            weights,
            step_size(qp, self._options.qp_density),
            lambda_of(options.lambda_scale, options.dq),
        )
        return _Quantized(parameter, options, weights, levels, qp, asked)

    def _measured(
        self, source: _Quantized, integers: Integers, unit: EncodedUnit | None
    ) -> TensorReport:
        """Report a tensor that decodes to `integers` times its step."""
        parameter, options, qp = source.parameter, source.options, source.qp
        decoded = dequantize(integers, step_size(qp, self._options.qp_density))
        with np.errstate(over="ignore"):
            decoded = decoded.astype(parameter.dtype)
        if not np.isfinite(decoded).all():
            reason = f"at qp {qp} some values become too large for {parameter.dtype}"
            raise InvalidModel(parameter.name, reason)
        error = decoded.astype(np.float64) - source.weights
        report = _report(parameter, "dq" if options.dq else "uniform", unit, qp)
        return replace(
            report,
            qp_raised=qp != source.asked,
            squared_error=float(error @ error),
            energy=float(np.square(source.weights, dtype=np.float64).sum()),
        )

    def _coarse_enough(self, name: str, qp: int, largest: float) -> int:
        """Return qp, or the least greater one at which the integers of a tensor fit 32 bits."""
        density = self._options.qp_density
        highest = (1 << qp_delta_bits(density) - 1) - 1
        for candidate in range(qp, highest + 1):
            if largest / step_size(candidate, density) < _LEVEL_LIMIT:
                return candidate
        raise InvalidModel(name, f"values as large as {largest:g} fit no step size")

    def _quantizer_syntax(self, shape: tuple[int, ...], options: EncodeOptions) -> TensorSyntax:
        rows, cols = matrix_shape(shape)
        return TensorSyntax(
            rows,
            cols,
            unary_length=options.unary_length,
            dependent_quantization=options.dq,
            scan_order=options.scan_order,
            second_edition=self._context.profile == 1,
        )

    def _smallest(
        self,
        record: DataUnit,
        options: EncodeOptions,
        levels: Integers,
        qp: int,
        vectors: Mapping[str, CodedLevels] | None = None,
    ) -> EncodedUnit:
        """Encode with every combination of the tools that are allowed, and keep the smallest.

        `vectors`: the other tensors of a block, by role.
        """
        rows, cols = matrix_shape(tuple(record.tensor_dimensions or ()))
        record.dq_flag = int(options.dq)
        record.cabac_unary_length_minus1 = options.unary_length - 1
        record.scan_order = options.scan_order if rows > 1 and cols > 1 else 0
        tools = itertools.product(
            self._parents(record, options, rows * cols),
            self._codebooks(record, options, levels),
            self._row_skipping(options, levels.reshape(rows, cols)),
        )
        units = []
        for (parent, history), (codebooks, coded_levels), row_skipping in tools:
            if history and codebooks and len(codebooks[0].values) == 1:
                continue  # nothing is coded then, the history flag neither
            coded = CodedLevels(
                coded_levels, qp, row_skipping, history, options.search_initialization
            )
            tried = replace(record, parent=parent, codebooks=codebooks)
            tensors = {**(vectors or {}), "weight": coded}
            units.append(encode_data_unit(tried, tensors, self._context, self._parent_data))
        return min(units, key=lambda unit: len(unit.data))

    def _parents(
        self, record: DataUnit, options: EncodeOptions, elements: int
    ) -> Iterator[tuple[Parent | None, bool]]:
        """Yield the ways of using the earlier streams: (parent, history contexts)."""
        yield None, False
        name = record.names[0]
        if name not in self._series:
            return
        if self._series.elements(name) != elements:
            return  # another tensor of the same name
        is_matrix = min(matrix_shape(tuple(record.tensor_dimensions or ()))) > 1
        temporal = options.temporal_contexts
        history = options.history_contexts and is_matrix  # the flag exists for matrices alone
        if temporal:
            yield self._parent(name, 1), False
        if history:
            yield self._parent(name, 0), True
        if temporal and history:
            yield self._parent(name, 1), True

    def _parent(self, name: str, temporal: int) -> Parent:
        device_id = self._node_ids[name].device_id
        return Parent(temporal_context_modeling_flag=temporal, parent_device_id=device_id)

    def _codebooks(
        self, record: DataUnit, options: EncodeOptions, levels: Integers
    ) -> Iterator[tuple[list[Codebook], Integers]]:
        """Yield the levels as they are, and as indices of a codebook."""
        yield [], levels
        if not options.codebook or record.dq_flag or record.payload_type == PayloadType.INT:
            return
        if options.codebook == "auto" and not promises_codebook(levels):
            return
        found = codebook_of(levels)
        if found is not None:
            yield [found[0]], found[1]

    def _row_skipping(
        self, options: EncodeOptions, levels: npt.NDArray[np.int32]
    ) -> Iterator[bool]:
        yield False
        # In blocks, a skipped row moves the dq state otherwise than its zeros would: the quantizer
        # has not reckoned with that.
        possible = self._context.profile == 1 and not (options.dq and options.scan_order)
        wanted = options.row_skipping and possible and min(levels.shape) > 1
        if wanted and not levels.any(axis=1).all():
            yield True

    def skippable_bytes(self, unit: EncodedUnit) -> float:
        """Return about how many bytes a unit's rows of zeros take that profile 1 might skip, where
        that is left to the encoder."""
        record = unit.record
        rows, cols = matrix_shape(tuple(record.tensor_dimensions or ()))
        if min(rows, cols) < 2 or not unit.integers or (record.dq_flag and record.scan_order):
            return 0.0
        integers = unit.integers["weight"].reshape(rows, cols)
        zero_rows = rows - int(np.count_nonzero(integers.any(axis=1)))
        if not zero_rows or self._options.for_tensor(record.names[0]).row_skipping != "auto":
            return 0.0
        zeros = integers.size - int(np.count_nonzero(integers))
        # Within such a row the contexts soon expect zeros, above all if there are many elsewhere.
        bits = min(-_ADAPTED * math.log2(zeros / integers.size), _MOST_BITS_OF_SKIPPED)
        return zero_rows * cols * bits / 8

    def _parent_data(self, name: str, elements: int) -> ParentData:
        return self._series.parent_data(name, elements, label="parent", offset=0)


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or is_extension(dtype)


def _parameter_types(roles: Container[str]) -> int:
    """Return compressed_parameter_types of a block of tensors of these roles."""
    bits = {"beta": ParameterTypes.BN, "bias": ParameterTypes.BI}
    return sum(int(bit) for role, bit in bits.items() if role in roles)


def _report(
    parameter: Parameter, kind: str, unit: EncodedUnit | None, qp: int | None = None
) -> TensorReport:
    return TensorReport(
        parameter.name,
        parameter.shape,
        parameter.dtype.name,
        kind,
        parameter.nbytes,
        len(unit.data) if unit is not None else 0,
        qp,
    )


def _check_finite(name: str, values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "infinity"
        raise InvalidModel(name, f"holds {kind}; excluded from quantization it travels losslessly")

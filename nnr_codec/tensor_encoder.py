"""Encoding of a data unit of a model: which tools, which quantizer, the smallest result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ._core import (
    TensorSyntax,
    choose_unary_length,
    count_zero_rows,
    quantize,
)
from .bitstream import Codebook, Context, DataFormat, DataUnit, ParameterTypes, Parent, PayloadType
from .errors import InvalidModel, QuantizationOverflow
from .exact import Representation, exact_of
from .model import Parameter, is_float, is_signed_float
from .options import EncodeOptions
from .quantize.codebook import codebook_of, promises_codebook
from .quantize.distortion import Distortion, distortion, largest_magnitude
from .quantize.qp import qp_delta_bits, step_size
from .quantize.rate import lambda_of
from .report import TensorReport
from .series import Series
from .unit_encoder import CodedLevels, EncodedUnit, encode_data_unit, encode_raw_floats
from .unit_layout import Integers, ParentData, matrix_shape

# What nnr_decompressed_data_format tells every decoder; the other types stand in the model map.
_INT_FORMATS = {"int8": DataFormat.INT8, "int16": DataFormat.INT16, "int64": DataFormat.INT64}
_FLOAT_FORMATS = {"float16": DataFormat.FLOAT16, "float64": DataFormat.FLOAT64}
_ADAPTED = 0.25  # of a zero's information: what is left of it in a row of zeros (measured)
_MOST_BITS_OF_SKIPPED = 0.15
_SAVED_BY_BLOCK = 8  # bytes of a vector, about
_LEVEL_LIMIT = 2**31 - 8  # of |weight / step|: the integer, and those tried beside it, fit 32 bits


@dataclass(frozen=True, slots=True)
class EncodedTensors:
    """The data unit of one or several tensors and what there is to say of each.

    Attributes:
        data: the unit, or the units of a tensor and its part.
        reports: of its tensors; bytes are those of the weight.
        skippable_bytes: about what its rows of zeros take that profile 1 might skip.
    """

    data: bytes
    reports: list[TensorReport]
    skippable_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class _Quantized:
    """A tensor's integers, before the doubling; `asked`: the qp that was asked for."""

    parameter: Parameter
    options: EncodeOptions
    levels: Integers
    qp: int
    asked: int
    distortion: Distortion

    def report(self, unit_bytes: int) -> TensorReport:
        """Report the tensor, to which a unit's bytes are ascribed."""
        kind = "dq" if self.options.dq else "uniform"
        return replace(
            _report(self.parameter, kind, unit_bytes, self.qp),
            qp_raised=self.qp != self.asked,
            squared_error=self.distortion.squared_error,
            energy=self.distortion.energy,
        )


class TensorEncoder:
    """Encodes the tensors of one model, each by itself, in any order and from any thread."""

    def __init__(
        self,
        options: EncodeOptions,
        context: Context,
        series: Series,
        names: list[str],
        exact: Mapping[str, Representation],
    ) -> None:
        """`names`: of all coded tensors, in order; `exact`: how those that are exact are coded."""
        self._options = options
        self._exact = exact
        self._context = context
        self._series = series
        self._known_steps: dict[str, bool] = {}  # whether a tensor is on a step
        # The second edition's units have identities, so that updates can refer to them.
        self._node_ids = series.node_ids(names) if context.profile == 1 else {}

    def encode_unit(self, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> EncodedTensors:
        """Encode what goes into one data unit, (name, values) by role; raises as `encode`."""
        return self.encode_block(tensors) if len(tensors) > 1 else self.encode(*tensors["weight"])

    def encode(self, name: str, values: npt.NDArray[Any]) -> EncodedTensors:
        """Encode a tensor that is not empty.

        Raises:
            InvalidModel: it cannot be coded.
        """
        parameter = Parameter.from_array(name, values)
        if name in self._exact:
            return self._encode_exact(parameter, values, self._exact[name])
        if not is_float(values.dtype):
            return self._encode_integers(parameter, values)
        return self._encode_quantized(parameter, values)

    def _is_quantized(self, parameter: Parameter) -> bool:
        return is_signed_float(parameter.dtype) and parameter.name not in self._exact

    def may_join(self, weight: Parameter, vector: Parameter) -> bool:
        """Whether a weight and a vector can be in one block, whose header says some things once."""
        own, other = (self._options.for_tensor(p.name) for p in (weight, vector))
        return (
            self._is_quantized(weight)
            and self._is_quantized(vector)
            and weight.dtype == vector.dtype
            and (own.dq, own.unary_length) == (other.dq, other.unary_length)
            and not self._wants_codebook(vector, other)
            and not any(self._is_on_step(tensor) for tensor in (weight, vector))
        )

    def _is_on_step(self, parameter: Parameter) -> bool:
        """Whether a step that is not finer than the quantizer's says the values of a tensor, which
        then does better in a unit of its own."""
        if parameter.name not in self._known_steps:
            found = exact_of(parameter.read(), self._options.qp_density)
            asked = self._asked_qp(parameter, self._options.for_tensor(parameter.name))
            coarse = found is not None and found[0] >= asked and bool(found[1].any())
            self._known_steps[parameter.name] = coarse
        return self._known_steps[parameter.name]

    def _asked_qp(self, parameter: Parameter, options: EncodeOptions) -> int:
        return options.qp if parameter.role == "weight" else options.nonweight_qp

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
        return self._named_record(parameter.name, parameter.shape, payload_type)

    def _named_record(
        self, name: str, shape: tuple[int, ...], payload_type: PayloadType
    ) -> DataUnit:
        return DataUnit(
            payload_type,
            [name],
            node_id=self._node_ids.get(name),
            tensor_dimensions=list(shape) or [1],
        )

    def _encode_exact(
        self, parameter: Parameter, values: npt.NDArray[Any], exact: Representation
    ) -> EncodedTensors:
        if exact.kind == "raw":
            return self._encode_raw(parameter, values)
        tensor_options = self._options.for_tensor(parameter.name)
        options = replace(tensor_options, dq=False, unary_length=exact.unary_length)
        if exact.kind == "step":
            found = exact_of(values, self._options.qp_density)
            if found is None:  # the first pass found one
                raise InvalidModel(parameter.name, "was changed while it was encoded")
            unit = self._encode_step(parameter, options, found[1], found[0])
            report = _report(parameter, exact.kind, len(unit.data), found[0])
            return EncodedTensors(unit.data, [report])
        levels, second = exact.integers(values)
        unit = self._smallest(self._record(parameter, PayloadType.INT), options, levels, 0)
        if second is None or exact.entry.part is None:
            report = _report(parameter, exact.kind, len(unit.data))
            return EncodedTensors(unit.data, [report])
        shape = second.shape if exact.kind == "table" else parameter.shape
        record = self._named_record(exact.entry.part, shape, PayloadType.INT)
        # Differences and low halves are large: flags of single values do not help.
        part = self._smallest(record, replace(options, unary_length=1), second, 0)
        data = part.data + unit.data
        return EncodedTensors(data, [_report(parameter, exact.kind, len(data))])

    def _encode_raw(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensors:
        record = self._record(parameter, PayloadType.RAW_FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(values.dtype.name)
        unit = encode_raw_floats(record, values.astype(np.float32, copy=False), self._context)
        return EncodedTensors(unit.data, [_report(parameter, "raw", len(unit.data))])

    def _encode_step(
        self, parameter: Parameter, options: EncodeOptions, levels: Integers, qp: int
    ) -> EncodedUnit:
        """Code integers as they are, or by a codebook if that is smaller."""
        record = self._record(parameter, PayloadType.FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(parameter.dtype.name)
        return self._smallest(record, replace(options, dq=False, codebook=True), levels, qp)

    def _encode_integers(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensors:
        record = self._record(parameter, PayloadType.INT)
        record.nnr_decompressed_data_format = _INT_FORMATS.get(values.dtype.name)
        options = replace(self._options.for_tensor(parameter.name), dq=False)
        levels = values.astype(np.int32).reshape(-1)
        unit = self._smallest(record, options, levels, 0)
        return EncodedTensors(unit.data, [_report(parameter, "int", len(unit.data))])

    def _encode_quantized(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensors:
        quantized = self._quantized(parameter, values)
        record = self._record(parameter, PayloadType.FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(values.dtype.name)
        unit = self._smallest(record, quantized.options, quantized.levels, quantized.qp)
        report = quantized.report(len(unit.data))
        exact = self._on_step(quantized, values)
        if exact is not None and len(exact[0].data) <= len(unit.data):
            unit, qp = exact
            report = replace(
                _report(parameter, "step", len(unit.data), qp), energy=quantized.distortion.energy
            )
        return EncodedTensors(unit.data, [report], self._skippable_bytes(quantized))

    def _on_step(
        self, quantized: _Quantized, values: npt.NDArray[Any]
    ) -> tuple[EncodedUnit, int] | None:
        """Code a tensor exactly, if a step says its values: the unit and the step's qp."""
        if quantized.distortion.squared_error == 0:
            return None
        found = exact_of(values, self._options.qp_density)
        if found is None:
            return None
        qp, levels = found
        return self._encode_step(quantized.parameter, quantized.options, levels, qp), qp

    def encode_block(self, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> EncodedTensors:
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
        reports = [
            source.report(len(unit.data) if role == "weight" else 0)
            for role, source in quantized.items()
        ]
        return EncodedTensors(unit.data, reports, self._skippable_bytes(weight))

    def _quantized(self, parameter: Parameter, values: npt.NDArray[Any]) -> _Quantized:
        options = self._options.for_tensor(parameter.name)
        asked = self._asked_qp(parameter, options)
        with np.errstate(over="ignore"):
            weights = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        largest = largest_magnitude(weights)
        if not math.isfinite(largest):
            _check_finite(parameter.name, values)
            raise InvalidModel(parameter.name, "holds values beyond binary32")
        qp = self._coarse_enough(parameter.name, asked, largest)
        step = step_size(qp, self._options.qp_density)
        levels = self._levels(parameter.shape, options, weights, step)
        # No tool changes what is decoded. Measured before there is a code, it needs less memory.
        syntax = self._quantizer_syntax(parameter.shape, options, 1)
        found = distortion(values.reshape(-1), levels, syntax, step)
        if found.overflows:
            reason = f"at qp {qp} some values become too large for {values.dtype}"
            raise QuantizationOverflow(parameter.name, reason)
        return _Quantized(parameter, options, levels, qp, asked, found)

    def _coarse_enough(self, name: str, qp: int, largest: float) -> int:
        """Return qp, or the least greater one at which the integers of a tensor fit 32 bits."""
        density = self._options.qp_density
        highest = (1 << qp_delta_bits(density) - 1) - 1
        for candidate in range(qp, highest + 1):
            if largest / step_size(candidate, density) < _LEVEL_LIMIT:
                return candidate
        raise InvalidModel(name, f"values as large as {largest:g} fit no step size")

    def _levels(
        self,
        shape: tuple[int, ...],
        options: EncodeOptions,
        weights: npt.NDArray[np.float32],
        step: float,
    ) -> Integers:
        """Return the integers of weights; flat."""
        lambda_ = lambda_of(options.lambda_scale, options.dq)
        unary_length = options.unary_length
        if unary_length == "auto":  # what rates depend on, which without lambda are not asked for
            syntax = self._quantizer_syntax(shape, options, 1)
            levels = quantize(syntax, weights, step)
            if lambda_ == 0:
                return levels
            unary_length = choose_unary_length(levels)
        syntax = self._quantizer_syntax(shape, options, unary_length)
        return quantize(syntax, weights, step, lambda_)

    def _quantizer_syntax(
        self, shape: tuple[int, ...], options: EncodeOptions, unary_length: int
    ) -> TensorSyntax:
        rows, cols = matrix_shape(shape)
        return TensorSyntax(
            rows,
            cols,
            unary_length=unary_length,
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
        units = self._candidates(record, options, levels, qp, vectors or {})
        return min(units, key=lambda unit: len(unit.data))

    def _candidates(
        self,
        record: DataUnit,
        options: EncodeOptions,
        levels: Integers,
        qp: int,
        vectors: Mapping[str, CodedLevels],
    ) -> Iterator[EncodedUnit]:
        rows, cols = matrix_shape(tuple(record.tensor_dimensions or ()))
        record.dq_flag = int(options.dq)
        record.scan_order = options.scan_order if rows > 1 and cols > 1 else 0
        tools = itertools.product(
            self._parents(record, options, rows * cols),
            self._codebooks(record, options, levels),
            self._row_skipping(options, levels.reshape(rows, cols)),
        )
        for (parent, history), (codebooks, coded_levels), row_skipping in tools:
            if history and codebooks and len(codebooks[0].values) == 1:
                continue  # nothing is coded then, the history flag neither
            coded = CodedLevels(
                coded_levels, qp, row_skipping, history, options.search_initialization
            )
            unary_length = options.unary_length
            if unary_length == "auto":
                unary_length = choose_unary_length(coded_levels)
            tried = replace(
                record,
                parent=parent,
                codebooks=codebooks,
                cabac_unary_length_minus1=unary_length - 1,
            )
            tensors = {**vectors, "weight": coded}
            yield encode_data_unit(tried, tensors, self._context, self._parent_data)

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

    def _skippable_bytes(self, quantized: _Quantized) -> float:
        """Return about how many bytes rows of zeros take, if it is left to us to skip them."""
        options, levels = quantized.options, quantized.levels
        rows, cols = matrix_shape(quantized.parameter.shape)
        if min(rows, cols) < 2 or (options.dq and options.scan_order):
            return 0.0
        if options.row_skipping != "auto" or not (zero_rows := count_zero_rows(levels, rows)):
            return 0.0
        zeros = levels.size - int(np.count_nonzero(levels))
        # Within such a row the contexts soon expect zeros, above all if there are many elsewhere.
        bits = min(-_ADAPTED * math.log2(zeros / levels.size), _MOST_BITS_OF_SKIPPED)
        return zero_rows * cols * bits / 8

    def _parent_data(self, name: str, elements: int) -> ParentData:
        return self._series.parent_data(name, elements, label="parent", offset=0)


def _parameter_types(roles: Container[str]) -> int:
    """Return compressed_parameter_types of a block of tensors of these roles."""
    bits = {"beta": ParameterTypes.BN, "bias": ParameterTypes.BI}
    return sum(int(bit) for role, bit in bits.items() if role in roles)


def _report(
    parameter: Parameter, kind: str, unit_bytes: int, qp: int | None = None
) -> TensorReport:
    return TensorReport(
        parameter.name,
        parameter.shape,
        parameter.dtype.name,
        kind,
        parameter.nbytes,
        unit_bytes,
        qp,
    )


def _check_finite(name: str, values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "infinity"
        raise InvalidModel(name, f"holds {kind}; excluded from quantization it travels losslessly")

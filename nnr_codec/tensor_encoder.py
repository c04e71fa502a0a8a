"""Encoding of one tensor of a model: which tools, which quantizer, the smallest data unit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ._core import TensorSyntax, dequantize, quantize
from .bitstream import Codebook, Context, DataFormat, DataUnit, Parent, PayloadType
from .errors import InvalidModel
from .exact import Representation, exact_of
from .model import Parameter, is_extension
from .options import EncodeOptions
from .quantize.codebook import codebook_of
from .quantize.grids import exact_step
from .quantize.integer_rate import estimated_bits
from .quantize.qp import qp_delta_bits, step_size
from .quantize.rate import lambda_of
from .report import TensorReport
from .series import Series
from .unit_encoder import CodedLevels, EncodedUnit, encode_data_unit, encode_raw_floats
from .unit_layout import Integers, ParentData, look_up, matrix_shape

# What nnr_decompressed_data_format tells every decoder; the other types stand in the model map.
_INT_FORMATS = {"int8": DataFormat.INT8, "int16": DataFormat.INT16, "int64": DataFormat.INT64}
_FLOAT_FORMATS = {"float16": DataFormat.FLOAT16, "float64": DataFormat.FLOAT64}
_LEVEL_LIMIT = 2**31 - 8  # of |weight / step|: the integer, and those tried beside it, fit 32 bits


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A tensor's data unit, that of its second tensor (if any), and what there is to say of it."""

    unit: EncodedUnit
    report: TensorReport
    part: EncodedUnit | None = None

    @property
    def data(self) -> bytes:
        """Its units, as they stand in the stream."""
        return (self.part.data if self.part is not None else b"") + self.unit.data


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
        # The second edition's units have identities, so that updates can refer to them.
        self._node_ids = series.node_ids(names) if context.profile == 1 else {}

    def encode(self, name: str, values: npt.NDArray[Any]) -> EncodedTensor:
        """Encode a tensor that is not empty.

        Raises:
            InvalidModel: it cannot be coded.
        """
        parameter = Parameter.from_array(name, values)
        if name in self._exact:
            return self._encode_exact(parameter, values, self._exact[name])
        if values.dtype.kind != "f" and not is_extension(values.dtype):
            return self._encode_integers(parameter, values)
        return self._encode_quantized(parameter, values)

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
    ) -> EncodedTensor:
        if exact.kind == "raw":
            return self._encode_raw(parameter, values)
        tensor_options = self._options.for_tensor(parameter.name)
        options = replace(tensor_options, dq=False, unary_length=exact.unary_length)
        if exact.kind == "step":
            found = exact_of(values, self._options.qp_density)
            if found is None:  # the first pass found one
                raise InvalidModel(parameter.name, "was changed while it was encoded")
            unit = self._encode_step(parameter, options, found[1], found[0])
            return EncodedTensor(unit, _report(parameter, exact.kind, unit, found[0]))
        levels, second = exact.integers(values)
        unit = self._smallest(self._record(parameter, PayloadType.INT), options, levels, 0)
        report = _report(parameter, exact.kind, unit)
        if second is None or exact.entry.part is None:
            return EncodedTensor(unit, report)
        shape = second.shape if exact.kind == "table" else parameter.shape
        record = self._named_record(exact.entry.part, shape, PayloadType.INT)
        # Differences and low halves are large: flags of single values do not help.
        part = self._smallest(record, replace(options, unary_length=1), second, 0)
        report = replace(report, bytes=len(part.data) + len(unit.data))
        return EncodedTensor(unit, report, part)

    def _encode_raw(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensor:
        record = self._record(parameter, PayloadType.RAW_FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(values.dtype.name)
        unit = encode_raw_floats(record, values.astype(np.float32), self._context)
        return EncodedTensor(unit, _report(parameter, "raw", unit))

    def _encode_step(
        self, parameter: Parameter, options: EncodeOptions, levels: Integers, qp: int
    ) -> EncodedUnit:
        """Code integers as they are, or by a codebook if that is smaller."""
        record = self._record(parameter, PayloadType.FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(parameter.dtype.name)
        return self._smallest(record, replace(options, dq=False, codebook=True), levels, qp)

    def _encode_integers(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensor:
        record = self._record(parameter, PayloadType.INT)
        record.nnr_decompressed_data_format = _INT_FORMATS.get(values.dtype.name)
        options = replace(self._options.for_tensor(parameter.name), dq=False)
        levels = values.astype(np.int32).reshape(-1)
        unit = self._smallest(record, options, levels, 0)
        return EncodedTensor(unit, _report(parameter, "int", unit))

    def _encode_quantized(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensor:
        options = self._options.for_tensor(parameter.name)
        asked = options.qp if parameter.role == "weight" else options.nonweight_qp
        with np.errstate(over="ignore"):
            weights = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        _check_finite(parameter.name, values)
        if not np.isfinite(weights).all():
            raise InvalidModel(parameter.name, "holds values beyond binary32")
        qp = self._coarse_enough(parameter.name, asked, float(np.abs(weights).max()))
        step = step_size(qp, self._options.qp_density)
        record = self._record(parameter, PayloadType.FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(values.dtype.name)
        levels = quantize(
            self._quantizer_syntax(parameter.shape, options),
            weights,
            step,
            lambda_of(options.lambda_scale, options.dq),
        )
        unit = self._smallest(record, options, levels, qp)
        decoded = dequantize(look_up(unit.integers["weight"], *unit.record.codebooks), step)
        with np.errstate(over="ignore"):
            decoded = decoded.astype(values.dtype)
        if not np.isfinite(decoded).all():
            reason = f"at qp {qp} some values become too large for {values.dtype}"
            raise InvalidModel(parameter.name, reason)
        error = decoded.astype(np.float64) - weights
        report = _report(parameter, "dq" if options.dq else "uniform", unit, qp)
        distortion = replace(
            report,
            qp_raised=qp != asked,
            squared_error=float(error @ error),
            energy=float(np.square(weights, dtype=np.float64).sum()),
        )
        return self._or_exact(parameter, options, weights, EncodedTensor(unit, distortion))

    def _or_exact(
        self,
        parameter: Parameter,
        options: EncodeOptions,
        weights: npt.NDArray[np.float32],
        quantized: EncodedTensor,
    ) -> EncodedTensor:
        """Return a quantized tensor, or itself if a step says it exactly in no more bytes."""
        found = exact_step(weights, self._options.qp_density)
        if found is None or quantized.report.squared_error == 0:
            return quantized
        qp, levels = found
        length = estimated_bits(levels)[1]
        options = replace(options, unary_length=length)
        unit = self._encode_step(parameter, options, levels, qp)
        if len(unit.data) > len(quantized.unit.data):
            return quantized
        report = _report(parameter, "step", unit, qp)
        return EncodedTensor(unit, replace(report, energy=quantized.report.energy))

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
        self, record: DataUnit, options: EncodeOptions, levels: Integers, qp: int
    ) -> EncodedUnit:
        """Encode with every combination of the tools that are allowed, and keep the smallest."""
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
            units.append(
                encode_data_unit(tried, {"weight": coded}, self._context, self._parent_data)
            )
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

    def _parent_data(self, name: str, elements: int) -> ParentData:
        return self._series.parent_data(name, elements, label="parent", offset=0)


def _report(
    parameter: Parameter, kind: str, unit: EncodedUnit, qp: int | None = None
) -> TensorReport:
    return TensorReport(
        parameter.name,
        parameter.shape,
        parameter.dtype.name,
        kind,
        parameter.nbytes,
        len(unit.data),
        qp,
    )


def _check_finite(name: str, values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "infinity"
        raise InvalidModel(name, f"holds {kind}; excluded from quantization it travels losslessly")

"""Encoding of a data unit of a model: which tools, which quantizer, the smallest result."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bitstream import Context, DataFormat, DataUnit, ParameterTypes, PayloadType
from ..bitstream.unit_layout import Integers
from ..decoding.series import Series
from ..errors import InvalidModel
from ..model import Parameter, is_float, is_signed_float
from ..options import EncodeOptions
from ..report import TensorReport
from .decomposed_unit import decomposed_unit
from .exact import Representation, exact_of, levels_of
from .factor_transport import CarriedWeight
from .grouping import USUALLY_SAVED_BYTES
from .tensor_quantizer import QuantizedTensor, asked_qp, decoded_values, quantize_tensor
from .tool_search import ToolSearch, skippable_bytes
from .unit_encoder import CodedLevels, EncodedUnit, encode_raw_floats

# What nnr_decompressed_data_format tells every decoder; the other types stand in the model map.
_INT_FORMATS = {"int8": DataFormat.INT8, "int16": DataFormat.INT16, "int64": DataFormat.INT64}
_FLOAT_FORMATS = {"float16": DataFormat.FLOAT16, "float64": DataFormat.FLOAT64}


UnitValues = Mapping[str, tuple[str, npt.NDArray[Any]]]
"""What goes into one data unit: the name and values of each tensor, by role."""


@dataclass(frozen=True, slots=True)
class EncodedTensors:
    """The data unit of one or several tensors and what there is to say of each.

    Attributes:
        data: the unit, or the units of a tensor and its part.
        reports: of its tensors; bytes are those of the weight.
        skippable_bytes: about what its rows of zeros take that profile 1 might skip.
        factors: what decoders make of those tensors that are factors of a weight, by name.
    """

    data: bytes
    reports: list[TensorReport]
    skippable_bytes: float = 0.0
    factors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class TensorEncoder:
    """Encodes the tensors of one model, each by itself, in any order and from any thread."""

    def __init__(
        self,
        options: EncodeOptions,
        context: Context,
        series: Series,
        names: list[str],
        exact: Mapping[str, Representation],
        carried: Mapping[str, CarriedWeight],
    ) -> None:
        """`series`: the earlier streams, which the tensors' identities follow from; `names`: of all
        coded tensors, in order; `exact`: how those that are exact are coded; `carried`: the weights
        that travel as factors."""
        self._options = options
        self._exact = exact
        # Names and shapes alone: other processes cannot have the weights.
        self._blocks = {
            weight.brought[0].name: (name, weight.entry.shape)
            for name, weight in carried.items()
            if weight.is_block
        }
        self._factors = frozenset(p.name for weight in carried.values() for p in weight.brought)
        self._context = context
        # The qp of the step that says a tensor's values; None without, or if all of them are zero.
        self._known_steps: dict[str, int | None] = {}
        # The second edition's units have identities, so that updates can refer to them.
        self._node_ids = series.node_ids(names) if context.profile == 1 else {}
        self._search = ToolSearch(context, Series(), self._node_ids)

    def with_series(self, series: Series) -> TensorEncoder:
        """Return an encoder of tensors whose integers in earlier streams `series` has.

        These are as large as the model: they travel to a worker with the unit, not with the
        encoder.
        """
        encoder = copy(self)
        encoder._search = ToolSearch(self._context, series, self._node_ids)
        return encoder

    def encode_unit(self, tensors: UnitValues) -> EncodedTensors:
        """Encode what goes into one data unit, (name, values) by role; raises as `encode`."""
        if "G" in tensors:
            return self.encode_factors(tensors)
        return self.encode_block(tensors) if len(tensors) > 1 else self.encode(*tensors["weight"])

    def _decoded_factors(self, tensors: Iterable[QuantizedTensor]) -> dict[str, npt.NDArray[Any]]:
        """Return what decoders make of those of some quantized tensors that are factors."""
        return {
            quantized.parameter.name: decoded_values(quantized, self._context.profile)
            for quantized in tensors
            if quantized.parameter.name in self._factors
        }

    def encode(self, name: str, values: npt.NDArray[Any]) -> EncodedTensors:
        """Encode a tensor that is not empty.

        Raises:
            InvalidModel: it cannot be coded.
        """
        parameter = Parameter.from_array(name, values)
        if name in self._exact:
            encoded = self._encode_exact(parameter, values, self._exact[name])
            return replace(encoded, factors={name: values}) if name in self._factors else encoded
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
            self._known_steps[parameter.name] = found[0] if found and found[1].any() else None
        qp = self._known_steps[parameter.name]
        options = self._options.for_tensor(parameter.name)
        return qp is not None and qp >= asked_qp(parameter, options)

    def _wants_codebook(self, vector: Parameter, options: EncodeOptions) -> bool:
        """Whether a codebook, which the vectors of a block do not have, saves more than a block."""
        if options.dq or not options.codebook:
            return False
        quantized = self._quantized(vector, vector.read())
        with_codebook, without = (
            self._search.smallest(
                self._record(vector.name, vector.shape, PayloadType.FLOAT),
                replace(options, codebook=tried),
                quantized.levels,
                quantized.qp,
            )
            for tried in (options.codebook, False)
        )
        return len(with_codebook.data) + USUALLY_SAVED_BYTES < len(without.data)

    def _record(self, name: str, shape: tuple[int, ...], payload_type: PayloadType) -> DataUnit:
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
        if exact.qp is not None:
            on_step = levels_of(values, exact.qp, self._options.qp_density)
            if on_step is None:  # in the first pass they were
                raise InvalidModel(parameter.name, "was changed while it was encoded")
            unit = self._encode_step(parameter, options, on_step, exact.qp)
            report = _report(parameter, exact.kind, len(unit.data), exact.qp)
            return EncodedTensors(unit.data, [report])
        levels, second = exact.integers(values)
        unit = self._search.smallest(
            self._record(parameter.name, parameter.shape, PayloadType.INT), options, levels, 0
        )
        if second is None or exact.entry.part is None:
            report = _report(parameter, exact.kind, len(unit.data))
            return EncodedTensors(unit.data, [report])
        shape = second.shape if exact.kind == "table" else parameter.shape
        record = self._record(exact.entry.part, shape, PayloadType.INT)
        # Differences and low halves are large: flags of single values do not help.
        part = self._search.smallest(record, replace(options, unary_length=1), second, 0)
        data = part.data + unit.data
        return EncodedTensors(data, [_report(parameter, exact.kind, len(data))])

    def _encode_raw(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensors:
        record = self._record(parameter.name, parameter.shape, PayloadType.RAW_FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(values.dtype.name)
        unit = encode_raw_floats(record, values.astype(np.float32, copy=False), self._context)
        return EncodedTensors(unit.data, [_report(parameter, "raw", len(unit.data))])

    def _encode_step(
        self, parameter: Parameter, options: EncodeOptions, levels: Integers, qp: int
    ) -> EncodedUnit:
        """Code integers times a step, which `options` do not quantize dependently, as they are or
        by a codebook if that is smaller, whatever it promises."""
        record = self._record(parameter.name, parameter.shape, PayloadType.FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(parameter.dtype.name)
        return self._search.smallest(
            record, replace(options, codebook=bool(options.codebook)), levels, qp
        )

    def _encode_integers(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensors:
        record = self._record(parameter.name, parameter.shape, PayloadType.INT)
        record.nnr_decompressed_data_format = _INT_FORMATS.get(values.dtype.name)
        options = replace(self._options.for_tensor(parameter.name), dq=False)
        levels = values.astype(np.int32).reshape(-1)
        unit = self._search.smallest(record, options, levels, 0)
        return EncodedTensors(unit.data, [_report(parameter, "int", len(unit.data))])

    def _encode_quantized(self, parameter: Parameter, values: npt.NDArray[Any]) -> EncodedTensors:
        quantized = self._quantized(parameter, values)
        record = self._record(parameter.name, parameter.shape, PayloadType.FLOAT)
        record.nnr_decompressed_data_format = _FLOAT_FORMATS.get(values.dtype.name)
        unit = self._search.smallest(record, quantized.options, quantized.levels, quantized.qp)
        report = _quantized_report(quantized, len(unit.data))
        factors = self._decoded_factors([quantized])
        exact = self._on_step(quantized, values)
        if exact is not None and len(exact[0].data) <= len(unit.data):
            unit, qp = exact
            report = replace(
                _report(parameter, "step", len(unit.data), qp), energy=quantized.distortion.energy
            )
            factors = dict.fromkeys(factors, values)
        return EncodedTensors(unit.data, [report], skippable_bytes(quantized), factors)

    def _on_step(
        self, quantized: QuantizedTensor, values: npt.NDArray[Any]
    ) -> tuple[EncodedUnit, int] | None:
        """Code a tensor exactly, if a step says its values: the unit and the step's qp."""
        if quantized.distortion.squared_error == 0:
            return None
        found = self._step(quantized.parameter.name, values)
        if found is None:
            return None
        qp, levels = found
        options = replace(quantized.options, dq=False)
        return self._encode_step(quantized.parameter, options, levels, qp), qp

    def _step(self, name: str, values: npt.NDArray[Any]) -> tuple[int, Integers] | None:
        """Return the qp of a step, and the integers that times the step are a tensor's values."""
        density = self._options.qp_density
        if name not in self._known_steps:
            return exact_of(values, density)
        qp = self._known_steps[name]
        if qp is None:
            return None
        levels = levels_of(values, qp, density)
        return None if levels is None else (qp, levels)

    def encode_block(self, tensors: UnitValues) -> EncodedTensors:
        """Encode the tensors of a layer, (name, values) by role, all to be quantized, as a BLOCK.

        Raises:
            InvalidModel: one of them cannot be coded.
        """
        quantized = {
            role: self._quantized(Parameter.from_array(name, values), values)
            for role, (name, values) in tensors.items()
        }
        weight = quantized["weight"]
        record = self._record(weight.parameter.name, weight.parameter.shape, PayloadType.BLOCK)
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
        unit = self._search.smallest(record, weight.options, weight.levels, weight.qp, vectors)
        reports = [
            _quantized_report(source, len(unit.data) if role == "weight" else 0)
            for role, source in quantized.items()
        ]
        factors = self._decoded_factors(quantized.values())
        return EncodedTensors(unit.data, reports, skippable_bytes(weight), factors)

    def encode_factors(self, tensors: UnitValues) -> EncodedTensors:
        """Encode the factors G and H of a weight, (name, values) by role, as a decomposed BLOCK.

        Raises:
            InvalidModel: one of them cannot be coded.
        """
        quantized = {
            role: self._quantized(Parameter.from_array(name, values), values)
            for role, (name, values) in tensors.items()
        }
        name, shape = self._blocks[tensors["G"][0]]
        left, right = quantized["G"], quantized["H"]
        unit = decomposed_unit(name, shape, left, right, self._context)
        share = len(unit.data) * left.levels.size // (left.levels.size + right.levels.size)
        reports = [
            _quantized_report(left, share),
            _quantized_report(right, len(unit.data) - share),
        ]
        factors = self._decoded_factors([left, right])
        return EncodedTensors(unit.data, reports, factors=factors)

    def _quantized(self, parameter: Parameter, values: npt.NDArray[Any]) -> QuantizedTensor:
        options = self._options.for_tensor(parameter.name)
        return quantize_tensor(parameter, values, options, self._context.profile)


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


def _quantized_report(quantized: QuantizedTensor, unit_bytes: int) -> TensorReport:
    """Report a quantized tensor, to which a unit's bytes are ascribed."""
    kind = "dq" if quantized.options.dq else "uniform"
    return replace(
        _report(quantized.parameter, kind, unit_bytes, quantized.qp),
        qp_raised=quantized.qp != quantized.asked,
        squared_error=quantized.distortion.squared_error,
        energy=quantized.distortion.energy,
    )

"""Encoding of a data unit of a model: which kind, which tools, the smallest result."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .._core import choose_unary_length
from ..bitstream import Context, DataFormat, DataUnit, ParameterTypes, PayloadType
from ..bitstream.unit_layout import Integers
from ..errors import InvalidModel
from ..model import Parameter, dtype_name
from ..options import EncodeOptions
from ..quantize.grids import levels_on_step
from ..report import OnStage, TensorReport
from ..support.shared_function import call_portably
from .exact import integers_of
from .plan import TensorPlan, UnitPlan
from .representation import Representation
from .tensor_quantizer import QuantizedFactor, QuantizedTensor, quantize_tensor
from .tool_search import ToolSearch, skippable_bytes
from .unit_encoder import encode_data_unit, encode_raw_floats
from .updates.difference import Difference, WordDifference
from .weight_errors import quantized_report, tensor_report

_DATA_FORMATS = {
    "int8": DataFormat.INT8,
    "int16": DataFormat.INT16,
    "int64": DataFormat.INT64,
    "float16": DataFormat.FLOAT16,
    "float64": DataFormat.FLOAT64,
}
"""What nnr_decompressed_data_format can say; other types stand in the model map."""


@dataclass(frozen=True, slots=True)
class EncodedTensors:
    """The data unit of one or several tensors and what there is to say of each.

    Attributes:
        data: the unit, or the units of a tensor and its part.
        reports: of its tensors; bytes are those of the weight.
        skippable_bytes: about what its rows of zeros take that profile 1 might skip.
        factors: those of its tensors that are factors of a weight and not coded exactly, by name.
    """

    data: bytes
    reports: list[TensorReport]
    skippable_bytes: float = 0.0
    factors: Mapping[str, QuantizedFactor] = field(default_factory=dict)


def encode_unit(
    context: Context, unit: UnitPlan, on_stage: OnStage | None = None
) -> EncodedTensors:
    """Encode one data unit, in any order and by any worker.

    Args:
        context: profile and parameter sets of the stream.
        unit: what it holds.
        on_stage: called when its tensors are "quantized".

    Raises:
        InvalidModel: a tensor cannot be coded.
    """
    first = next(iter(unit.tensors.values()))
    with unit.series.in_one_pass(unit.coded_names):
        return call_portably(first.parameter.name, TensorEncoder(context, unit, on_stage).encode)


class TensorEncoder:
    """Encodes the tensors of one data unit."""

    def __init__(self, context: Context, unit: UnitPlan, on_stage: OnStage | None = None) -> None:
        """Encode `unit`; the arguments are those of `encode_unit`."""
        self._context = context
        self._unit = unit
        self._on_stage = on_stage
        self._search = ToolSearch(context, unit.series, unit.node_ids)

    def encode(self) -> EncodedTensors:
        """Encode the unit; raises what `encode_unit` raises."""
        if self._unit.factored is not None:
            return self._encode_decomposed(*self._unit.factored)
        weight = self._unit.tensors["weight"]
        if weight.is_quantized:
            return self._encode_quantized()
        self._tell_quantized()  # nothing is to be
        exact = weight.exact
        return self._encode_integers(weight) if exact is None else self._encode_exact(weight, exact)

    def _record(self, parameter: Parameter, payload_type: PayloadType) -> DataUnit:
        """Return the header of a unit that says the type of its tensor."""
        record = self._part_record(parameter.name, parameter.shape, payload_type)
        record.nnr_decompressed_data_format = _DATA_FORMATS.get(dtype_name(parameter.dtype))
        return record

    def _part_record(
        self, name: str, shape: tuple[int, ...], payload_type: PayloadType = PayloadType.INT
    ) -> DataUnit:
        return DataUnit(
            payload_type,
            [name],
            node_id=self._unit.node_ids.get(name),
            tensor_dimensions=list(shape) or [1],
        )

    def _encode_integers(self, tensor: TensorPlan) -> EncodedTensors:
        parameter = tensor.parameter
        record = self._record(parameter, PayloadType.INT)
        levels = parameter.read().astype(np.int32).reshape(-1)
        if isinstance(parameter, WordDifference):
            return self._encode_words(record, tensor.options, parameter, levels)
        data = self._search.smallest(record, replace(tensor.options, dq=False), levels, 0)
        return _exactly(parameter, "int", data)

    def _encode_words(
        self, record: DataUnit, options: EncodeOptions, parameter: WordDifference, levels: Integers
    ) -> EncodedTensors:
        """Encode what is added to the bits of a base's tensor; nothing if that is not needed."""
        kind = "xor" if parameter.xor else "words"
        if parameter.may_be_left_out and not levels.any():
            return _exactly(parameter, kind, b"")
        data = self._search.smallest(record, replace(options, dq=False), levels, 0)
        return _exactly(parameter, kind, data)

    def _encode_exact(self, tensor: TensorPlan, exact: Representation) -> EncodedTensors:
        parameter = tensor.parameter
        if exact.kind == "raw":
            record = self._record(parameter, PayloadType.RAW_FLOAT)
            values = parameter.read().astype(np.float32, copy=False)
            return _exactly(parameter, "raw", encode_raw_floats(record, values, self._context))
        options = replace(tensor.options, dq=False, unary_length=exact.unary_length)
        if exact.qp is not None:
            on_step = self._on_step(parameter, options, exact.qp)
            if on_step is None:  # in the survey they were
                raise InvalidModel(parameter.name, "was changed while it was encoded")
            return _exactly(parameter, "step", on_step, exact.qp)
        levels, second = integers_of(exact, parameter.name, parameter.read())
        shape = parameter.shape
        fields = exact.entry.integers_per_value
        if fields > 1:
            shape = (*shape[:-1], shape[-1] * fields) if shape else (fields,)
        record = self._part_record(parameter.name, shape)
        data = self._search.smallest(record, options, levels, 0)
        if second is not None and exact.entry.part is not None:
            part_shape = parameter.shape if second.size == levels.size else second.shape
            record = self._part_record(exact.entry.part, part_shape)
            options = replace(options, unary_length=exact.part_unary_length)
            data = self._search.smallest(record, options, second, 0) + data
        return _exactly(parameter, exact.kind, data)

    def _on_step(self, parameter: Parameter, options: EncodeOptions, qp: int) -> bytes | None:
        """Code the integers that times a step are a tensor's values, as they are or by a codebook
        if that is smaller, whatever it promises; None if there are no such integers."""
        levels = levels_on_step(parameter.read(), qp, options.qp_density)
        if levels is None:
            return None
        options = replace(options, dq=False, codebook=bool(options.codebook))
        record = self._record(parameter, PayloadType.FLOAT)
        return self._search.smallest(record, options, levels, qp)

    def _encode_quantized(self) -> EncodedTensors:
        """Encode a tensor, or those of a layer as a BLOCK; a tensor exactly if that is smaller."""
        quantized = self._quantized()
        weight = quantized["weight"]
        data = b"" if _may_be_left_out(weight) else self._quantized_unit(quantized)
        if len(quantized) == 1 and (exact := self._by_step(weight, len(data))) is not None:
            return exact
        unit_bytes = {"weight": len(data)}
        reports = [
            quantized_report(tensor, self._unit.tensors[role].survey, unit_bytes.get(role, 0))
            for role, tensor in quantized.items()
        ]
        factors = self._factors(quantized)
        return EncodedTensors(data, reports, skippable_bytes(weight), factors)

    def _by_step(self, weight: QuantizedTensor, most_bytes: int) -> EncodedTensors | None:
        """Encode a tensor exactly by a step of the standard, if that takes no more than so many
        bytes."""
        step_qp = self._unit.tensors["weight"].survey.step_qp
        if step_qp is None:
            return None
        coded = self._on_step(weight.parameter, weight.options, step_qp)
        if coded is None or len(coded) > most_bytes:
            return None
        report = tensor_report(weight.parameter, "step", len(coded), step_qp)
        report = replace(report, energy=weight.distortion.energy)
        return EncodedTensors(coded, [report], skippable_bytes(weight))

    def _quantized_unit(self, quantized: Mapping[str, QuantizedTensor]) -> bytes:
        weight = quantized["weight"]
        is_block = len(quantized) > 1
        record = self._record(
            weight.parameter, PayloadType.BLOCK if is_block else PayloadType.FLOAT
        )
        if is_block:
            record.compressed_parameter_types = _parameter_types(quantized)
            record.names = [quantized[role].parameter.name for role in record.name_roles()]
        vectors = {role: t.coded_levels for role, t in quantized.items() if role != "weight"}
        return self._search.smallest(record, weight.options, weight.levels, weight.qp, vectors)

    def _encode_decomposed(self, name: str, shape: tuple[int, ...]) -> EncodedTensors:
        """Encode the factors G and H of a weight as a decomposed BLOCK."""
        quantized = self._quantized()
        left, right = quantized["G"], quantized["H"]
        data = self._decomposed_unit(name, shape, left, right)
        share = len(data) * left.levels.size // (left.levels.size + right.levels.size)
        reports = [
            quantized_report(quantized[role], self._unit.tensors[role].survey, unit_bytes)
            for role, unit_bytes in (("G", share), ("H", len(data) - share))
        ]
        return EncodedTensors(data, reports, factors=self._factors(quantized))

    def _decomposed_unit(
        self, name: str, shape: tuple[int, ...], left: QuantizedTensor, right: QuantizedTensor
    ) -> bytes:
        """Encode G and H of a dense weight, with the unary length that is the smaller.

        Their options agree in what the header says once. The unit has neither codebooks nor
        contexts of earlier streams, and in profile 1 no identity, which its two tensors would have
        to share.
        """
        rows, rank = left.parameter.shape
        record = DataUnit(
            PayloadType.BLOCK,
            [f"{name}_G", f"{name}_H"],
            compressed_parameter_types=int(ParameterTypes.DC),
            decomposition_rank=rank,
            g_number_of_rows=rows,
            tensor_dimensions=list(shape),
            dq_flag=int(left.options.dq),
        )
        # A matrix of one column has entry points that say nothing.
        sides = (*left.parameter.shape, *right.parameter.shape)
        record.scan_order = left.options.scan_order if min(sides) > 1 else 0
        chosen = left.options.unary_length
        best = {choose_unary_length(factor.levels) for factor in (left, right)}
        lengths = best if chosen == "auto" else {chosen}
        coded = {"G": left.coded_levels, "H": right.coded_levels}
        units = []
        for length in sorted(lengths):
            record.cabac_unary_length_minus1 = length - 1
            units.append(encode_data_unit(record, coded, self._context))
        return min(units, key=len)

    def _quantized(self) -> dict[str, QuantizedTensor]:
        """Quantize the tensors of a unit, by role."""
        quantized = {
            role: quantize_tensor(
                tensor.parameter,
                tensor.options,
                tensor.survey.largest,
                self._context.profile,
                tensor.survey.read_feedback(),
            )
            for role, tensor in self._unit.tensors.items()
        }
        self._tell_quantized()
        return quantized

    def _tell_quantized(self) -> None:
        if self._on_stage is not None:
            self._on_stage("quantized", self._unit.elements)

    def _factors(self, quantized: Mapping[str, QuantizedTensor]) -> dict[str, QuantizedFactor]:
        """Return what decoders have of those tensors that are factors, by name."""
        return {
            tensor.parameter.name: QuantizedFactor.of(quantized[role], self._context.profile)
            for role, tensor in self._unit.tensors.items()
            if tensor.is_factor
        }


def _may_be_left_out(quantized: QuantizedTensor) -> bool:
    """Whether a tensor is a difference to that of a base, and none is left."""
    parameter = quantized.parameter
    if not isinstance(parameter, Difference) or not parameter.may_be_left_out:
        return False
    return not quantized.levels.any()


def _parameter_types(roles: Container[str]) -> int:
    """Return compressed_parameter_types of a block of tensors of these roles."""
    bits = {"beta": ParameterTypes.BN, "bias": ParameterTypes.BI}
    return sum(int(bit) for role, bit in bits.items() if role in roles)


def _exactly(parameter: Parameter, kind: str, data: bytes, qp: int | None = None) -> EncodedTensors:
    """Return the units of a tensor that comes back exactly."""
    return EncodedTensors(data, [tensor_report(parameter, kind, len(data), qp)])

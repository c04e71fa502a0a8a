"""Encoding of a decomposed BLOCK: a weight as its factors G and H, in the standard's own form."""

from __future__ import annotations

from .._core import choose_unary_length
from ..bitstream import Context, DataUnit, ParameterTypes, PayloadType
from .tensor_quantizer import QuantizedTensor
from .unit_encoder import EncodedUnit, encode_data_unit


def decomposed_unit(
    name: str,
    shape: tuple[int, ...],
    left: QuantizedTensor,
    right: QuantizedTensor,
    context: Context,
) -> EncodedUnit:
    """Encode the quantized factors of a weight, with the unary length that is the smaller.

    Their options agree in what the header says once. The unit has neither codebooks nor contexts
    of earlier streams, and in profile 1 no identity, which its two tensors would have to share.

    Args:
        name, shape: of the dense weight.
        left: G, (shape[0], rank).
        right: H, (rank, product of the other dimensions).
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
    coded = {"G": left.coded_levels, "H": right.coded_levels}
    units = []
    for length in sorted(_unary_lengths(left, right)):
        record.cabac_unary_length_minus1 = length - 1
        units.append(encode_data_unit(record, coded, context))
    return min(units, key=lambda unit: len(unit.data))


def _unary_lengths(left: QuantizedTensor, right: QuantizedTensor) -> set[int]:
    if left.options.unary_length != "auto":
        return {left.options.unary_length}
    return {choose_unary_length(factor.levels) for factor in (left, right)}

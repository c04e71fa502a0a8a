"""The values that integers stand for where the arithmetic is delicate (spec/bitstream.md, 12)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnr_codec import decode
from nnr_codec.bitstream import (
    Codebook,
    Context,
    DataFormat,
    DataUnit,
    ModelParameterSet,
    PayloadType,
    StartUnit,
    Topology,
    TopologyFormat,
    write_record,
)
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit

CONTEXT = Context(0, ModelParameterSet())


def stream(record: DataUnit, levels: dict[str, list[int]], qp: int) -> bytes:
    coded = {role: CodedLevels(np.array(v, np.int32), qp) for role, v in levels.items()}
    unit = encode_data_unit(record, coded, CONTEXT)
    return write_record(StartUnit()) + write_record(ModelParameterSet()) + unit


def decomposed(g: list[int], h: list[int], qp: int, **fields: Any) -> np.ndarray:
    """The product of a column and a row, or of a row and a column."""
    rows = fields.pop("rows", len(g))
    rank = len(g) // rows
    record = DataUnit(
        PayloadType.BLOCK,
        ["w_G", "w_H"],
        tensor_dimensions=[rows, len(h) // rank],
        compressed_parameter_types=1,
        decomposition_rank=rank,
        g_number_of_rows=rows,
        dq_flag=0,
        **fields,
    )
    return decode(stream(record, {"G": g, "H": h}, qp))["w"]


def test_wide_codebook_values_are_rounded_once() -> None:
    value = 2**24 + 1  # binary32 has none: rounded first, it would lose the 1
    record = DataUnit(PayloadType.FLOAT, ["w"], tensor_dimensions=[2], dq_flag=0)
    record.codebooks = [Codebook(0, 0, [0, value])]
    step = 1.75  # qp 3 with density 2
    found = decode(stream(record, {"weight": [1, 0]}, 3))["w"]
    assert found[0] == np.float32(value * step) != np.float32(value) * np.float32(step)


def test_product_of_binary32_factors() -> None:
    """Factors are rounded to binary32 before they are multiplied."""
    large, step = 2**23 + 1, 1.75
    found = decomposed([large, 3], [7, 7], 3)
    factor = np.float32(large) * np.float32(step)
    exact = np.float32(large * step * 7 * step)
    assert found[0, 0] == np.float32(float(factor) * 7 * step) != exact


def test_product_in_the_order_of_the_rank() -> None:
    """Sums that binary64 cannot hold are made from first to last."""
    largest = 2**31 - 1
    found = decomposed([largest, 1, -largest], [largest, 1, largest], 0, rows=1)
    one = float(np.float32(largest)) ** 2
    assert found[0, 0] == np.float32((one + 1.0) - one) == 0.0
    found = decomposed([largest, -largest, 1], [largest, largest, 1], 0, rows=1)
    assert found[0, 0] == 1.0


def test_no_negative_zero_from_a_product() -> None:
    found = decomposed([-1, 1], [0, 1], 0)
    assert found.tolist() == [[0.0, -1.0], [0.0, 1.0]]
    assert not np.signbit(found[:, 0]).any()


@pytest.mark.parametrize(
    ("data_format", "dtype"), [(DataFormat.FLOAT16, "float16"), (DataFormat.FLOAT64, "float64")]
)
def test_product_in_the_data_format(data_format: DataFormat, dtype: str) -> None:
    """The product of the factors as they are in binary32, not of the converted ones."""
    found = decomposed([2049, 1], [3, 1], 0, nnr_decompressed_data_format=data_format)
    assert found.dtype == dtype
    assert found[0, 0] == np.float32(2049 * 3).astype(dtype) != np.float16(2049) * np.float16(3)


@pytest.mark.parametrize("ending", ["_G", "_H"])
def test_factor_with_an_indexed_name(ending: str) -> None:
    """Its shape follows from the name that the index stands for, and so do its entry points."""
    mps = ModelParameterSet(mps_topology_indexed_reference_flag=1)
    reference_list = ("other", "w" + ending)
    context = Context(0, mps, reference_list=reference_list)
    shape = (20, 9) if ending == "_G" else (9, 30)
    record = DataUnit(
        PayloadType.FLOAT,
        ["w" + ending],
        indices=[1],
        tensor_dimensions=[20, 30],
        compressed_parameter_types=1,
        decomposition_rank=9,
        g_number_of_rows=20,
        dq_flag=0,
        scan_order=1,
    )
    levels = (np.arange(shape[0] * shape[1]) % 5 - 2).astype(np.int32)
    unit = encode_data_unit(record, {"weight": CodedLevels(levels, 0)}, context)
    topology = Topology(TopologyFormat.REFLIST, 0, "", list(reference_list))
    data = write_record(StartUnit()) + write_record(mps) + write_record(topology) + unit
    assert np.array_equal(decode(data)["w" + ending], levels.reshape(shape).astype(np.float32))

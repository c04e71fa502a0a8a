"""Decomposed blocks that are wrong, or of which the model map says wrong things."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hostile_support import LR, READERS, nnr_factors

import nnr_codec
from nnr_codec import InvalidBitstream, UnsupportedFeature
from nnr_codec.bitstream import (
    Context,
    DataFormat,
    DataUnit,
    ModelParameterSet,
    ParameterTypes,
    PayloadType,
    StartUnit,
    Topology,
    read_units,
    write_data_unit,
    write_record,
)
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit


def test_a_factor_of_a_block_is_none() -> None:
    """What the standard decomposes is whole already."""
    weights = {"w": nnr_factors((4, 2), (2, 6))}
    data = nnr_codec.encode({"w": weights["w"].to_dense()}, factorizations=weights).data or b""
    units = [bytes(unit.data) for unit in read_units(data)]
    for name, factors in (("x", ["w_G", "w_H"]), ("w", ["w_G", "w_H"])):
        entry = {"factorizations": {name: {**LR, "factors": factors}}}
        text = json.dumps({"nnr_model_map": 1, **entry}, separators=(",", ":"))
        hostile = b"".join([*units[:2], write_record(Topology(topology_data=text)), *units[3:]])
        with pytest.raises(InvalidBitstream):
            nnr_codec.decode(hostile)


@pytest.mark.parametrize(
    ("entries", "shape"),
    [
        ({"w": {"shape": [4, 3, 2]}}, (4, 3, 2)),
        ({"w": {"shape": [4, 6, 1], "dtype": "float16"}}, (4, 6, 1)),
        ({"w": {"shape": [6, 4]}}, None),
        ({"w": {"shape": [24]}}, None),
        ({"w": {"dtype": "float8_e8m0fnu"}}, None),
        ({"w_G": {"shape": [8]}}, None),
        ({"w_H": {"shape": [3, 4]}}, None),
        ({"w_H": {"dtype": "float8_e8m0fnu"}}, None),  # of positive numbers alone
        ({"w_G": {"dtype": "float16"}}, (4, 6)),
    ],
)
def test_blocks_of_which_the_map_says_more(entries: Any, shape: Any) -> None:
    """What is told of the factors fits what is decoded, or nothing is."""
    weights = {"w": nnr_factors((4, 2), (2, 6))}
    data = nnr_codec.encode({"w": weights["w"].to_dense()}, factorizations=weights).data or b""
    units = [bytes(unit.data) for unit in read_units(data)]
    text = json.dumps({"nnr_model_map": 1, "tensors": entries}, separators=(",", ":"))
    topology = write_record(Topology(topology_data=text))
    start = [unit for unit in units[:-1] if b"nnr_model_map" not in unit]
    data = b"".join([*start, topology, units[-1]])
    found = nnr_codec.open(data).factorizations
    assert {name: entry.shape for name, entry in found.items()} == ({"w": shape} if shape else {})
    dense, factors = nnr_codec.decode(data), nnr_codec.decode(data, layers="factorized")
    for name, entry in found.items():
        again = entry.dense([factors[factor] for factor in entry.factors])
        assert (again.shape, again.dtype) == (dense[name].shape, dense[name].dtype)
        np.testing.assert_allclose(again, dense[name], rtol=1e-2)


@pytest.mark.parametrize("part", ["w_G", "w_H", "w"])
def test_a_factor_of_a_block_is_no_part(part: str) -> None:
    """The headers do not tell that it is of the wrong type; what they say is shown all the same."""
    units = [bytes(unit.data) for unit in read_units(block("w_G", "w_H"))]
    vector = nnr_codec.encode({"z": np.ones(3, np.int32)}).data or b""
    entry = {"z": {"dtype": "float32", "table": part}}
    text = json.dumps({"nnr_model_map": 1, "tensors": entry}, separators=(",", ":"))
    last = bytes(list(read_units(vector))[-1].data)
    data = b"".join([*units[:2], write_record(Topology(topology_data=text)), units[3], last])
    with nnr_codec.open(data) as stream:
        assert not stream.info().factorizations
        assert not stream.factorizations
    with pytest.raises(InvalidBitstream):
        nnr_codec.decode(data)


def block(*names: str, data_format: DataFormat | None = None) -> bytes:
    """A stream of one decomposed block, 4 x 6 of rank 2."""
    record = DataUnit(
        PayloadType.BLOCK,
        list(names),
        compressed_parameter_types=int(ParameterTypes.DC),
        decomposition_rank=2,
        g_number_of_rows=4,
        tensor_dimensions=[4, 6],
        nnr_decompressed_data_format=data_format,
    )
    mps = ModelParameterSet()
    coded = {
        role: CodedLevels(np.arange(size, dtype=np.int32) - 5)
        for role, size in (("G", 8), ("H", 12))
    }
    unit = encode_data_unit(record, coded, Context(0, mps))
    return b"".join([write_record(StartUnit()), write_record(mps), write_record(Topology()), unit])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("names", [("_G", "x"), ("_G", "_G"), ("x_G", "_H"), ("x", "x_H")])
def test_factors_of_a_block_are_called_like_their_weight(names: Any, read: Any) -> None:
    """That of no name too."""
    read(block("_G", "_H"))
    with pytest.raises(InvalidBitstream, match="not X_G and X_H"):
        read(block(*names))


@pytest.mark.parametrize("data_format", [None, *DataFormat])
def test_element_types_of_blocks(data_format: DataFormat | None) -> None:
    """What is told of the weight has the type that decoding gives; integers are refused."""
    data = block("w_G", "w_H", data_format=data_format)
    with nnr_codec.open(data) as stream:
        found = stream.factorizations
        if data_format is not None and not data_format.name.startswith("FLOAT"):
            assert not found
            with pytest.raises(UnsupportedFeature):
                stream["w"]
            return
        expected = (data_format or DataFormat.FLOAT32).name.lower()
        assert found["w"].dtype == stream["w"].dtype.name == expected


@pytest.mark.parametrize(("name", "shape"), [("x_G", (6, 2)), ("x_H", (2, 4))])
def test_a_raw_factor_in_a_unit_of_its_own(name: str, shape: tuple[int, int]) -> None:
    """It has four bytes for each element of the factor, not of the product."""
    context = Context(0, ModelParameterSet())
    record = DataUnit(
        PayloadType.RAW_FLOAT,
        [name],
        compressed_parameter_types=ParameterTypes.DC,
        decomposition_rank=2,
        g_number_of_rows=6,
        tensor_dimensions=[6, 4],
    )
    values = np.arange(shape[0] * shape[1], dtype="<f4")
    start = write_record(StartUnit()) + write_record(ModelParameterSet())
    data = start + write_data_unit(record, values.tobytes(), context)
    decoded = nnr_codec.decode(data)[name]
    assert np.array_equal(decoded, values.reshape(shape))
    with pytest.raises(InvalidBitstream, match="raw floats"):
        nnr_codec.decode(start + write_data_unit(record, bytes(4 * 24), context))

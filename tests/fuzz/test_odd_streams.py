"""Odd streams: each is refused, or decodes to what the format says."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fuzz_support import (
    Mutator,
    ShortReads,
    head,
    is_error,
    outcome,
    own_streams,
    ramp,
    seeds,
    tensors_of,
    timed,
    units_of,
    vector,
)

import nnr_codec
from nnr_codec import DecodeLimits
from nnr_codec import bitstream as nnr
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit
from nnr_codec.errors import (
    BitstreamError,
    InvalidBitstream,
    LimitExceeded,
    MissingParent,
    NnrError,
    TruncatedBitstream,
    UnsupportedFeature,
)

pytestmark = pytest.mark.filterwarnings("error")  # damage must not show as warnings of numpy


@pytest.mark.parametrize("source", [b"", bytearray(), memoryview(b""), io.BytesIO()])
def test_nothing_at_all(source: Any) -> None:
    with pytest.raises(TruncatedBitstream, match="empty"):
        nnr_codec.decode(source)


def test_units_out_of_order() -> None:
    start, mps, topology, *data = units_of(own_streams()[0])
    for order in (
        [mps, start, topology, *data],
        [*data, start, mps],
        [start, *data, mps],
        [start, mps, mps, *data],
        [start, start, mps, *data],
        [start, mps, *data, *data],
        [start, mps, *data, start],
    ):
        with pytest.raises(InvalidBitstream):
            nnr_codec.decode(b"".join(order))
    assert tensors_of(nnr_codec.decode(b"".join([start, topology, mps, *data, topology])))


@pytest.mark.parametrize("stream", [0, 3, 6])
def test_a_pipe_that_ends_early(stream: int) -> None:
    """Every length: an error, or, at a unit's end, the tensors so far."""
    data = own_streams()[stream]
    whole = nnr_codec.decode(data)
    ends, position = set(), 0
    for unit in units_of(data):
        position += len(unit)
        ends.add(position)
    for length in range(len(data)):
        found = outcome(ShortReads(data[:length]))
        if length in ends:
            assert found == tensors_of(whole)[: len(found)]
        else:
            assert found == (TruncatedBitstream,)


def test_steps_outside_binary32() -> None:
    """The quantization parameters that a header can say reach far beyond any float."""
    start, context = head(0)
    (unit,) = units_of(own_streams()[2])[3:4]
    for density in (0, 7):
        for parameter in (-4096, 4095):
            lps = nnr.LayerParameterSet(
                lps_qp_density=density, lps_quantization_parameter=parameter
            )
            found = outcome(start + nnr.write_record(lps) + unit)
            assert is_error(found) or all(np.isfinite(np.frombuffer(found[0][3], found[0][1])))
    del context


@pytest.mark.parametrize("data_format", [nnr.DataFormat.FLOAT16, None])
def test_products_beyond_the_float_format_are_infinite(data_format: Any) -> None:
    """No warning, no NaN: the step is finite, and an infinite weight has its sign."""
    start, context = head(0, mps_quantization_parameter=500)
    record = nnr.DataUnit(
        names=["w"], tensor_dimensions=[3], nnr_decompressed_data_format=data_format
    )
    levels = CodedLevels(np.array([-(2**20), 0, 2**20], np.int32), qp=500 - 1)
    unit = encode_data_unit(record, {"weight": levels}, context)
    values = nnr_codec.decode(start + unit)["w"]
    assert values.tolist() == [-np.inf, 0, np.inf]


def test_weights_beyond_float16_are_infinite() -> None:
    start, context = head(0)
    record = nnr.DataUnit(
        names=["w"], tensor_dimensions=[2], nnr_decompressed_data_format=nnr.DataFormat.FLOAT16
    )
    levels = CodedLevels(np.array([70_000, -1], np.int32), qp=0)
    unit = encode_data_unit(record, {"weight": levels}, context)
    assert nnr_codec.decode(start + unit)["w"].tolist() == [np.inf, -1]


def raw_stream(data_format: nnr.DataFormat) -> bytes:
    start, context = head(0)
    record = nnr.DataUnit(
        nnr.PayloadType.RAW_FLOAT,
        ["w"],
        tensor_dimensions=[3],
        nnr_decompressed_data_format=data_format,
    )
    return start + nnr.write_data_unit(record, bytes(12), context)


@pytest.mark.parametrize("name", ["FLOAT16", "FLOAT64"])
def test_raw_floats_have_their_format(name: str) -> None:
    decoded = nnr_codec.decode(raw_stream(nnr.DataFormat[name]))
    assert decoded["w"].dtype.name == name.lower()


def test_raw_floats_are_no_integers() -> None:
    with pytest.raises(BitstreamError):
        nnr_codec.decode(raw_stream(nnr.DataFormat.INT8))


def test_threads_find_the_same_error(pool: ThreadPoolExecutor) -> None:
    """A damaged codeword in one unit, a damaged header in the next: the first is to be told."""
    units = units_of(own_streams()[0])
    start, context = head(0)
    record = nnr.DataUnit(names=["v"], tensor_dimensions=[64], scan_order=0)
    damaged = nnr.write_data_unit(record, b"\x12" * 8 + b"\0" * 40, context)
    stream = b"".join([start, damaged, nnr.write_unit(9, b""), *units[3:]])
    errors = []
    for executor in (None, pool):
        with pytest.raises(BitstreamError) as caught:
            nnr_codec.decode(stream, executor=executor)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_vectors_of_a_block_count_as_elements() -> None:
    start, context = head(0)
    names = ["x", "x.ls", "x.beta", "x.gamma", "x.mean", "x.var", "x.bias"]
    record = nnr.DataUnit(
        nnr.PayloadType.BLOCK, names, compressed_parameter_types=14, tensor_dimensions=[100]
    )
    coded = {role: CodedLevels(ramp(100)) for role in record.coding_roles()}
    stream = start + encode_data_unit(record, coded, context)
    assert sum(a.size for a in nnr_codec.decode(stream).values()) == 700
    with pytest.raises(LimitExceeded):
        nnr_codec.decode(stream, limits=DecodeLimits(max_elements=699))


@pytest.mark.parametrize("name", ["update_tca_1", "hist_urq_1", "hist_scan1_1", "hist_tca_3"])
def test_a_parent_that_is_missing(name: str) -> None:
    """Without its parents an update is no damaged stream."""
    with pytest.raises(MissingParent):
        nnr_codec.decode(vector(name))


def test_a_parent_of_another_shape() -> None:
    options = nnr_codec.EncodeOptions(qp=-8)
    first = nnr_codec.encode({"w": ramp(8, 8).astype(np.float32)}, options=options).data
    second = nnr_codec.encode(
        {"w": ramp(8, 8).astype(np.float32)}, options=options, parents=[first]
    ).data
    other = nnr_codec.encode({"w": ramp(8, 4).astype(np.float32)}, options=options).data
    assert nnr_codec.decode(second, parents=[first])
    with pytest.raises(InvalidBitstream, match="elements"):
        nnr_codec.decode(second, parents=[other])


def test_an_update_of_one_row_decodes() -> None:
    """hist_dep_sig_prob_enabled_flag exists for matrices of two and more rows and columns."""
    values = np.array([[0, 1, 0, 2, 2, 0]], np.float32)
    options = nnr_codec.EncodeOptions(qp=0, dq=False)
    first = nnr_codec.encode({"w": values}, options=options).data
    second = nnr_codec.encode({"w": values}, options=options, parents=[first]).data
    assert nnr_codec.decode(second, parents=[first])["w"].tolist() == values.tolist()


def test_a_constant_in_blocks_can_be_encoded() -> None:
    options = nnr_codec.EncodeOptions(codebook=True, dq=False, scan_order=1, profile=1)
    values = np.ones((20, 20), np.float32)
    stream = nnr_codec.encode({"w": values}, options=options).data
    assert np.allclose(nnr_codec.decode(stream)["w"], values, atol=0.01)


@pytest.mark.parametrize("kwargs", [{"only": "*"}, {"only": "nothing"}, {"layers": "factorized"}])
def test_ways_of_asking(kwargs: dict[str, Any]) -> None:
    mutator = Mutator(400, seeds())
    for _ in range(400):
        stream = mutator.mutant()
        timed(stream, lambda stream=stream: outcome(stream, **kwargs))


def test_errors_are_of_one_family() -> None:
    for kind in (InvalidBitstream, TruncatedBitstream, UnsupportedFeature, LimitExceeded):
        assert issubclass(kind, BitstreamError)
    assert issubclass(BitstreamError, NnrError)

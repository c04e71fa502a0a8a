"""Framing, the order of units, and the peer's units written again."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnr_codec import bitstream as nnr
from nnr_codec.bitstream import units as units_module
from nnr_codec.bitstream.codes import UnitType
from nnr_codec.errors import (
    BitstreamError,
    InvalidBitstream,
    InvalidModel,
    LimitExceeded,
    TruncatedBitstream,
    UnsupportedFeature,
)
from nnr_codec.options import DecodeLimits

SHARED = Path(os.environ.get("NNR_SHARED") or Path(__file__).parents[2] / ".." / "shared")
VECTORS = sorted((SHARED / "peer" / "vectors").glob("*.nnc"))

START = nnr.write_record(nnr.StartUnit())
MPS = nnr.write_record(nnr.ModelParameterSet())
CONTEXT = nnr.Context(0, nnr.ModelParameterSet())


def data_unit(name: str = "w", payload: bytes = b"\x12\x34", **fields: Any) -> bytes:
    record = nnr.DataUnit(names=[name], **{"tensor_dimensions": [4], **fields})
    return nnr.write_data_unit(record, payload, CONTEXT)


STREAM = START + MPS + nnr.write_record(nnr.Topology()) + data_unit("a") + data_unit("b")


def parse(stream: bytes, limits: DecodeLimits | None = None) -> list[nnr.ParsedUnit]:
    return list(nnr.parse_units(stream, limits))


def test_known_units() -> None:
    assert START.hex() == "00040200"
    assert MPS.hex() == "0008068100400080"
    assert nnr.write_record(nnr.Topology()).hex() == "00060e000000"


def test_whole_stream() -> None:
    parsed = parse(STREAM)
    assert [p.unit.label for p in parsed] == [
        "unit 0 (NNR_STR)",
        "unit 1 (NNR_MPS)",
        "unit 2 (NNR_TPL)",
        "unit 3 (NNR_NDU)",
        "unit 4 (NNR_NDU)",
    ]
    last = parsed[-1]
    assert isinstance(last.record, nnr.DataUnit)
    assert last.record.names == ["b"]
    assert last.payload == b"\x12\x34"
    assert STREAM[last.payload_offset :] == b"\x12\x34"
    assert all(not p.payload for p in parsed[:3])
    assert last.context.mps == nnr.ModelParameterSet()
    assert sum(p.unit.size for p in parsed) == len(STREAM)
    assert parsed[0].elements()[-1] == nnr.Element("general_profile_idc", "u(8)", 0)


@pytest.mark.parametrize(
    ("body", "size_bytes", "size"),
    [(0, 2, 3), (32764, 2, 32767), (32765, 4, 32770), (2**31 - 6, 4, 2**31 - 1)],
)
def test_size_field(body: int, size_bytes: int, size: int) -> None:
    start = nnr.unit_start(5, body)
    assert len(start) == size_bytes + 1
    number = int.from_bytes(start[:size_bytes], "big")
    assert number == size | (2**31 if size_bytes == 4 else 0)


def test_units_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nnr_unit_size"):
        nnr.unit_start(5, 2**31 - 5)
    monkeypatch.setattr(units_module, "MAX_UNIT_BYTES", 30)
    with pytest.raises(InvalidModel, match="'w'"):
        data_unit(payload=bytes(30))


def test_long_units_and_short_units_with_a_long_size() -> None:
    long_unit = data_unit("long", bytes(40000))
    short_unit = b"\x80\x00" + (len(MPS) + 2).to_bytes(2, "big") + MPS[2:]
    parsed = parse(START + short_unit + long_unit)
    assert len(parsed[2].payload) == 40000
    assert parsed[1].record == nnr.ModelParameterSet()
    assert parsed[1].unit.size == 10


class OneByteAtATime(io.RawIOBase):
    """A pipe that gives a byte per read and notes how many were taken."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.source = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.source.read(min(size, 1))


def test_every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "stream.nnr"
    path.write_bytes(STREAM)
    expected = [bytes(u.data) for u in nnr.read_units(STREAM)]
    assert b"".join(expected) == STREAM
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert [bytes(u.data) for u in nnr.read_units(mapped)] == expected
        assert [bytes(u.data) for u in nnr.read_units(file)] == expected
    for source in (bytearray(STREAM), memoryview(STREAM), OneByteAtATime(STREAM)):
        units = list(nnr.read_units(source))
        assert [bytes(u.data) for u in units] == expected
        assert [u.byte_offset for u in units] == [0, 4, 12, 18, 18 + units[3].size]
        assert all(u.data.readonly for u in units)


def test_a_pipe_is_not_read_ahead() -> None:
    source = OneByteAtATime(STREAM)
    units = nnr.read_units(source)
    taken = 0
    for unit in units:
        taken += unit.size
        assert source.source.tell() == taken


def test_an_operating_system_pipe() -> None:
    read_end, write_end = os.pipe()

    def feed() -> None:
        with os.fdopen(write_end, "wb") as sink:
            sink.write(STREAM)

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(read_end, "rb", buffering=0) as source:
        assert [p.unit.index for p in nnr.parse_units(source)] == [0, 1, 2, 3, 4]
    thread.join()


def test_a_lying_size_allocates_little() -> None:
    lie = START + b"\xff\xff\xff\xff" + bytes(1000)
    tracemalloc.start()
    try:
        with pytest.raises(TruncatedBitstream, match="2147483647"):
            list(nnr.read_units(OneByteAtATime(lie)))
        with pytest.raises(TruncatedBitstream):
            list(nnr.read_units(io.BytesIO(lie)))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("as_file", [False, True])
def test_cut_off_streams(as_file: bool) -> None:
    ends = {0}
    for unit in nnr.read_units(STREAM):
        ends.add(unit.byte_offset + unit.size)
    for length in range(len(STREAM)):
        data = STREAM[:length]
        source = io.BytesIO(data) if as_file else data
        if length in ends - {0}:
            assert list(nnr.parse_units(source))
        else:
            with pytest.raises(TruncatedBitstream):
                list(nnr.parse_units(source))


@pytest.mark.parametrize("data", [b"\0\0", b"\0\2", b"\0\1\0", b"\x80\0\0\4\0\0", b"\x80\0\0\0"])
def test_sizes_without_room_for_a_header(data: bytes) -> None:
    with pytest.raises(InvalidBitstream, match="no room"):
        list(nnr.read_units(data))


def test_no_room_for_the_partial_data_counter() -> None:
    with pytest.raises(TruncatedBitstream):
        list(nnr.read_units(b"\0\3\x17"))


PRIVATE = nnr.write_unit(40, b"anything")
LPS = nnr.write_record(nnr.LayerParameterSet(lps_qp_density=3, lps_quantization_parameter=-7))


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (MPS + START, "first"),
        (START + LPS + MPS, "before the NNR_MPS"),
        (PRIVATE + START, "first"),
        (START + START, "first"),
        (START + data_unit(), "before the NNR_MPS"),
        (START + MPS + MPS, "second NNR_MPS"),
        (START + nnr.write_unit(7, b""), "reserved"),
        (START + nnr.write_unit(31, b""), "reserved"),
        (STREAM + data_unit("a"), "'a' is in the bitstream already"),
        (START + MPS + data_unit(payload_type=nnr.PayloadType.RAW_FLOAT), "4 raw floats in 2"),
        (nnr.write_unit(0, b"\0\0"), "too many"),
        (START + nnr.write_unit(1, MPS[3:], b"\0"), "too many"),
        (START + nnr.write_unit(3, b"\0\0\0\0"), "too many"),
        (START + nnr.write_unit(4, b"\0\0\0\0"), "too many"),
    ],
)
def test_invalid_streams(stream: bytes, reason: str) -> None:
    with pytest.raises(InvalidBitstream, match=reason) as caught:
        parse(stream)
    assert not isinstance(caught.value, TruncatedBitstream)


@pytest.mark.parametrize(
    ("stream", "element"),
    [
        (nnr.write_unit(0, b"\2"), "general_profile_idc"),
        (START + nnr.write_unit(6, b""), "nnr_unit_type"),
        (START + b"\0\4\x07\0", "partial_data_counter_present_flag"),
        (START + MPS + data_unit(tensor_dimensions=None), "count_tensor_dimensions"),
        (START + MPS + data_unit(tensor_dimensions=[]), "count_tensor_dimensions"),
    ],
)
def test_unsupported_streams(stream: bytes, element: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        parse(stream)
    assert caught.value.element == element


def test_limits() -> None:
    with pytest.raises(LimitExceeded, match="max_units"):
        parse(STREAM, DecodeLimits(max_units=4))
    assert len(parse(STREAM, DecodeLimits(max_units=5))) == 5
    with pytest.raises(LimitExceeded, match="max_unit_bytes"):
        parse(STREAM, DecodeLimits(max_unit_bytes=7))


def test_indices_point_into_the_reference_list() -> None:
    mps = nnr.ModelParameterSet(mps_topology_indexed_reference_flag=1)
    names = nnr.Topology(nnr.TopologyFormat.REFLIST, names=["a", "b", "c"])
    head = START + nnr.write_record(mps)

    def unit(index: int) -> bytes:
        record = nnr.DataUnit(indices=[index], tensor_dimensions=[4])
        return nnr.write_data_unit(record, b"", nnr.Context(0, mps))

    stream = head + nnr.write_record(names) + unit(2)
    assert parse(stream)[-1].record.names == ["c"]
    assert parse(stream + unit(0))[-1].record.names == ["a"]
    with pytest.raises(InvalidBitstream, match="already"):
        parse(stream + unit(2))
    for damaged in (stream + unit(3), head + unit(0)):
        with pytest.raises(InvalidBitstream, match="reference list"):
            parse(damaged)


def test_factors_have_one_stem() -> None:
    record = nnr.DataUnit(
        nnr.PayloadType.BLOCK,
        ["x_G", "y_H"],
        compressed_parameter_types=nnr.ParameterTypes.DC,
        decomposition_rank=1,
        g_number_of_rows=2,
        tensor_dimensions=[2, 2],
    )
    mps = nnr.ModelParameterSet()
    with pytest.raises(InvalidBitstream, match="factors"):
        parse(START + nnr.write_record(mps) + nnr.write_data_unit(record, b"", nnr.Context(0, mps)))


def test_quantization_must_be_known() -> None:
    silent = nnr.write_record(nnr.ModelParameterSet(mps_quantization_method_flags=0))
    with pytest.raises(InvalidBitstream, match="quantization parameter"):
        parse(START + silent + data_unit())
    assert parse(START + silent + LPS + data_unit())[-1].context.quantization == (3, -7)
    raw = data_unit(payload_type=nnr.PayloadType.RAW_FLOAT, payload=bytes(16))
    assert len(parse(START + silent + raw)) == 3
    integer = data_unit(payload_type=nnr.PayloadType.INT)
    assert len(parse(START + silent + integer)) == 3


def test_private_and_other_units_are_carried() -> None:
    data = nnr.write_record(nnr.QuantizationData(quantization_data="x"))
    parsed = parse(START + PRIVATE + MPS + LPS + data + data_unit())
    assert parsed[1].record is None
    assert parsed[1].payload == b"anything"
    assert parsed[1].unit.label == "unit 1 (private 40)"
    assert [e.name for e in parsed[1].elements()][-1] == "partial_data_counter_present_flag"
    assert parsed[3].context.lps is None
    assert parsed[4].record == nnr.QuantizationData(quantization_data="x")
    assert parsed[-1].context.quantization == (3, -7)


def test_errors_say_where() -> None:
    with pytest.raises(BitstreamError) as caught:
        parse(STREAM + b"\x00\x05\x16\xff\xff")
    assert isinstance(caught.value, InvalidBitstream)
    assert caught.value.unit == "unit 5 (NNR_NDU)"
    assert len(STREAM) <= caught.value.byte_offset <= len(STREAM) + 5


@given(st.binary(max_size=60), st.integers(0, 6))
def test_any_bytes(tail: bytes, unit_type: int) -> None:
    for stream in (tail, START + MPS + tail, START + MPS + nnr.write_unit(unit_type, tail)):
        try:
            for parsed in nnr.parse_units(stream):
                parsed.elements()
        except BitstreamError:
            pass


@given(st.integers(0, len(STREAM) - 1), st.integers(1, 255))
def test_damaged_bytes(position: int, change: int) -> None:
    data = bytearray(STREAM)
    data[position] ^= change
    with contextlib.suppress(BitstreamError):
        parse(bytes(data))


@pytest.mark.skipif(not VECTORS, reason="the peer's vectors are not here (see NNR_SHARED)")
def test_the_peers_units_written_again() -> None:
    data_units = 0
    for path in VECTORS:
        for parsed in nnr.parse_units(path.read_bytes()):
            record, unit, context = parsed.record, parsed.unit, parsed.context
            if isinstance(record, nnr.DataUnit):
                again = nnr.write_data_unit(record, parsed.payload, context)
            else:
                again = nnr.write_record(record, context.profile)
            assert again == bytes(unit.data), (path.name, unit.label)
            data_units += isinstance(record, nnr.DataUnit)
    assert data_units > 400


def test_parsed_units_free_their_bytes() -> None:
    """No reference cycles: the buffer can be resized as soon as the units are gone."""
    data = bytearray(STREAM)
    for parsed in nnr.parse_units(data):
        parsed.elements()
    del parsed
    data.append(0)


class TestHeadersFirst:
    """What must not come is refused before it is read, and so kept in memory."""

    def read(self, stream: bytes) -> int:
        """Parse a stream that goes on without an end; return how far it was read."""

        class Endless(io.RawIOBase):
            position = 0

            def read(self, size: int = -1) -> bytes:
                data = stream[self.position : self.position + size].ljust(size, b"x")
                self.position += size
                assert self.position < 2**16
                return data

        file = Endless()
        with pytest.raises(BitstreamError):
            list(nnr.parse_units(file))
        return file.position

    @pytest.mark.parametrize("text", [b"y\ny\n", b'{"a": 1', b"PK\3\4", b"\xff" * 8, b"\x80\0zz"])
    def test_other_data(self, text: bytes) -> None:
        assert self.read(text) <= 6

    @pytest.mark.parametrize("first", [UnitType.NNR_MPS, UnitType.NNR_NDU, 9, 40])
    def test_a_first_unit_of_another_type(self, first: int) -> None:
        assert self.read(bytes([0xFF, 0xFF, 0xFF, 0xFF, first << 2])) <= 6

    def test_a_start_unit_that_is_too_long(self) -> None:
        assert self.read(bytes([0xFF, 0xFF, 0xFF, 0xFF, UnitType.NNR_STR << 2])) <= 6

    def test_units_out_of_order(self) -> None:
        start = nnr.write_record(nnr.StartUnit())
        mps = nnr.write_record(nnr.ModelParameterSet())
        for units, kind in (
            (start, UnitType.NNR_NDU),
            (start, UnitType.NNR_STR),
            (start + mps, UnitType.NNR_MPS),
            (start + mps, 9),
        ):
            head = units + bytes([0xFF, 0xFF, 0xFF, 0xFF, kind << 2])
            assert self.read(head) <= len(head) + 1


class TestHeaderLimits:
    """Headers are kept as objects that take many times their bytes: all of them have limits."""

    def parse(self, units: list[bytes], **limits: int) -> None:
        start = nnr.write_record(nnr.StartUnit()) + nnr.write_record(nnr.ModelParameterSet())
        list(nnr.parse_units(start + b"".join(units), DecodeLimits(**limits)))

    def unit(self, name: str, **more: Any) -> bytes:
        record = nnr.DataUnit(names=[name], tensor_dimensions=[2, 3], **more)
        return nnr.write_data_unit(record, b"x", nnr.Context(0, nnr.ModelParameterSet()))

    def test_units_and_what_is_in_them(self) -> None:
        plain = [self.unit(f"{index}") for index in range(100)]
        self.parse(plain, max_header_entries=102 * 16 + 300)
        with pytest.raises(LimitExceeded, match="max_header_entries"):
            self.parse(plain, max_header_entries=102 * 16 + 299)
        book = nnr.Codebook(values=list(range(1000)))
        books = [self.unit(f"{index}", codebooks=[book]) for index in range(5)]
        self.parse(books, max_header_entries=7 * 16 + 5 * 1003)
        with pytest.raises(LimitExceeded, match="max_header_entries"):
            self.parse(books, max_header_entries=7 * 16 + 5 * 1003 - 1)

    def test_texts_together(self) -> None:
        units = [
            nnr.write_record(nnr.Topology(topology_data="t" * 60)),
            nnr.write_record(nnr.QuantizationData(quantization_data="q" * 40)),
        ]
        self.parse(units, max_topology_bytes=100)
        with pytest.raises(LimitExceeded, match="max_topology_bytes"):
            self.parse(units, max_topology_bytes=99)

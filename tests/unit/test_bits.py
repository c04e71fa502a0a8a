"""The bit reader and writer against each other, and every refusal of the reader."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnr_codec.bitstream.bits import BitReader, BitWriter
from nnr_codec.errors import InvalidBitstream, InvalidModel, LimitExceeded, TruncatedBitstream

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@st.composite
def fields(draw: st.DrawFn) -> tuple[str, int, object]:
    """A descriptor kind, its argument and a value that it can hold."""
    kind = draw(st.sampled_from(["u", "i", "ue", "ie", "flt", "octets"]))
    if kind == "u":
        bits = draw(st.integers(0, 512))
        return kind, bits, draw(st.integers(0, 2**bits - 1))
    if kind == "i":
        bits = draw(st.integers(1, 64))
        return kind, bits, draw(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    if kind == "ue":
        order = draw(st.integers(0, 15))
        return kind, order, draw(st.integers(0, 2**32 - 1 - 2**order))
    if kind == "ie":
        order = draw(st.integers(0, 15))
        return kind, order, draw(st.integers(-(2**30), 2**30))
    if kind == "flt":
        return kind, 32, draw(st.floats(width=32, allow_nan=False))
    return kind, 256, draw(st.binary(min_size=32, max_size=32))


@given(st.lists(fields(), max_size=60))
def test_what_is_written_is_read(items: list[tuple[str, int, object]]) -> None:
    writer = BitWriter()
    for kind, size, value in items:
        getattr(writer, kind)(size, value)
    bits = writer.position
    writer.align()
    reader = BitReader(writer.to_bytes())
    for kind, size, value in items:
        assert getattr(reader, kind)(size) == value
    assert reader.position == bits
    reader.align()
    assert reader.bits_left == 0


@given(st.lists(st.one_of(NAMES, st.binary(max_size=3000)), max_size=10))
def test_strings_and_bytes(items: list[str | bytes]) -> None:
    writer = BitWriter()
    for item in items:
        writer.st(item) if isinstance(item, str) else writer.raw(item)
    reader = BitReader(writer.to_bytes())
    for item in items:
        read = reader.st(80) if isinstance(item, str) else reader.raw(len(item))
        assert read == item
    assert reader.bits_left == 0


def slow_ue(bits: str, order: int) -> tuple[int, int]:
    """spec/bitstream.md, "Notation", word for word: the value and the bits used."""
    position, value = 0, 0
    while bits[position] == "0":
        value += 1 << order
        order += 1
        position += 1
    position += 1
    suffix = bits[position : position + order]
    return value + (int(suffix, 2) if suffix else 0), position + order


@given(st.integers(0, 20), st.integers(0, 15), st.integers(0, 2**64 - 1))
def test_ue_is_the_definition(zeros: int, order: int, tail: int) -> None:
    zeros = min(zeros, 31 - order)
    bits = "0" * zeros + "1" + f"{tail:064b}"
    value, used = slow_ue(bits, order)
    reader = BitReader(int(bits.ljust(96, "0"), 2).to_bytes(12, "big"))
    assert reader.ue(order) == value
    assert reader.position == used


@pytest.mark.parametrize(
    ("bits", "order", "value"),
    [("1", 0, 0), ("010", 0, 1), ("011", 0, 2), ("00100", 0, 3), ("10", 1, 0), ("11", 1, 1)],
)
def test_ue_by_hand(bits: str, order: int, value: int) -> None:
    writer = BitWriter()
    writer.ue(order, value)
    assert writer.to_bytes() == int(bits.ljust(8, "0"), 2).to_bytes(1, "big")
    assert writer.position == len(bits)


@pytest.mark.parametrize(("value", "code"), [(0, 0), (1, 1), (-1, 2), (2, 3), (-2, 4)])
def test_ie_maps_to_ue(value: int, code: int) -> None:
    signed, unsigned = BitWriter(), BitWriter()
    signed.ie(2, value)
    unsigned.ue(2, code)
    assert signed.to_bytes() == unsigned.to_bytes()


def test_flt_is_little_endian_and_need_not_be_aligned() -> None:
    writer = BitWriter()
    writer.u(3, 5)
    writer.flt(32, 1.5)
    writer.u(5, 0)
    number = int.from_bytes(writer.to_bytes(), "big") >> 5
    assert (number & (2**32 - 1)).to_bytes(4, "big") == struct.pack("<f", 1.5)


def test_nan_and_infinity() -> None:
    writer = BitWriter()
    for value in (math.nan, math.inf, -math.inf):
        writer.flt(32, value)
    reader = BitReader(writer.to_bytes())
    assert math.isnan(reader.flt())
    assert [reader.flt(), reader.flt()] == [math.inf, -math.inf]


@pytest.mark.parametrize("order", [0, 1, 7, 15])
def test_ue_limits(order: int) -> None:
    largest = 2**32 - 1 - 2**order
    writer = BitWriter()
    writer.ue(order, largest)
    assert BitReader(writer.to_bytes()).ue(order) == largest
    with pytest.raises(ValueError, match="no ue"):
        BitWriter().ue(order, largest + 1)
    too_long = (1 << (100 - (32 - order) - 1)).to_bytes(13, "big")
    with pytest.raises(InvalidBitstream, match="zeros"):
        BitReader(b"\0" * 4 + too_long).ue(order)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0\x01"])
def test_ue_cut_off(data: bytes) -> None:
    with pytest.raises(TruncatedBitstream) as caught:
        BitReader(data, "unit 7", 100).ue(0)
    assert caught.value.unit == "unit 7"
    assert caught.value.byte_offset >= 100


@pytest.mark.parametrize(("kind", "size"), [("u", 9), ("i", 9), ("flt", 32), ("octets", 256)])
def test_reads_stop_at_the_end(kind: str, size: int) -> None:
    reader = BitReader(b"\xff")
    with pytest.raises(TruncatedBitstream):
        getattr(reader, kind)(size)
    assert reader.u(8) == 255


def test_raw_stops_at_the_end() -> None:
    with pytest.raises(TruncatedBitstream):
        BitReader(b"abc").raw(4)


@pytest.mark.parametrize("position", range(8))
def test_align_checks_its_pattern(position: int) -> None:
    width = 8 - position
    good = 1 << (width - 1)
    for pattern in range(1 << width):
        reader = BitReader(bytes([pattern, 0xA5]))
        reader.u(position)
        if pattern == good:
            reader.align()
            assert reader.u(8) == 0xA5
        else:
            with pytest.raises(InvalidBitstream, match="alignment"):
                reader.align()


def test_align_cut_off() -> None:
    with pytest.raises(TruncatedBitstream):
        BitReader(b"").align()


def test_string_refusals() -> None:
    assert BitReader(b"abc\0").st(3) == "abc"
    with pytest.raises(LimitExceeded) as caught:
        BitReader(b"abcd\0").st(3)
    assert (caught.value.limit, caught.value.allowed) == ("max_name_bytes", 3)
    with pytest.raises(TruncatedBitstream, match="zero byte"):
        BitReader(b"abc").st(3)
    for data in (b"\xff\0", b"\xed\xa0\x80\0", b"\xc0\x80\0"):
        with pytest.raises(InvalidBitstream, match="UTF-8"):
            BitReader(data).st(9)
    reader = BitReader(b"abc\0")
    reader.u(1)
    with pytest.raises(InvalidBitstream, match="boundary"):
        reader.st(3)


def test_writer_refusals() -> None:
    for kind, size, value in [("u", 3, 8), ("u", 3, -1), ("i", 3, 4), ("i", 3, -5), ("ue", 0, -1)]:
        with pytest.raises(ValueError, match=str(value)):
            getattr(BitWriter(), kind)(size, value)
    with pytest.raises(ValueError, match="binary32"):
        BitWriter().flt(32, 1e39)
    with pytest.raises(ValueError, match="bytes expected"):
        BitWriter().octets(256, b"short")
    for name in ("a\0b", "\ud800"):
        with pytest.raises(InvalidModel):
            BitWriter().st(name)
    writer = BitWriter()
    writer.u(1, 1)
    with pytest.raises(ValueError, match="boundary"):
        writer.st("a")


def test_numbers_across_windows() -> None:
    writer = BitWriter()
    for value in range(5000):
        writer.ue(0, value)
    reader = BitReader(b"skip" + writer.to_bytes(), start=4)
    assert [reader.ue(0) for _ in range(5000)] == list(range(5000))
    assert reader.bytes_read == 4 + len(writer.to_bytes())

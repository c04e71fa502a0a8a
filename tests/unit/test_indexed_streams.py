"""Streams with a table of contents: what of them is read, and what damage is noticed."""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factored_streams_support import mixture

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.bitstream import Topology, parse_units, read_units, write_record
from nnr_codec.bitstream.indexing import _indexed_head
from nnr_codec.bitstream.lazy_bytes import loaded
from nnr_codec.factorization.forms import LowRank
from nnr_codec.factorization.unit_index import IndexedUnit, UnitIndex, short_digest

LAYERS = 6
INDEXED = EncodeOptions(index=True)


def model() -> dict[str, Any]:
    """Layers of a weight and a bias, which go in one unit, and integers by themselves."""
    rng = np.random.default_rng(3)
    layers: dict[str, Any] = {"counter": np.arange(40)}
    for layer in range(LAYERS):
        layers[f"{layer}.weight"] = rng.standard_normal((32, 32)).astype(np.float32)
        layers[f"{layer}.bias"] = rng.standard_normal(32).astype(np.float32)
    return layers


STREAM = nnr_codec.encode(model(), options=INDEXED).data or b""


class Ranges:
    """Bytes that tell which of them were looked at."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.expected: list[tuple[int, int]] = []
        self.seen = np.zeros(len(data), bool)

    def view(self, start: int, stop: int) -> memoryview:
        assert 0 <= start <= stop <= self.size
        self.seen[start:stop] = True
        return memoryview(self._data)[start:stop]

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        self.expected += ranges


def units_of(data: bytes) -> list[Any]:
    return list(parse_units(data))


def equal(first: dict[str, Any], second: Any) -> bool:
    return list(first) == list(second) and all(
        np.array_equal(values, second[name]) for name, values in first.items()
    )


class TestReading:
    def test_the_tensors_are_those_of_a_stream_without(self) -> None:
        plain = nnr_codec.encode(model()).data
        assert equal(nnr_codec.decode(plain), nnr_codec.decode(STREAM))

    def test_a_report_counts_it(self) -> None:
        result = nnr_codec.encode(model(), options=INDEXED)
        assert result.report.bytes == len(STREAM)
        plain = nnr_codec.encode(model()).report
        units = len(units_of(STREAM)) - 3
        assert 0 < result.report.header_bytes - plain.header_bytes <= 40 * units + 60

    def test_a_target_size_holds_with_it(self) -> None:
        allowed = len(STREAM) * 3 // 4
        result = nnr_codec.encode(model(), options=replace(INDEXED, target_size=allowed))
        assert 0.9 * allowed < len(result.data or b"") <= allowed

    def test_of_ranges_only_the_units_that_are_needed_are_looked_at(self) -> None:
        source = Ranges(STREAM)
        tensors = nnr_codec.decode(source, only="3.*")
        assert equal(tensors, {n: v for n, v in nnr_codec.decode(STREAM).items() if n[:2] == "3."})
        head, needed, others = 0, 0, 0
        for parsed in units_of(STREAM):
            start, stop = parsed.unit.byte_offset, parsed.unit.byte_offset + parsed.unit.size
            names = getattr(parsed.record, "names", [])
            if parsed.unit.index < 3:
                head += 1
            elif "3.weight" in names:
                assert source.seen[start:stop].all()
                assert source.expected == [(start, stop)]
                needed += 1
            else:
                assert not source.seen[start:stop].any()
                others += 1
        assert (head, needed, others) == (3, 1, LAYERS)

    def test_an_open_stream_looks_at_a_unit_when_it_is_read(self) -> None:
        source = Ranges(STREAM)
        stream = nnr_codec.open(source)
        assert list(stream) == list(model())
        before = int(source.seen.sum())
        assert before < 600
        assert np.array_equal(stream["4.weight"], nnr_codec.decode(STREAM)["4.weight"])
        assert int(source.seen.sum()) - before < 1.1 * len(STREAM) / LAYERS
        assert equal(nnr_codec.decode(STREAM), stream)

    def test_an_open_stream_is_described_like_a_file(self) -> None:
        with nnr_codec.open(Ranges(STREAM)) as remote, nnr_codec.open(STREAM) as stream:
            assert remote.info() == stream.info()
            assert [u.unit.label for u in remote.units()] == [u.unit.label for u in stream.units()]

    def test_ranges_of_a_stream_without_a_table(self) -> None:
        plain = nnr_codec.encode(model()).data or b""
        source = Ranges(plain)
        assert equal(nnr_codec.decode(plain), nnr_codec.open(source))
        assert equal(nnr_codec.decode(plain), nnr_codec.decode(source))
        with nnr_codec.open(source) as remote, nnr_codec.open(plain) as stream:
            assert remote.info() == stream.info()

    @pytest.mark.parametrize("layers", ["dense", "factorized"])
    @pytest.mark.parametrize("carriage", ["dc", "factors"])
    def test_factors(self, layers: Any, carriage: Any) -> None:
        rng = np.random.default_rng(5)
        left, right = (rng.standard_normal(shape).astype("f4") for shape in ((32, 3), (3, 32)))
        weight = LowRank((32, 32), (left, right))
        options = replace(INDEXED, decomposition=replace(INDEXED.decomposition, carriage=carriage))
        dense = {**model(), "2.weight": weight.to_dense()}
        data = nnr_codec.encode(dense, options=options, factorizations={"2.weight": weight}).data
        expected = nnr_codec.decode(data, layers=layers)
        assert equal(expected, nnr_codec.open(Ranges(data), layers=layers))
        assert equal(expected, nnr_codec.decode(Ranges(data), layers=layers))
        only = nnr_codec.decode(Ranges(data), layers=layers, only="2.weight*")
        assert equal(nnr_codec.decode(data, layers=layers, only="2.weight*"), only)
        assert nnr_codec.open(Ranges(data)).factorizations == nnr_codec.open(data).factorizations

    def test_all_forms(self) -> None:
        dense, factors = mixture()
        data = nnr_codec.encode(dense, options=INDEXED, factorizations=factors).data
        assert equal(nnr_codec.decode(data), nnr_codec.open(Ranges(data)))

    @pytest.mark.parametrize("profile", [0, 1])
    def test_profiles(self, profile: Any) -> None:
        data = nnr_codec.encode(model(), options=replace(INDEXED, profile=profile)).data
        assert equal(nnr_codec.decode(data), nnr_codec.open(Ranges(data)))

    def test_names_may_be_compressed_otherwise(self) -> None:
        text = units_of(STREAM)[2].context.model_map.index.to_text()
        data = base64.b64decode(text)
        start = 20 + 20 * (len(units_of(STREAM)) - 3)
        names = zlib.decompress(data[start:])
        stored = zlib.compress(names, 0)
        assert len(stored) != len(data) - start
        other = base64.b64encode(data[:start] + stored).decode()
        units = list(read_units(STREAM))
        head = b"".join(bytes(unit.data) for unit in units[:2])
        topology = list(parse_units(STREAM))[2].record.topology_data.replace(text, other)
        tail = write_record(Topology(topology_data=topology))
        before, _, behind = (head + tail).rpartition(other.encode())
        right = base64.b64encode(short_digest(before, behind) + data[16:start] + stored).decode()
        tail = write_record(Topology(topology_data=topology.replace(other, right)))
        stream = head + tail + STREAM[units[3].byte_offset :]
        assert equal(nnr_codec.decode(stream), nnr_codec.decode(STREAM))


class TestDamage:
    def test_every_flipped_bit_is_noticed(self) -> None:
        rng = random.Random(1)
        behind = rng.sample(range(700, len(STREAM)), 60)
        for position in [*range(0, 700, 3), *behind]:
            data = bytearray(STREAM)
            data[position] ^= 1 << rng.randrange(8)
            with pytest.raises(nnr_codec.BitstreamError):
                nnr_codec.decode(bytes(data))

    @pytest.mark.parametrize("end", [*range(0, 700, 41), len(STREAM) // 2, len(STREAM) - 1])
    def test_every_truncation_is_noticed(self, end: int) -> None:
        for read in (nnr_codec.decode, lambda data: dict(nnr_codec.open(Ranges(data)))):
            with pytest.raises(nnr_codec.BitstreamError):
                read(STREAM[:end])

    def test_whole_units_that_are_missing_at_the_end(self) -> None:
        end = units_of(STREAM)[-1].unit.byte_offset
        with pytest.raises(nnr_codec.TruncatedBitstream, match="1 units of index are missing"):
            nnr_codec.decode(STREAM[:end])

    def test_a_unit_too_many(self) -> None:
        with pytest.raises(nnr_codec.InvalidBitstream, match="not this one"):
            nnr_codec.decode(STREAM + bytes.fromhex("00 04 a0 00"))

    def test_a_payload_shows_when_its_tensor_is_read(self) -> None:
        data = bytearray(STREAM)
        data[-1] ^= 1
        for source in (bytes(data), Ranges(bytes(data))):
            stream = nnr_codec.open(source)
            assert stream["0.weight"].shape == (32, 32)
            with pytest.raises(nnr_codec.InvalidBitstream, match=r"unit 9 .* damaged"):
                stream[f"{LAYERS - 1}.weight"]

    def test_a_unit_of_another_file(self) -> None:
        """All is right with it, but that it is not the one that was written."""
        other = {name: values[..., ::-1] for name, values in model().items()}
        other_units = units_of(nnr_codec.encode(other, options=INDEXED).data)
        data = b"".join(
            bytes(loaded((theirs if theirs.unit.index == 5 else ours).unit.data))
            for ours, theirs in zip(units_of(STREAM), other_units, strict=True)
        )
        with pytest.raises(nnr_codec.BitstreamError, match="unit 5"):
            nnr_codec.decode(data)


def with_table(change: Callable[[list[IndexedUnit]], object]) -> bytes:
    """The stream, with a table that is right but for what was changed, and its head's digest."""
    parsed = units_of(STREAM)
    model_map = parsed[2].context.model_map
    entries = list(model_map.index.units)
    change(entries)
    start = b"".join(unit.data for unit in list(read_units(STREAM))[:2])
    head = _indexed_head(start, replace(model_map, index=None), 0, tuple(entries))
    return head + STREAM[parsed[3].unit.byte_offset :]


def swapped(entries: list[IndexedUnit]) -> None:
    entries[1], entries[2] = entries[2], entries[1]


def renamed(entries: list[IndexedUnit]) -> None:
    names = tuple(pair._replace(name="x" + pair.name) for pair in entries[3].tensors)
    entries[3] = replace(entries[3], tensors=names)


def hidden(entries: list[IndexedUnit]) -> None:
    entries[3] = replace(entries[3], tensors=())


def longer(entries: list[IndexedUnit]) -> None:
    entries[3] = replace(entries[3], size=entries[3].size + 1)


def twice(entries: list[IndexedUnit]) -> None:
    entries[3] = replace(entries[3], tensors=entries[2].tensors)


def too_long(entries: list[IndexedUnit]) -> None:
    entries[-1] = replace(entries[-1], size=(1 << 32) - 1)


def another_digest(entries: list[IndexedUnit]) -> None:
    entries[3] = replace(entries[3], digest=short_digest(b""))


CHANGES = [swapped, renamed, hidden, longer, twice, too_long, another_digest]


class TestWrongTables:
    def test_the_tests_make_right_ones(self) -> None:
        assert with_table(lambda entries: None) == STREAM

    @pytest.mark.parametrize("change", CHANGES)
    def test_they_are_refused(self, change: Callable[[list[IndexedUnit]], object]) -> None:
        data = with_table(change)
        with pytest.raises(nnr_codec.InvalidBitstream, match="index"):
            nnr_codec.decode(data)
        with pytest.raises(nnr_codec.BitstreamError):
            dict(nnr_codec.open(Ranges(data)))

    def test_a_table_that_is_not_the_last_key(self) -> None:
        stream = nnr_codec.encode({"a": np.ones(3, bool)}, options=INDEXED).data or b""
        text = units_of(stream)[2].record.topology_data
        tensors, _, index = text.removeprefix('{"nnr_model_map":2,').partition(',"index"')
        moved = '{"nnr_model_map":2,"index"' + index[:-1] + "," + tensors + "}"
        data = stream.replace(text.encode(), moved.encode())
        assert len(data) == len(stream)
        with pytest.raises(nnr_codec.InvalidBitstream, match="not the last of its keys"):
            nnr_codec.decode(data)

    def test_a_table_of_no_units(self) -> None:
        index = UnitIndex(short_digest(b""), ())
        data = STREAM.replace(
            units_of(STREAM)[2].context.model_map.index.to_text().encode(), index.to_text().encode()
        )
        with pytest.raises(nnr_codec.BitstreamError):
            nnr_codec.decode(data)

    def test_names_that_another_encoder_deflated(self) -> None:
        """The same names in other bytes: zlib's first two say how hard it tried."""
        text = units_of(STREAM)[2].context.model_map.index.to_text()
        table = base64.b64decode(text)
        assert table.count(b"\x78\xda") == 1
        other = base64.b64encode(table.replace(b"\x78\xda", b"\x78\x01")).decode()
        data = STREAM.replace(text.encode(), other.encode())
        assert data != STREAM
        assert nnr_codec.decode(data).keys() == nnr_codec.decode(STREAM).keys()

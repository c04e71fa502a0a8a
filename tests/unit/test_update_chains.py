"""Long chains of updates whose contexts need each other: time, depth and memory of decoding."""

from __future__ import annotations

import hashlib
import inspect
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from updates_support import UNGROUPED, encoded, moved

import nnr_codec
from nnr_codec import DecodeLimits
from nnr_codec.bitstream import (
    Context,
    DataUnit,
    ModelParameterSet,
    NodeId,
    Parent,
    ParsedUnit,
    PayloadType,
    StartUnit,
    Topology,
    write_record,
)
from nnr_codec.bitstream.unit_layout import Integers, ParentData
from nnr_codec.decoding.stream_map import Selection
from nnr_codec.decoding.unit_decoder import DecodedTensor
from nnr_codec.decoding.updates import kept_tensors, unread_tensors
from nnr_codec.decoding.updates.base_model import opened_base
from nnr_codec.decoding.updates.open_stream import OpenStream
from nnr_codec.decoding.updates.stream_units import StreamUnits
from nnr_codec.decoding.updates.unread_tensors import UnreadTensors
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit
from nnr_codec.factorization.base_entry import BaseEntry
from nnr_codec.factorization.factorizations import Factorization
from nnr_codec.factorization.model_map import ModelMap

ELEMENTS = 12
_BIAS = 1 << 3  # of compressed_parameter_types
ALTERNATING = [[("a", "b"), ("c",)], [("b", "c"), ("a",)], [("c", "a"), ("b",)]]
"""Groups of successive streams: units of each need both units of the one before it. As tensors
change their shape from weight to bias and back, they come as a whole."""


class Chain:
    """Streams of which each is an update of those before it, and whose units have parents.

    Attributes:
        streams: oldest first.
        expected: the integers that all make together, by name, which are also the values.
    """

    def __init__(self, count: int, groups: Sequence[list[tuple[str, ...]]]) -> None:
        self.streams: list[bytes] = []
        self.expected = {
            name: np.zeros(ELEMENTS, np.int32) for group in groups[0] for name in group
        }
        self._numbers = {name: number for number, name in enumerate(self.expected)}
        self._earlier = {name: ParentData() for name in self.expected}
        self._is_whole = len(groups) > 1
        self._rng = np.random.default_rng(0)
        for place in range(count):
            self._add(groups[place % len(groups)])

    def _add(self, groups: list[tuple[str, ...]]) -> None:
        mps = ModelParameterSet(mps_qp_density=2, mps_parent_signalling_enabled_flag=1)
        text = ""
        if self.streams:
            digest = hashlib.sha256(self.streams[-1]).hexdigest()
            whole = tuple(self.expected) if self._is_whole else ()
            text = ModelMap(base=BaseEntry(digest, "0" * 64, whole)).to_text()
        records = StartUnit(1), mps, Topology(topology_data=text)
        data = b"".join(write_record(record, 1) for record in records)
        levels = {name: self._levels() for name in self.expected}
        for group in groups:
            data += self._unit(group, levels, Context(1, mps))
        for name, integers in levels.items():
            history = self._earlier[name].history
            nonzero = (integers != 0) | (False if history is None else history)
            self._earlier[name] = ParentData(integers, nonzero.astype(np.uint8))
            self.expected[name] = integers + (0 if self._is_whole else self.expected[name])
        self.streams.append(data)

    def _levels(self) -> Integers:
        levels: Integers = self._rng.integers(-3, 4, ELEMENTS).astype(np.int32)
        return levels

    def _unit(self, group: tuple[str, ...], levels: dict[str, Integers], context: Context) -> bytes:
        is_block = len(group) > 1
        record = DataUnit(
            PayloadType.BLOCK if is_block else PayloadType.FLOAT,
            list(group),
            tensor_dimensions=[ELEMENTS, 1] if is_block else [ELEMENTS],
            compressed_parameter_types=_BIAS if is_block else 0,
            node_id=NodeId(0, self._numbers[group[0]], len(self.streams)),
            parent=Parent(temporal_context_modeling_flag=1) if self.streams else None,
        )
        roles = dict(zip(record.name_roles(), group, strict=True))
        coded = {role: CodedLevels(levels[name], 0) for role, name in roles.items()}
        return encode_data_unit(record, coded, context, lambda name, _: self._earlier[name])


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[list[DecodedTensor]]:
    """What was decoded, unit by unit."""
    units: list[list[DecodedTensor]] = []
    decode = StreamUnits.decoded

    def counted(*arguments: Any, **options: Any) -> list[DecodedTensor]:
        units.append(decode(*arguments, **options))
        return units[-1]

    monkeypatch.setattr(StreamUnits, "decoded", counted)
    return units


@contextmanager
def few_frames(count: int) -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + count)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def test_units_that_need_each_other_are_decoded_once(decodings: list[Any]) -> None:
    chain = Chain(40, ALTERNATING)
    model = nnr_codec.open(chain.streams[-1], base=chain.streams[:-1])
    for name, integers in chain.expected.items():
        decodings.clear()
        assert np.array_equal(model[name].reshape(-1), integers)
        assert len(decodings) <= 2 * len(chain.streams)


def test_what_later_streams_need_is_decoded_once(decodings: list[Any]) -> None:
    chain = Chain(40, ALTERNATING)
    model = opened_base(chain.streams)
    series = model.series.loaded(["a"])
    assert len(decodings) <= 2 * len(chain.streams)
    data = series.parent_data("a", ELEMENTS, label="", offset=0)
    assert data.integers is not None
    assert np.array_equal(data.integers, chain.expected["a"])
    assert "b" not in series


def test_the_longest_chains_take_few_frames() -> None:
    chain = Chain(256, [[("a",)]])
    model = nnr_codec.open(chain.streams[-1], base=chain.streams[:-1])
    with few_frames(100):
        assert np.array_equal(model["a"], chain.expected["a"])


def test_tensors_of_a_unit_are_decoded_together(decodings: list[Any]) -> None:
    chain = Chain(5, [[("a", "b")]])
    found = {t.name: t.values for t in opened_base(chain.streams).tensors(Selection())}
    assert np.array_equal(found["b"], chain.expected["b"])
    assert np.array_equal(found["a"].reshape(-1), chain.expected["a"])
    assert len(decodings) == 5


def test_no_integers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"w": np.random.default_rng(0).normal(0, 0.1, (16, 16)).astype(np.float32)}
    base = encoded(model, UNGROUPED)
    update = encoded(moved(model, 0.2), UNGROUPED, base=[base])
    kept: list[Any] = []
    decode = StreamUnits.decoded

    def watched(*arguments: Any, **options: Any) -> list[DecodedTensor]:
        tensors = decode(*arguments, **options)
        kept.extend(weakref.ref(tensor.values) for tensor in tensors)
        kept.extend(weakref.ref(t.integers) for t in tensors if t.integers is not None)
        return tensors

    monkeypatch.setattr(StreamUnits, "decoded", watched)
    (tensor,) = opened_base([base, update]).tensors(Selection())
    assert tensor.values.shape == (16, 16)
    assert len(kept) >= 2
    assert not any(reference() is not None for reference in kept)


@pytest.mark.parametrize("is_old_known", [False, True])
def test_each_stage_of_encoding_decodes_the_base_once(
    is_old_known: bool, monkeypatch: pytest.MonkeyPatch, decodings: list[Any]
) -> None:
    monkeypatch.setattr(kept_tensors, "_KEPT_BYTES", 0)
    rng = np.random.default_rng(0)
    model = {name: rng.normal(0, 0.1, (20, 20)).astype(np.float32) for name in "abc"}
    base = encoded(model, UNGROUPED)
    decodings.clear()
    old = model if is_old_known else None
    nnr_codec.encode(moved(model, 0.2), options=UNGROUPED, base=[base], base_model=old)
    stages = ["digest", "comparison", "survey", "quantization, with contexts"]
    assert len(decodings) == len(stages) * len(model)


def products_of_products(count: int) -> list[bytes]:
    """Streams with two weights each, made of sums over those of the stream before: the number of
    tensors that they are made of grows as Fibonacci's numbers do."""
    streams: list[bytes] = []
    identity = np.eye(2, dtype=np.int32).reshape(-1)
    for place in range(count):
        a, b, new = f"a{max(place - 1, 0)}", f"b{max(place - 1, 0)}", f"new{place}"
        model_map, units = ModelMap(), {a: identity, b: identity}
        if streams:
            model_map = ModelMap(
                base=BaseEntry(hashlib.sha256(streams[-1]).hexdigest(), "0" * 64),
                factorizations={
                    f"a{place}": Factorization("lr", (2, 2), (a, b)),
                    f"b{place}": Factorization("lr", (2, 2), (a, new)),
                },
            )
            units = {a: 0 * identity, b: 0 * identity, new: identity}
        context = Context(0, ModelParameterSet())
        text = model_map.to_text() if model_map else ""
        records = StartUnit(), context.mps, Topology(topology_data=text)
        data = b"".join(write_record(record) for record in records if record is not None)
        for name, levels in units.items():
            record = DataUnit(PayloadType.FLOAT, [name], tensor_dimensions=[2, 2])
            data += encode_data_unit(record, {"weight": CodedLevels(levels, 0)}, context)
        streams.append(data)
    return streams


class TestUnreadTensors:
    @pytest.fixture
    def units(self) -> list[ParsedUnit]:
        data = Chain(3, [[("a",)]]).streams
        return [OpenStream(stream, DecodeLimits()).units[-1] for stream in data]

    def test_each_is_given_once(self, units: list[ParsedUnit]) -> None:
        unread = UnreadTensors()
        unread.put(units[0], [_tensor("a", 4), _tensor("b", 5)])
        values = unread.pop(units[0], "a")
        assert values is not None
        assert values.size == 4
        assert unread.pop(units[0], "a") is None
        assert unread.pop(units[1], "b") is None
        assert unread.pop(units[0], "b") is not None

    def test_the_oldest_make_room(
        self, units: list[ParsedUnit], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(unread_tensors, "_MOST_BYTES", 100)
        unread = UnreadTensors()
        for unit in units:
            unread.put(unit, [_tensor("a", 8), _tensor("b", 4)])  # 48 bytes
        assert unread.pop(units[0], "a") is None
        for unit in units[1:]:
            assert unread.pop(unit, "a") is not None
            assert unread.pop(unit, "b") is not None

    def test_of_large_units_the_small_tensors_stay(
        self, units: list[ParsedUnit], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(unread_tensors, "_MOST_BYTES", 100)
        unread = UnreadTensors()
        unread.put(units[0], [_tensor("large", 20), _tensor("small", 10)])
        assert unread.pop(units[0], "large") is None
        assert unread.pop(units[0], "small") is not None


def _tensor(name: str, size: int) -> DecodedTensor:
    return DecodedTensor(name, "weight", np.zeros(size, np.float32))

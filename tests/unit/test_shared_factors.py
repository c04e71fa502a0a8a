"""Factors of several weights in a stream: coded and decoded once, and freed."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
from factored_streams_support import CARRIAGES, FINE, mixture, random_factors, with_carriage

import nnr_codec
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.decoding.unit_decoder import decode_data_unit
from nnr_codec.factorization.forms import JointRight, LowRank


def test_factors_are_freed_with_the_last_weight_made_of_them() -> None:
    model, weights = mixture()
    options = with_carriage("factors")
    data = nnr_codec.encode(model, options=options, factorizations=weights).data or b""
    alive: list[weakref.ref[Any]] = []
    for tensor in StreamDecoder().tensors(data):
        if tensor.role == "dense" and tensor.name != "lr.weight":  # that one is tied
            alive.append(weakref.ref(tensor.values))
        del tensor
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 1  # the generator's own


class TestSharedFactorsOfOpenStreams:
    """Four weights of two that share a factor each, read one by one."""

    @pytest.fixture
    def data(self) -> bytes:
        pairs = {name: random_factors("joint_right", (6, 5, 3, 2), ord(name)) for name in "abcd"}
        for first, second in ("ac", "bd"):
            own, shared = pairs[second].factors[0], pairs[first].factors[1]
            pairs[second] = JointRight((6, 5, 3, 2), (own, shared))
        model = {name: weight.to_dense() for name, weight in pairs.items()}
        return nnr_codec.encode(model, options=FINE, factorizations=pairs).data or b""

    @pytest.fixture
    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """Counts how often each tensor is decoded."""
        counts: Counter[str] = Counter()

        def count(parsed: Any, *arguments: Any) -> Any:
            counts.update(parsed.record.names)
            return decode_data_unit(parsed, *arguments)

        monkeypatch.setattr("nnr_codec.decoding.lazy_tensors.decode_data_unit", count)
        return counts

    @pytest.mark.parametrize("order", ["abcd", "dcba", "acbd", "aabbacd", "ac"])
    def test_they_are_decoded_once(self, order: str, data: bytes, decoded: Counter[str]) -> None:
        expected = nnr_codec.decode(data)
        with nnr_codec.open(data) as stream:
            for name in order:
                assert np.array_equal(stream[name], expected[name])
        assert decoded["a.factor1"] == 1
        assert decoded["b.factor1"] == ("b" in order)
        assert decoded["a.factor0"] == order.count("a")

    def test_each_time_that_all_weights_are_read(self, data: bytes, decoded: Counter[str]) -> None:
        with nnr_codec.open(data) as stream:
            for _ in range(3):
                for name in stream:
                    stream[name]
        assert decoded["a.factor1"] == decoded["b.factor1"] == 3

    def test_they_go_with_the_last_weight(
        self, data: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alive: dict[str, weakref.ref[Any]] = {}

        def noted(*arguments: Any) -> Any:
            tensors = decode_data_unit(*arguments)
            alive.update((tensor.name, weakref.ref(tensor.values)) for tensor in tensors)
            return tensors

        monkeypatch.setattr("nnr_codec.decoding.lazy_tensors.decode_data_unit", noted)
        with nnr_codec.open(data) as stream:
            for order, shared in (("a", {"a.factor1"}), ("b", {"a.factor1", "b.factor1"})):
                stream[order]
                gc.collect()
                assert {name for name, ref in alive.items() if ref() is not None} == shared
            stream["d"]
            stream["c"]
            gc.collect()
            assert all(ref() is None for ref in alive.values())
            stream["a"]
        gc.collect()
        assert all(ref() is None for ref in alive.values())

    def test_those_of_weights_that_are_not_read_are_not_kept(
        self, data: bytes, decoded: Counter[str]
    ) -> None:
        with nnr_codec.open(data, layers="factorized") as stream:
            for name in [*stream, *stream]:
                stream[name]
        assert decoded["a.factor1"] == 2


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_weights_that_share_all_factors(carriage: Any) -> None:
    """Each brings one of its own, so that its place in the stream is told."""
    weight = random_factors("lr", (8, 6))
    again = LowRank(weight.shape, weight.factors)
    model = {name: weight.to_dense() for name in "abc"}
    data = nnr_codec.encode(
        model,
        options=with_carriage(carriage),
        factorizations={"a": weight, "b": again, "c": weight},
    ).data
    found = nnr_codec.decode(data)
    assert list(found) == ["a", "b", "c"]
    assert np.array_equal(found["a"], found["b"])
    assert np.array_equal(found["a"], found["c"])


@pytest.mark.parametrize("carriage", CARRIAGES)
@pytest.mark.parametrize("shared", [0, 1])
def test_low_rank_weights_that_share_a_factor(carriage: Any, shared: int) -> None:
    """A block's factors are no tensors that another weight could have: these are no blocks."""
    first, second, alone = (random_factors("lr", (8, 6), seed) for seed in range(3))
    factors = [first.factors[i] if i == shared else second.factors[i] for i in range(2)]
    weights = {"a": first, "b": LowRank((8, 6), tuple(factors)), "c": alone}
    model = {name: weight.to_dense() for name, weight in weights.items()}
    options = with_carriage(carriage, FINE)
    data = nnr_codec.encode(model, options=options, factorizations=weights).data
    found = nnr_codec.decode(data)
    for name, values in model.items():
        np.testing.assert_allclose(found[name], values, atol=1e-3)
    names = list(nnr_codec.decode(data, layers="factorized"))
    alone_names = ["c_G", "c_H"] if carriage == "dc" else ["c.factor0", "c.factor1"]
    assert names == ["a.factor0", "a.factor1", f"b.factor{1 - shared}", *alone_names]

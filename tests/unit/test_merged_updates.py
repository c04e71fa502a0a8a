"""How updates and their bases are put together: what stays, what is refused, what it may take."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from factored_streams_support import CARRIAGES, with_carriage
from updates_support import UNGROUPED, Arrays, encoded

import nnr_codec
from nnr_codec import DecodeLimits, InvalidBitstream, LimitExceeded
from nnr_codec.bitstream import Topology, read_units, write_record
from nnr_codec.decoding.updates.base_model import opened_base
from nnr_codec.factorization.forms import LowRank
from nnr_codec.model import Array
from nnr_codec.support.digest import digest


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def low_rank(shape: tuple[int, int], rank: int, seed: int = 0) -> LowRank:
    return LowRank(shape, (values(shape[0], rank, seed=seed), values(rank, shape[1], seed=seed)))


def entry_of(shape: list[int], *factors: str) -> dict[str, Any]:
    return {"form": "lr", "shape": shape, "factors": list(factors)}


def stream_of(arrays: Arrays, **entries: Any) -> bytes:
    """A stream of coded tensors, with a map of hand."""
    text = json.dumps({"nnr_model_map": 1, **entries}, separators=(",", ":"))
    start, parameters, _, *units = (bytes(u.data) for u in read_units(encoded(arrays, UNGROUPED)))
    return b"".join([start, parameters, write_record(Topology(topology_data=text)), *units])


def update_of(streams: list[bytes], arrays: Arrays, base: Any = None, **entries: Any) -> bytes:
    """An update of hand, of coded tensors and what its map says; `base`: more of its entry."""
    made = opened_base(streams)
    entry = {
        "stream": hashlib.sha256(streams[-1]).hexdigest(),
        "digest": digest((name, made.read(name)) for name in made.composition.tensors),
    }
    return stream_of(arrays, nnr_model_map=2, base={**entry, **(base or {})}, **entries)


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_a_weight_in_factors_is_removed(carriage: str) -> None:
    dense = {"w": low_rank((12, 9), 2).to_dense(), "v": values(4, 3)}
    streams = [encoded(dense, with_carriage(carriage), factorizations={"w": low_rank((12, 9), 2)})]
    for change in (0.1, 0.2):  # the second is an update of a base that has it no more
        streams.append(encoded({"v": dense["v"] + np.float32(change)}, base=streams))
    decoded = nnr_codec.decode(streams[-1], base=streams[:-1])
    assert list(decoded) == ["v"]
    assert np.abs(decoded["v"] - dense["v"] - 0.2).max() < 0.01


def test_a_removed_tensor_comes_back_as_it_is() -> None:
    old = {"w": values(16, 12), "v": values(16, 12, seed=1)}
    streams = [encoded(old)]
    streams.append(encoded({"w": old["w"]}, base=streams))
    by_hand = update_of(streams, {"v": old["v"]})
    own = nnr_codec.decode(encoded({"v": old["v"]}, UNGROUPED))["v"]
    assert np.array_equal(nnr_codec.decode(by_hand, base=streams)["v"], own)
    back = encoded({**old, "v": old["v"] + np.float32(0.001)}, base=streams)
    assert np.abs(nnr_codec.decode(back, base=streams)["v"] - old["v"]).max() < 0.01
    assert set(opened_base(streams).composition.pieces) == {"w"}


@pytest.mark.parametrize(("removes", "reason"), [(False, "not coded"), (True, "with a product")])
def test_factors_are_made_of_no_products(removes: bool, reason: str) -> None:
    """Else each layer would double what the last weight takes to decode."""

    def chained(index: int) -> dict[str, Any]:
        ties = [
            {"name": f"{side}{index + 1}", "after": f"W{index}", "tied_to": f"W{index}"}
            for side in "AB"
        ]
        factors = [f"{side}{index}" for side in "AB"]
        return {"factorizations": {f"W{index}": entry_of([2, 2], *factors)}, "extras": ties}

    first = {"A0": values(2, 2), "B0": values(2, 2)}
    streams = [stream_of(first, **chained(0))]
    removed = {"removed": ["A1", "B1"]} if removes else None
    second = {"A1": values(2, 2), "B1": values(2, 2)}
    update = update_of(streams, second, removed, **chained(1))
    with pytest.raises(InvalidBitstream, match=reason):
        nnr_codec.open(update, base=streams)


def test_a_factor_has_the_name_of_no_other_tensor() -> None:
    shape = [8, 6]
    arrays = {"w": values(8, 6), "x0": values(8, 2), "x1": values(2, 6), "q": values(6, 6)}
    tie = {"name": "tx", "after": "x", "tied_to": "x"}
    first = {"factorizations": {"x": entry_of(shape, "x0", "x1")}, "extras": [tie]}
    streams = [stream_of(arrays, **first)]
    factors = {"x": values(8, 6), "q": values(6, 6)}
    entries = {"factorizations": {"w": entry_of(shape, "x", "q")}}
    update = update_of(streams, factors, **entries)
    with pytest.raises(InvalidBitstream, match="'x' is a factor"):
        nnr_codec.decode(update, base=streams, layers="factorized")
    other = update_of(streams, factors, {"whole": ["x"], "removed": ["x", "tx"]}, **entries)
    decoded = nnr_codec.decode(other, base=streams, layers="factorized")
    assert list(decoded) == ["x", "q"]


@pytest.mark.parametrize("only", [None, "[tv]", "[ts]"])
def test_ties_have_their_values_wherever_they_stand(only: str | None) -> None:
    """A factor that is a tensor of the model too comes behind the tie, if it is not selected."""
    arrays = {"w": values(8, 6), "q": values(6, 6)}
    ties = [{"name": name, "after": "w", "tied_to": "w"} for name in "ts"]
    streams = [stream_of(arrays, extras=ties)]
    zeros = {name: np.zeros_like(array) for name, array in arrays.items()}
    entries = {"factorizations": {"v": entry_of([8, 6], "w", "q")}}
    update = update_of(streams, zeros, **entries)
    base = nnr_codec.decode(streams[0])
    decoded = nnr_codec.decode(update, base=streams, layers="factorized", only=only)
    assert set(decoded) == {None: set("wtsq"), "[tv]": set("twq"), "[ts]": set("ts")}[only]
    for name, array in decoded.items():
        assert np.array_equal(array, base[name])


def test_a_factor_may_have_had_the_name_of_a_weight_in_factors() -> None:
    part, weight = low_rank((12, 4), 2), low_rank((12, 9), 4, seed=1)
    weight = LowRank(weight.shape, (part.to_dense(), weight.factors[1]))
    base = encoded({"w.factor0": part.to_dense()}, factorizations={"w.factor0": part})
    update = encoded({"w": weight.to_dense()}, base=[base], factorizations={"w": weight})
    assert list(nnr_codec.decode(update, base=[base])) == ["w"]


def factored_base(rank: int) -> bytes:
    arrays = {"x0": values(32, rank), "x1": values(rank, 32)}
    entries = {"factorizations": {"x": entry_of([32, 32], "x0", "x1")}}
    return stream_of(arrays, **entries)


def test_limits_hold_for_products_of_updated_factors() -> None:
    streams = [factored_base(1)]
    larger = {"x0": values(32, 16), "x1": values(16, 32)}
    update = update_of(streams, larger, {"whole": ["x0", "x1"]})
    operations = 32 * 32 * 16
    for limit in ("max_product_operations", "max_all_product_operations"):
        nnr_codec.decode(update, base=streams, limits=DecodeLimits(**{limit: operations}))
        with pytest.raises(LimitExceeded, match=f"{limit}.*{operations}"):
            nnr_codec.open(update, base=streams, limits=DecodeLimits(**{limit: operations - 1}))


def test_limits_hold_for_products_beneath_sums() -> None:
    streams = [factored_base(2)]
    streams.append(update_of(streams, {"x": values(32, 32)}))
    factors = {"y0": values(32, 1), "y1": values(1, 32), "x": values(32, 32)}
    entries = {"factorizations": {"y": entry_of([32, 32], "y0", "y1")}}
    streams.append(update_of(streams, factors, **entries))
    operations = 32 * 32 * (2 + 1)
    opened_base(streams, DecodeLimits(max_all_product_operations=operations))
    with pytest.raises(LimitExceeded, match="max_all_product_operations"):
        opened_base(streams, DecodeLimits(max_all_product_operations=operations - 1))


def test_limits_hold_for_tensors_times_updates() -> None:
    model = {f"t{index}": np.ones(1, np.float32) for index in range(40)}
    streams = [encoded(model)]
    for _ in range(20):
        streams.append(encoded(model, base=streams))
    opened_base(streams, DecodeLimits(max_header_entries=800))
    with pytest.raises(LimitExceeded, match="max_header_entries"):
        opened_base(streams, DecodeLimits(max_header_entries=799))

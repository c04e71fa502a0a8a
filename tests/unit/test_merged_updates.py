"""How updates and their bases are put together: what stays, and what is forgotten."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from factored_streams_support import CARRIAGES, with_carriage
from updates_support import UNGROUPED, Arrays, encoded

import nnr_codec
from nnr_codec.bitstream import Topology, read_units, write_record
from nnr_codec.decoding.updates.base_model import opened_base
from nnr_codec.factorization.forms import LowRank
from nnr_codec.model import Array
from nnr_codec.support.digest import digest


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def low_rank(shape: tuple[int, int], rank: int, seed: int = 0) -> LowRank:
    return LowRank(shape, (values(shape[0], rank, seed=seed), values(rank, shape[1], seed=seed)))


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

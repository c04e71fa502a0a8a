"""Updates and bases that are wrong, damaged or hostile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from updates_support import UNGROUPED, Arrays, encoded, moved, with_map

import nnr_codec
from nnr_codec import BitstreamError, DecodeLimits, InvalidBitstream, LimitExceeded, WrongBase
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.decoding.updates.base_model import opened_base

READERS: list[Callable[..., Any]] = [
    nnr_codec.decode,
    nnr_codec.open,
    lambda data, **options: list(StreamDecoder(**options).outline(data)),
]


def model() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(0, 0.1, (8, 6)).astype(np.float32),
        "i": np.arange(6, dtype=np.int32),
        "v": rng.normal(0, 0.1, 5).astype(np.float32),
    }


@pytest.fixture(scope="module")
def base() -> bytes:
    return encoded(model(), UNGROUPED)


@pytest.fixture(scope="module")
def update(base: bytes) -> bytes:
    return encoded(moved(model()), base=[base])


@pytest.mark.parametrize("read", READERS)
def test_an_update_needs_its_base(read: Callable[..., Any], base: bytes, update: bytes) -> None:
    other = encoded(moved(model(), 0.5))
    with pytest.raises(WrongBase, match="name its base"):
        read(update)
    with pytest.raises(WrongBase, match="update of another stream"):
        read(update, base=[other])
    with pytest.raises(WrongBase, match="is an update itself"):
        read(update, base=[update])
    with pytest.raises(WrongBase, match="stands by itself"):
        read(other, base=[base])
    with pytest.raises(WrongBase, match="another stream"):
        read(update, base=[base, update])


def test_an_update_without_units_needs_its_base_too(base: bytes) -> None:
    nothing = encoded(model(), base=[base])
    with pytest.raises(WrongBase):
        nnr_codec.decode(nothing)


def test_the_order_of_a_chain_counts(base: bytes, update: bytes) -> None:
    third = encoded(moved(model(), 0.2), base=[base, update])
    assert len(nnr_codec.decode(third, base=[base, update])) == 3
    for wrong in ([update, base], [base], [base, update, update], [update]):
        with pytest.raises(WrongBase):
            nnr_codec.decode(third, base=wrong)


def test_every_flipped_bit_of_the_base_is_seen(base: bytes, update: bytes) -> None:
    for place in range(len(base)):
        damaged = bytearray(base)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(BitstreamError):
            nnr_codec.decode(update, base=[damaged])


def test_every_truncated_base_is_seen(base: bytes, update: bytes) -> None:
    for size in range(0, len(base), 3):
        with pytest.raises(BitstreamError):
            nnr_codec.decode(update, base=[base[:size]])


def test_damaged_updates_raise_nothing_else(base: bytes, update: bytes) -> None:
    for place in range(0, len(update)):
        damaged = bytearray(update)
        damaged[place] ^= 1 << place % 8
        try:
            nnr_codec.decode(damaged, base=[base])
        except BitstreamError:
            continue


def test_a_base_that_decodes_to_something_else_is_refused(base: bytes, update: bytes) -> None:
    wrong = with_map(update, base={"digest": "0" * 64})
    with pytest.raises(WrongBase, match="digest"):
        nnr_codec.decode(wrong, base=[base])
    with nnr_codec.open(wrong, base=[base]) as stream:  # compares the bytes of the base alone
        assert "w" in stream


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"removed": ["none"]}, "not there"),
        ({"removed": ["w"]}, "or coded"),
        ({"order": [[0, 2]]}, "another number"),
        ({"order": [[0, 2], [0, 1]]}, "twice"),
        ({"whole": ["none"]}, "no tensor 'none'"),
        ({"xor": ["w"]}, "float32"),
        ({"whole": None}, "is added to one of"),
    ],
)
def test_maps_that_do_not_fit_the_base(changes: dict[str, Any], reason: str) -> None:
    old, new = model(), moved(model())
    new["v"] = np.full(7, 0.25, np.float32)
    base = encoded(old, UNGROUPED)
    update = encoded(new, base=[base])
    with pytest.raises(InvalidBitstream, match=reason):
        nnr_codec.decode(with_map(update, base=changes), base=[base])


def test_differences_of_other_kinds_are_refused(base: bytes) -> None:
    for name, values in (
        ("i", np.full(6, 0.5, np.float32)),  # floats to integers
        ("w", np.ones((8, 6), np.int64)),  # integers of another type
        ("w", np.ones((6, 8), np.float32)),
    ):
        whole = encoded({**model(), name: values}, base=[base])
        as_difference = with_map(whole, base={"whole": None})
        with pytest.raises(InvalidBitstream, match=repr(name)):
            nnr_codec.decode(as_difference, base=[base])


def test_ties_to_what_is_not_before_them_are_refused() -> None:
    from nnr_codec.model import Model, Parameter

    first = Parameter.from_array("w", model()["w"])
    tie = Parameter("t", first.shape, first.dtype, first.load, "w")
    base = encoded(Model([first, tie, Parameter.from_array("v", model()["v"])]), UNGROUPED)
    update = encoded({**model(), "t": 2 * model()["w"]}, base=[base])
    for changes in ({"removed": ["w"]}, {"order": [[1, 1], [0, 1], [2, 1]]}):
        nothing = encoded(Model([first, tie, Parameter.from_array("v", model()["v"])]), base=[base])
        with pytest.raises(InvalidBitstream, match="tied"):
            nnr_codec.decode(with_map(nothing, base=changes), base=[base])
    assert len(nnr_codec.decode(update, base=[base])) == 4


def test_limits_hold_for_the_sum(base: bytes) -> None:
    more = encoded({**model(), "more": np.zeros((9, 9), np.float32)}, base=[base])
    limits = DecodeLimits(max_elements=100)
    nnr_codec.decode(base, limits=limits)
    with pytest.raises(LimitExceeded, match="max_elements"):
        nnr_codec.decode(more, base=[base], limits=limits)


def test_long_chains_are_refused(monkeypatch: pytest.MonkeyPatch, base: bytes) -> None:
    from nnr_codec.decoding.updates import base_model

    streams = [base]
    for _ in range(3):
        streams.append(encoded(model(), base=streams))
    assert len(opened_base(streams).streams) == 4
    monkeypatch.setattr(base_model, "_MOST_STREAMS", 3)
    with pytest.raises(LimitExceeded, match="streams of a base"):
        opened_base(streams)


def test_an_update_serves_as_a_parent(base: bytes, update: bytes) -> None:
    """Its integers do: contexts of a series need no sum."""
    difference = {"w": np.full((8, 6), 0.1, np.float32)}
    stream = encoded(difference, parents=[base, update])
    assert list(nnr_codec.decode(stream, parents=[base, update])) == ["w"]

"""What the model map says of a base: written, read, refused."""

from __future__ import annotations

from typing import Any

import pytest

from nnr_codec.factorization.base_entry import BaseEntry, parse_base_entry, runs_of
from nnr_codec.factorization.map_checks import MapError
from nnr_codec.factorization.model_map import ModelMap, parse_model_map

ONE, OTHER = "0" * 64, "a" * 64
LEAST = {"stream": ONE, "digest": OTHER}
FULL = BaseEntry(ONE, OTHER, ("w",), ("x",), ("gone",), ((2, 1), (0, 2)))


@pytest.mark.parametrize("entry", [BaseEntry(ONE, OTHER), FULL], ids=["least", "full"])
def test_an_entry_comes_back(entry: BaseEntry) -> None:
    text = ModelMap(base=entry).to_text()
    assert text.startswith('{"nnr_model_map":2,')
    read = parse_model_map(text, 8)
    assert read is not None
    assert read.base == entry


def test_version_1_has_no_base() -> None:
    text = ModelMap(base=FULL).to_text().replace('"nnr_model_map":2', '"nnr_model_map":1')
    with pytest.raises(MapError, match="unknown key 'base'"):
        parse_model_map(text, 8)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stream": None}, "stream"),
        ({"stream": ONE[1:]}, "no SHA-256"),
        ({"digest": ONE.replace("0", "A")}, "no SHA-256"),
        ({"digest": 7}, "no str"),
        ({"whole": []}, "empty"),
        ({"whole": "w"}, "no list"),
        ({"whole": [1]}, "no str"),
        ({"whole": ["w", "w"]}, "twice"),
        ({"whole": ["w"], "xor": ["w"]}, "whole, and says which bits"),
        ({"removed": ["a\0"]}, "zero character"),
        ({"removed": ["\ud800"]}, "no Unicode"),
        ({"order": [1]}, "no list"),
        ({"order": [[0]]}, "runs that are none"),
        ({"order": [[0, 0]]}, "runs that are none"),
        ({"order": [[0, 1, 2]]}, "runs that are none"),
        ({"order": [[-1, 1]]}, "no number"),
        ({"order": [[True, 1]]}, "no number"),
        ({"order": [[0.0, 1]]}, "no number"),
        ({"more": 1}, "unknown key"),
    ],
)
def test_damaged_entries_are_refused(changes: dict[str, Any], reason: str) -> None:
    data = {key: value for key, value in {**LEAST, **changes}.items() if value is not None}
    with pytest.raises(MapError, match=reason):
        parse_base_entry(data)


def test_it_is_an_object() -> None:
    with pytest.raises(MapError):
        parse_base_entry([LEAST])


@pytest.mark.parametrize("names", [list("abcde"), list("ecdab"), list("cdeab"), list("edcba"), []])
def test_orders_come_back(names: list[str]) -> None:
    listed = sorted(names)
    entry = BaseEntry(ONE, OTHER, order=runs_of(names, listed))
    assert entry.model_order(listed) == names


@pytest.mark.parametrize(
    "order", [((0, 2), (1, 2)), ((0, 3),), ((0, 2), (3, 2)), ((0, 2), (10**30, 2)), ((0, 10**30),)]
)
def test_orders_of_other_tensors_are_refused(order: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(MapError, match="order"):
        BaseEntry(ONE, OTHER, order=order).model_order(list("abcd"))


def test_it_tells_of_coded_tensors_alone() -> None:
    FULL.check({"w": 0, "x": 1}, {})
    with pytest.raises(MapError, match="no tensor 'x'"):
        FULL.check({"w": 0}, {})
    with pytest.raises(MapError, match="no tensor 'w'"):
        FULL.check({"w": 0, "x": 1, "owner": 2}, {"w": "owner"})

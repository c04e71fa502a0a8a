"""Which weights are complete while their factors come, and how long a factor is kept."""

from __future__ import annotations

import weakref

import pytest

from nnr_codec.factorization.factor_tracker import FactorTracker

FACTORS = {"a": ("f", "s"), "b": ("s", "g"), "c": ("h", "s")}
"""Three weights that share one factor."""


class Value:
    """What comes with a factor, and can be watched."""


@pytest.mark.parametrize(
    ("formed", "kept"),
    [("abc", [1, 1, 1, 1, 0]), ("ab", [1, 1, 1, 0, 0]), ("c", [0, 1, 1, 1, 0]), ("", [0] * 5)],
)
def test_factors_are_kept_for_the_last_weight_that_is_formed(formed: str, kept: list[int]) -> None:
    tracker = FactorTracker[Value](FACTORS, formed.__contains__)
    alive: list[weakref.ref[Value]] = []
    complete, counts = [], []
    for name in "fsxgh":
        value = Value()
        alive.append(weakref.ref(value))
        weights = tracker.add(name, value)
        del value
        complete += weights
        for weight in filter(formed.__contains__, weights):
            assert len(tracker.release(weight)) == 2
        counts.append(sum(reference() is not None for reference in alive))
    assert counts == kept
    assert complete == ["a", "b", "c"]
    assert [name in tracker for name in "fsxgh"] == [True, True, False, True, True]


def test_values_come_in_the_order_of_the_weight() -> None:
    tracker = FactorTracker[str](FACTORS)
    assert [tracker.add(name, name.upper()) for name in "gsf"] == [[], ["b"], ["a"]]
    assert tracker.release("b") == ["S", "G"]
    assert tracker.release("a") == ["F", "S"]

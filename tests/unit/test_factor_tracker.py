"""Which weights are complete while their factors come, and how long a factor is kept."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from load_into_support import Net, net_stream, saved

from nnr_codec.factorization.factor_tracker import FactorTracker
from nnr_codec.layers import load_into
from nnr_codec.model import Array, Parameter

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


def test_loading_keeps_no_factors_of_weights_that_are_formed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most three wait for the fourth, of CP; there are more than twenty tensors."""
    alive: list[weakref.ref[Any]] = []
    most, read = 0, Parameter.read

    def watched(parameter: Parameter) -> Array:
        nonlocal most
        most = max(most, sum(reference() is not None for reference in alive))
        values = read(parameter)
        alive.append(weakref.ref(values))
        return values

    path = saved(".safetensors")(tmp_path, net_stream())
    monkeypatch.setattr(Parameter, "read", watched)
    load_into(Net(), path, layers="dense")
    assert len(alive) > 20
    assert most == 3

"""Decomposing a model side by side, and the progress that is told of it."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from decompose_support import MODEL, STAGES, layers, mixed_layers, options

import nnr_codec
from nnr_codec import InvalidOptions
from nnr_codec.decompose import decompose_model
from nnr_codec.model import Model


@pytest.mark.parametrize(
    "values",
    [
        {"method": "lr", "energy": 0.8},
        {"method": "tucker2", "compression_ratio": 2.0},
        {"method": "auto", "compression_ratio": 2.0},
        {"method": "joint", "rank": 0.5},
        {"method": "auto"},
    ],
)
def test_threads_change_nothing(values: dict[str, Any]) -> None:
    model = mixed_layers() | STAGES
    plain = nnr_codec.encode(model, options=options(**values))
    with ThreadPoolExecutor(3) as executor:
        threaded = nnr_codec.encode(model, options=options(**values), executor=executor)
    assert plain.data == threaded.data


def test_processes_change_nothing() -> None:
    for values in ({"method": "ht2", "rank": 0.3}, {"method": "auto"}):
        plain = nnr_codec.encode(MODEL, options=options(**values))
        with ProcessPoolExecutor(2) as executor:
            apart = nnr_codec.encode(MODEL, options=options(**values), executor=executor)
        assert plain.data == apart.data


def test_executors_change_no_errors() -> None:
    model = Model.from_arrays(layers(a=(20, 30), b=(40, 30)))
    chosen = options("lr", rank=25)
    exact = options("lr", rank=25, overrides=(("a", {"rank": 24}),))
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(2) as processes:
        for executor in (None, threads, processes):
            found = decompose_model(model, chosen, executor=executor)
            assert "ranks [25] not from 1 to [20]" in found.skipped["a"]
            with pytest.raises(InvalidOptions, match=r"rank: 'a': lr: ranks \[24\]"):
                decompose_model(model, exact, executor=executor)


@pytest.mark.parametrize("amount", [{"rank": 2}, {"compression_ratio": 1.2}])
def test_progress_names_weights_at_each_step(amount: dict[str, Any]) -> None:
    done: list[str] = []
    model = layers(a=(20, 30), b=(16, 24, 1, 1), c=(64, 64))
    chosen = options("tucker2", **amount)
    found = decompose_model(Model.from_arrays(model), chosen, progress=done.append)
    assert done == ["a", "b", "c", *found.factorizations]
    assert found.factorizations

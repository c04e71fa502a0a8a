"""Updates of models whose weights travel as factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from factored_streams_support import CARRIAGES, mixture, with_carriage
from updates_support import assert_same, encoded

import nnr_codec
from nnr_codec.decoding.updates.base_model import opened_base
from nnr_codec.factorization.forms import FORMS, FactoredWeight, LowRank
from nnr_codec.model import Model, Parameter

Weights = dict[str, FactoredWeight]


def retrained(weights: Weights, scale: float = 0.02) -> Weights:
    """The same forms and ranks with other factors; those that were one stay one."""
    rng = np.random.default_rng(7)
    made: dict[int, Any] = {}
    for weight in weights.values():
        for factor in weight.factors:
            if id(factor) not in made:
                change = rng.normal(0, scale, factor.shape)
                made[id(factor)] = (factor + change).astype(np.float32)
    return {
        name: FORMS[weight.form](weight.shape, tuple(made[id(f)] for f in weight.factors))
        for name, weight in weights.items()
    }


def with_dense(model: Model, weights: Weights) -> Model:
    """The model with the dense values of weights."""
    dense = {name: Parameter.from_array(name, w.to_dense()) for name, w in weights.items()}
    made = {}
    for name, parameter in model.items():
        first = parameter.tied_to
        made[name] = dense.get(name, parameter)
        if first is not None:
            p = made[first]
            made[name] = Parameter(name, p.shape, p.dtype, p.load, first)
    return Model(made.values())


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_factors_are_updated(carriage: str) -> None:
    model, weights = mixture()
    base = encoded(model, with_carriage(carriage), factorizations=weights)
    new = retrained(weights)
    made = nnr_codec.encode(with_dense(model, new), base=[base], factorizations=new, verify=True)
    assert made.data is not None
    whole = nnr_codec.encode(with_dense(model, new), factorizations=new).data or b""
    assert len(made.data) < len(whole)
    factors = [factor for tensor in made.report.tensors for factor in tensor.factors]
    assert all(factor.is_difference for factor in factors)
    with nnr_codec.open(made.data, base=[base], layers="factorized") as stream:
        assert set(stream.factorizations) == set(weights)
        names = {n for entry in stream.factorizations.values() for n in entry.factors}
        assert names <= set(stream)
        assert not any(name.endswith(("_G", "_H")) for name in stream)
    dense = nnr_codec.decode(made.data, base=[base])
    with nnr_codec.open(made.data, base=[base]) as stream:
        assert_same(dict(stream), dense)
    for name, weight in new.items():
        assert np.abs(dense[name] - weight.to_dense()).max() < 0.05


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_factors_that_stay_cost_nothing(carriage: str) -> None:
    model, weights = mixture()
    base = encoded(model, with_carriage(carriage), factorizations=weights)
    update = encoded(model, base=[base], factorizations=weights)
    assert len(update) < 250
    assert_same(nnr_codec.decode(update, base=[base]), nnr_codec.decode(base))


def low_rank(rank: int, seed: int = 0) -> LowRank:
    rng = np.random.default_rng(seed)
    factors = rng.normal(0, 0.3, (12, rank)), rng.normal(0, 0.3, (rank, 9))
    return LowRank((12, 9), tuple(factor.astype(np.float32) for factor in factors))


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_weights_change_between_dense_and_factors(carriage: str) -> None:
    options = with_carriage(carriage)
    variants: list[Weights] = [{}, {"w": low_rank(2)}, {"w": low_rank(3, 1)}]
    bias = np.arange(12, dtype=np.float32)
    for before in variants:
        dense = before.get("w", low_rank(2, 5)).to_dense()
        base = encoded({"w": dense, "bias": bias}, options, factorizations=before)
        for after in variants:
            dense = after.get("w", low_rank(2, 6)).to_dense()
            update = encoded({"w": dense, "bias": bias}, base=[base], factorizations=after)
            model = opened_base([base, update])
            assert set(model.composition.factorizations) == set(after)


def test_a_tie_to_a_weight_in_factors_comes_and_goes() -> None:
    weight = low_rank(2)
    first = Parameter.from_array("w", weight.to_dense())
    tie = Parameter("t", first.shape, first.dtype, first.load, "w")
    alone = Parameter.from_array("t", 2 * weight.to_dense())
    models = [Model([first]), Model([first, tie]), Model([first, alone])]
    for one in models:
        base = encoded(one, factorizations={"w": weight})
        for model in models:
            update = encoded(model, base=[base], factorizations={"w": weight})
            assert list(nnr_codec.decode(update, base=[base])) == model.names()

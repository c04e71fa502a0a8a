"""Models of which weights travel as factors, which the tests of such streams share."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nnr_codec import EncodeOptions
from nnr_codec.factorization.forms import FORMS, FactoredWeight, JointRight
from nnr_codec.model import Model, Parameter
from nnr_codec.options import DecompositionOptions

FINE = EncodeOptions(qp=-60)
Weights = dict[str, FactoredWeight]
CARRIAGES: list[Any] = ["dc", "factors"]


def with_carriage(carriage: Any, options: EncodeOptions | None = None) -> EncodeOptions:
    """Options by which weights of two factors travel in this way."""
    decomposition = DecompositionOptions(carriage=carriage)
    return dataclasses.replace(options or EncodeOptions(), decomposition=decomposition)


def random_factors(form: str, shape: tuple[int, ...], seed: int = 0) -> FactoredWeight:
    """Factors of rank 3 at most."""
    rng = np.random.default_rng(seed)
    kind = FORMS[form]
    ranks = [min(3, most) for most in kind.max_ranks(shape)]
    factors = (rng.normal(0, 0.3, size) for size in kind.factor_shapes(shape, ranks))
    return kind(shape, tuple(factor.astype(np.float32) for factor in factors))


def mixture() -> tuple[Model, Weights]:
    """All forms, with vectors between, two that share a factor, and ties to what has factors."""
    shape = (6, 5, 3, 2)
    weights = {f"{form}.weight": random_factors(form, shape) for form in FORMS}
    shared = weights["joint_right.weight"].factors[1]
    own = random_factors("joint_right", shape, 1).factors[0]
    weights["joint_right.2.weight"] = JointRight(shape, (own, shared))
    parameters = [Parameter.from_array("empty", np.zeros((0, 3), np.float32))]
    for name, weight in weights.items():
        parameters.append(Parameter.from_array(name, weight.to_dense()))
        bias = np.arange(6, dtype=np.float32)
        parameters.append(Parameter.from_array(name.replace("weight", "bias"), bias))
    first = parameters[1]
    parameters.insert(4, dataclasses.replace(first, name="tied", tied_to=first.name))
    parameters.append(dataclasses.replace(first, name="last", tied_to=first.name))
    return Model(parameters), weights

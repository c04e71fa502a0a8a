"""Errors of weights that travel as factors, in the encoder's report: of what is decoded, dense."""

from __future__ import annotations

import gc
import json
import math
import weakref
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.errors import QuantizationOverflow
from nnr_codec.factorization.files import factors_metadata
from nnr_codec.factorization.forms import CP, FORMS, FactoredWeight, JointRight, LowRank
from nnr_codec.model import Model, Parameter
from nnr_codec.options import DecompositionOptions
from nnr_codec.report import EncodeReport, TensorReport

COARSE = EncodeOptions(qp=-8)
SHAPE = (9, 8, 3, 2)
Arrays = dict[str, np.ndarray]


def factored(form: str, seed: int = 0) -> FactoredWeight:
    rng = np.random.default_rng(seed)
    kind = FORMS[form]
    ranks = [min(4, most) for most in kind.max_ranks(SHAPE)]
    sizes = kind.factor_shapes(SHAPE, ranks)
    return kind(SHAPE, tuple(rng.normal(0, 0.5, size).astype("f4") for size in sizes))


def model_near_factors() -> tuple[Arrays, dict[str, FactoredWeight]]:
    """Weights of all forms that are not quite what their factors make, two of them sharing one."""
    weights = {f"{form}.weight": factored(form, seed) for seed, form in enumerate(FORMS)}
    shared = weights["joint_right.weight"].factors[1]
    own = factored("joint_right", 99).factors[0]
    weights["joint_right.2.weight"] = JointRight(SHAPE, (own, shared))
    rng = np.random.default_rng(7)
    model: Arrays = {"dense.weight": rng.normal(0, 1, (20, 30)).astype("f4")}
    for name, weight in weights.items():
        noise = rng.normal(0, 0.01 * len(model), SHAPE)  # each its own error
        model[name] = (weight.to_dense() + noise).astype("f4")
    return model, weights


def squared(values: np.ndarray) -> float:
    return float(np.square(values.astype(np.float64)).sum())


def by_name(report: EncodeReport) -> dict[str, TensorReport]:
    return {tensor.name: tensor for tensor in report.tensors}


@pytest.mark.parametrize("carriage", ["dc", "factors"])
@pytest.mark.parametrize("profile", [0, 1])
@pytest.mark.parametrize("dq", [True, False])
def test_errors_are_those_of_what_is_decoded(carriage: Any, profile: Any, dq: bool) -> None:
    model, weights = model_near_factors()
    decomposition = DecompositionOptions(carriage=carriage)
    options = EncodeOptions(qp=-8, profile=profile, dq=dq, decomposition=decomposition)
    result = nnr_codec.encode(model, options=options, factorizations=weights)
    decoded = nnr_codec.decode(result.data)
    found = by_name(result.report)
    for name, values in model.items():
        error = squared(decoded[name].astype(np.float64) - values)
        assert found[name].squared_error == pytest.approx(error, rel=1e-6)
        assert found[name].energy == pytest.approx(squared(values), rel=1e-9)
        assert found[name].nmse == pytest.approx(error / squared(values), rel=1e-6)
    for name, weight in weights.items():
        alone = squared(weight.to_dense().astype(np.float64) - model[name])
        assert found[name].decomposition_squared_error == pytest.approx(alone, rel=1e-9)
        assert found[name].squared_error > 1.01 * alone  # the steps are coarse
    assert found["dense.weight"].decomposition_nmse == 0 < found["dense.weight"].nmse
    errors = [found[name].nmse for name in ("joint_right.weight", "joint_right.2.weight")]
    assert not math.isclose(*errors, rel_tol=0.1)


def test_totals() -> None:
    model, weights = model_near_factors()
    result = nnr_codec.encode(model, options=COARSE, factorizations=weights)
    decoded = nnr_codec.decode(result.data)
    energy = sum(map(squared, model.values()))
    error = sum(squared(decoded[name].astype(np.float64) - model[name]) for name in model)
    alone = sum(squared(w.to_dense().astype(np.float64) - model[n]) for n, w in weights.items())
    report = result.report
    assert report.nmse == pytest.approx(error / energy, rel=1e-6)
    assert report.decomposition_nmse == pytest.approx(alone / energy, rel=1e-6)
    distinct = {id(factor): factor.size for w in weights.values() for factor in w.factors}
    assert report.parameters == model["dense.weight"].size + sum(distinct.values())
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["nmse"] == report.nmse
    assert written["decomposition_nmse"] == report.decomposition_nmse
    rows = {row["name"]: row for row in written["per_tensor"]}
    for name, tensor in by_name(report).items():
        assert rows[name]["nmse"] == tensor.nmse
        assert rows[name]["decomposition_nmse"] == tensor.decomposition_nmse


@pytest.mark.parametrize("options", [EncodeOptions(lossless=True), EncodeOptions(exclude=("*",))])
def test_exact_factors_leave_the_error_of_the_decomposition(options: EncodeOptions) -> None:
    model, weights = model_near_factors()
    report = nnr_codec.encode(model, options=options, factorizations=weights).report
    for name in weights:
        tensor = by_name(report)[name]
        assert tensor.squared_error == tensor.decomposition_squared_error > 0
    assert report.nmse == report.decomposition_nmse > 0


@pytest.mark.parametrize("codebook", [True, False])
def test_factors_on_a_step_are_exact(codebook: bool) -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-2, 3, s).astype("f4") / 4 for s in ((40, 3), (3, 30)))
    weight = LowRank((40, 30), (left, right))
    decomposition = DecompositionOptions(carriage="factors")
    options = EncodeOptions(qp=-61, dq=False, codebook=codebook, decomposition=decomposition)
    result = nnr_codec.encode(
        {"w": weight.to_dense()}, options=options, factorizations={"w": weight}
    )
    assert [factor.kind for factor in result.report.tensors[0].factors] == ["step", "step"]
    assert result.report.tensors[0].squared_error == 0 < result.report.tensors[0].energy


@pytest.mark.parametrize("pool", [None, ThreadPoolExecutor, ProcessPoolExecutor])
@pytest.mark.parametrize("target", [None, 0.3])
def test_workers_and_target_sizes(pool: Any, target: float | None) -> None:
    model, weights = model_near_factors()
    executor: Executor | None
    with pool(2) if pool else nullcontext() as executor:
        options = EncodeOptions(qp=-16, target_size=target)
        result = nnr_codec.encode(model, options=options, factorizations=weights, executor=executor)
    decoded = nnr_codec.decode(result.data)
    for tensor in result.report.tensors:
        error = squared(decoded[tensor.name].astype(np.float64) - model[tensor.name])
        assert tensor.squared_error == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_element_types(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    weight = factored("tucker2")
    model = {"w": (1.01 * weight.to_dense()).astype(kind)}
    result = nnr_codec.encode(model, options=COARSE, factorizations={"w": weight})
    decoded = nnr_codec.decode(result.data)["w"]
    error = squared(decoded.astype(np.float64) - model["w"].astype(np.float64))
    assert result.report.tensors[0].squared_error == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("method", ["lr", "cp", "joint"])
def test_what_the_options_ask_for(method: Any) -> None:
    rng = np.random.default_rng(0)
    model = {f"s.{i}.weight": rng.normal(0, 1, (16, 16, 3, 3)).astype("f4") for i in range(4)}
    options = EncodeOptions(decomposition=DecompositionOptions(method, rank=0.5))
    result = nnr_codec.encode(model, options=options)
    decoded = nnr_codec.decode(result.data)
    for tensor in result.report.tensors:
        error = squared(decoded[tensor.name].astype(np.float64) - model[tensor.name])
        assert tensor.nmse == pytest.approx(error / squared(model[tensor.name]), rel=1e-6)
    assert result.report.nmse == pytest.approx(result.report.decomposition_nmse, rel=1e-3)
    assert result.report.nmse > 0.1


def test_a_model_of_factors_has_lost_nothing_to_them() -> None:
    """Its weights are what its factors make, to begin with."""
    weight = factored("cp")
    data = nnr_codec.encode({"w": weight.to_dense()}, factorizations={"w": weight}).data or b""
    factors = nnr_codec.decode(data, layers="factorized")
    with nnr_codec.open(data) as stream:
        metadata = factors_metadata(stream.factorizations, factors)
    parameters = [Parameter.from_array(name, values) for name, values in factors.items()]
    model = Model(parameters, metadata=metadata)
    (tensor,) = nnr_codec.encode(model, options=COARSE).report.tensors
    assert (tensor.name, tensor.kind) == ("w", "cp")
    assert tensor.decomposition_squared_error == 0 < tensor.squared_error


def test_weights_are_compared_one_at_a_time() -> None:
    rng = np.random.default_rng(0)
    alive: list[weakref.ref[Any]] = []
    most = 0

    def dense(seed: int) -> Parameter:
        def read() -> np.ndarray:
            nonlocal most
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            values = np.random.default_rng(seed).normal(0, 1, (30, 20)).astype("f4")
            alive.append(weakref.ref(values))
            return values

        return Parameter(f"{seed}", (30, 20), np.dtype("f4"), read)

    weights = {
        f"{seed}": LowRank((30, 20), (rng.normal(size=(30, 2)), rng.normal(size=(2, 20))))
        for seed in range(6)
    }
    nnr_codec.encode(Model(map(dense, range(6))), factorizations=weights)
    assert len(alive) == 6  # each once, against its products before quantization and behind it
    assert most <= 1


def test_zeros() -> None:
    """An error where there was nothing is infinite, which JSON cannot say."""
    report = nnr_codec.encode(
        {"w": np.zeros(SHAPE, "f4")}, factorizations={"w": factored("cp")}
    ).report
    assert report.nmse == report.tensors[0].nmse == math.inf
    written = report.to_json()
    assert written["nmse"] is written["per_tensor"][0]["nmse"] is None
    assert written["per_tensor"][0]["squared_error"] > 0


def test_values_that_are_not_finite() -> None:
    """Exact factors may hold anything; the report is JSON all the same."""
    weight = CP((2, 2, 2), tuple(np.full((2, 1), value, "f4") for value in (1, np.inf, 1)))
    model = {"w": weight.to_dense(), "v": np.ones((2, 2), "f4")}
    options = EncodeOptions(lossless=True)
    result = nnr_codec.encode(model, options=options, factorizations={"w": weight})
    assert nnr_codec.decode(result.data)["w"].tobytes() == model["w"].tobytes()
    assert json.dumps(result.report.to_json(), allow_nan=False)
    assert result.report.to_json()["per_tensor"][0]["squared_error"] is None


def test_a_product_beyond_the_type_of_the_weight() -> None:
    """As with dense weights, quantization must not make infinities."""
    factors = (np.full((4, 1), 255.0, "f4"), np.full((1, 4), 255.0, "f4"))
    weight = LowRank((4, 4), factors)
    model = {"w": weight.to_dense().astype(np.float16)}
    assert np.isfinite(model["w"]).all()
    with pytest.raises(QuantizationOverflow, match="'w': its quantized factors make values too"):
        nnr_codec.encode(model, options=EncodeOptions(qp=26, dq=False),
                         factorizations={"w": weight})  # fmt: skip

"""Relative errors of decoded weights: over all, over kernels, and of those that came as factors."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("constriction")

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.experiments.measures.weight_errors import weight_errors
from nnr_codec.experiments.methods.base import Decoded
from nnr_codec.experiments.methods.nnr import NnrCodec
from nnr_codec.experiments.methods.simple import Float16Codec
from nnr_codec.options import DecompositionOptions

Arrays = dict[str, np.ndarray]


def model() -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 8, 3), "b": (8, 8, 3, 3), "c": (30, 20), "d": (40, 20), "bias": (30,)}
    scales = {"a": 1.0, "b": 0.1, "c": 3.0, "d": 0.5, "bias": 100.0}
    arrays = {n: (scales[n] * rng.normal(0, 1, s)).astype("f4") for n, s in shapes.items()}
    return arrays | {"table": np.arange(6).reshape(2, 3)}


def squared(values: np.ndarray) -> float:
    return float(np.square(values.astype(np.float64)).sum())


def relative(before: Arrays, after: Arrays, names: str) -> float:
    error = sum(squared(after[name].astype(float) - before[name]) for name in names)
    return error / sum(squared(before[name]) for name in names)


def test_of_all_weights_and_of_kernels() -> None:
    before = model()
    codec = Float16Codec()
    decoded = codec.decode(codec.encode(before).data)
    found = weight_errors(before, decoded)
    assert found == {
        "weight_error": pytest.approx(relative(before, dict(decoded.tensors), "abcd")),
        "kernel_error": pytest.approx(relative(before, dict(decoded.tensors), "ab")),
    }
    assert 0 < (found["weight_error"] or 0) < 1e-6


@pytest.mark.parametrize("carriage", ["dc", "factors"])
def test_of_decomposed_weights(carriage: str) -> None:
    before = model()
    overrides = tuple((name, {"decompose": "lr", "rank": 2}) for name in "bcd")
    options = EncodeOptions(
        overrides=overrides,
        decomposition=DecompositionOptions(carriage=carriage),  # type: ignore[arg-type]
    )
    codec = NnrCodec(options)
    decoded = codec.decode(codec.encode(before).data)
    found = weight_errors(before, decoded)
    after = dict(decoded.tensors)
    assert found["weight_error"] == pytest.approx(relative(before, after, "abcd"))
    each = [relative(before, after, name) for name in "bcd"]
    assert found["decomposed_error"] == pytest.approx(np.mean(each))
    report = nnr_codec.encode(before, options=options).report
    told = [tensor.nmse for tensor in report.tensors if tensor.factors]
    assert found["decomposed_error"] == pytest.approx(np.mean(told), rel=1e-6)


def test_what_does_not_apply() -> None:
    assert weight_errors({"v": np.ones(3)}, Decoded({"v": np.zeros(3)}, 0.0)) == {}
    exact = weight_errors({"w": np.ones((2, 2))}, Decoded({"w": np.ones((2, 2))}, 0.0))
    assert exact == {"weight_error": 0.0}
    nothing = {"w": np.zeros((2, 2))}
    assert weight_errors(nothing, Decoded(nothing, 0.0)) == {"weight_error": 0.0}
    for damaged in (np.inf, np.nan):
        after = {"w": np.full((2, 2), damaged)}
        assert weight_errors({"w": np.ones((2, 2))}, Decoded(after, 0.0)) == {"weight_error": None}

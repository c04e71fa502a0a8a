"""Weights as factors in a stream: both carriages, dense and factorized, in order."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from io import BytesIO
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from factored_streams_support import (
    CARRIAGES,
    FINE,
    Weights,
    mixture,
    random_factors,
    with_carriage,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.factorization.forms import FORMS, LowRank
from nnr_codec.model import Model, Parameter


@pytest.mark.parametrize("carriage", CARRIAGES)
@pytest.mark.parametrize("profile", [0, 1])
def test_dense_decoding(carriage: Any, profile: Any) -> None:
    model, weights = mixture()
    options = dataclasses.replace(FINE, profile=profile)
    options = with_carriage(carriage, options)
    data = nnr_codec.encode(model, options=options, factorizations=weights).data
    decoded = nnr_codec.decode(data)
    assert list(decoded) == model.names()
    for name, weight in model.arrays():
        np.testing.assert_allclose(decoded[name], weight, atol=2e-3)
    assert decoded["tied"] is decoded["lr.weight"]
    with nnr_codec.open(data) as stream:
        assert list(stream) == model.names()
        assert all(np.array_equal(stream[name], decoded[name]) for name in stream)
    decoder = StreamDecoder()
    outline = [(t.name, t.values.shape, t.values.dtype, t.role) for t in decoder.outline(data)]
    assert outline == [
        (t.name, t.values.shape, t.values.dtype, t.role) for t in decoder.tensors(data)
    ]


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_factorized_decoding(carriage: Any) -> None:
    """The factors, in order; what they make is what dense decoding gives."""
    model, weights = mixture()
    options = with_carriage(carriage, FINE)
    data = nnr_codec.encode(model, options=options, factorizations=weights).data
    decoded = nnr_codec.decode(data, layers="factorized")
    dense = nnr_codec.decode(data)
    with nnr_codec.open(data, layers="factorized") as stream:
        assert list(stream) == list(decoded)
        assert all(np.array_equal(stream[name], decoded[name]) for name in stream)
        found = stream.factorizations
    assert sorted(found) == sorted(weights)
    for name, entry in found.items():
        factors = [decoded[factor] for factor in entry.factors]
        np.testing.assert_allclose(entry.dense(factors), dense[name], rtol=1e-6, atol=1e-7)
        is_block = carriage == "dc" and entry.form == "lr"
        assert entry.factors[0] == f"{name}_G" if is_block else f"{name}.factor0"
    assert not weights.keys() & decoded.keys()
    assert found["joint_right.2.weight"].factors[1] == "joint_right.weight.factor1"
    assert np.array_equal(decoded["tied"], dense["tied"])


@pytest.mark.parametrize("layers", ["dense", "factorized"])
@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_workers_change_nothing(layers: Any, pool: Any) -> None:
    model, weights = mixture()
    with pool(2) as executor:
        data = nnr_codec.encode(model, factorizations=weights, executor=executor).data
        assert data == nnr_codec.encode(model, factorizations=weights).data
        parallel = nnr_codec.decode(data, layers=layers, executor=executor)
    serial = nnr_codec.decode(data, layers=layers)
    assert list(parallel) == list(serial)
    assert all(np.array_equal(parallel[name], serial[name]) for name in serial)


@pytest.mark.parametrize(
    ("only", "dense", "factorized"),
    [
        ("cp.weight", ["cp.weight"], [f"cp.weight.factor{i}" for i in range(4)]),
        ("cp.weight.factor1", [], ["cp.weight.factor1"]),
        (
            "joint_right.2.weight",
            ["joint_right.2.weight"],
            ["joint_right.weight.factor1", "joint_right.2.weight.factor0"],
        ),
        ("last", ["last"], ["last"]),
        ("lr.weight", ["lr.weight"], ["lr.weight.factor0", "lr.weight.factor1"]),
    ],
)
def test_only(only: str, dense: list[str], factorized: list[str]) -> None:
    model, weights = mixture()
    options = with_carriage("factors")
    data = nnr_codec.encode(model, options=options, factorizations=weights).data
    whole = nnr_codec.decode(data)
    found = nnr_codec.decode(data, only=only)
    assert list(found) == dense
    assert all(np.array_equal(found[name], whole[name]) for name in dense)
    assert list(nnr_codec.decode(data, only=only, layers="factorized")) == factorized
    for layers, names in (("dense", dense), ("factorized", factorized)):
        outline = StreamDecoder(only=only).outline(data, layers)  # type: ignore[arg-type]
        assert [tensor.name for tensor in outline] == names


@pytest.mark.parametrize("carriage", CARRIAGES)
@pytest.mark.parametrize("layers", ["dense", "factorized"])
@pytest.mark.parametrize("options", [{}, {"group": False}, {"profile": 1}])
def test_a_part_has_the_order_of_the_whole(carriage: Any, layers: Any, options: Any) -> None:
    """Empty and tied tensors too, which follow tensors that are not decoded."""
    given, weights = mixture()
    norm = {f"bn.{role}": np.ones(4, np.float32) for role in ("bias", "weight", "running_mean")}
    last = {**norm, "z": np.zeros(0, np.float16), "a": np.ones((3, 3), np.float32)}
    parameters = [*given.values(), *(Parameter.from_array(*item) for item in last.items())]
    for index in reversed(range(len(parameters))):
        empty = Parameter.from_array(f"{index}.empty", np.zeros((0, 2), np.float32))
        parameters.insert(index, empty)
    model = Model(parameters)
    chosen = dataclasses.replace(with_carriage(carriage), **options)
    data = nnr_codec.encode(model, options=chosen, factorizations=weights).data or b""
    whole = list(nnr_codec.decode(data, layers=layers))
    with nnr_codec.open(data, layers=layers) as stream:
        assert list(stream) == whole
    assert whole == model.names() or layers == "factorized"
    with ThreadPoolExecutor(2) as executor:
        for only in ("*empty", "[!a-k]*", "[ajz1-9]*", "*.weight", "z", "[!0-5]*", "*ed"):
            for pool in (None, executor):
                found = nnr_codec.decode(BytesIO(data), only=only, layers=layers, executor=pool)
                assert list(found) == [name for name in whole if name in found]
            outline = StreamDecoder(only=only).outline(data, layers)
            assert [tensor.name for tensor in outline] == list(found)


@pytest.mark.parametrize("carriage", CARRIAGES)
@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_element_types(carriage: Any, dtype: str) -> None:
    weights = {"w": random_factors("lr", (8, 6)), "v": random_factors("cp", (4, 5, 3))}
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    model = {name: weight.to_dense().astype(kind) for name, weight in weights.items()}
    options = with_carriage(carriage)
    data = nnr_codec.encode(model, options=options, factorizations=weights).data
    found = nnr_codec.decode(data)
    assert {values.dtype for values in found.values()} == {kind}
    assert [t.values.dtype for t in StreamDecoder().outline(data)] == [kind, kind]
    assert np.abs(found["w"].astype("f4") - model["w"].astype("f4")).max() < 0.01


@pytest.mark.parametrize("options", [EncodeOptions(lossless=True), EncodeOptions(exclude=("*",))])
def test_exact_factors(options: EncodeOptions) -> None:
    """Whatever represents them, parts of tensors included."""
    model, weights = mixture()
    values = np.array([0.1, 0.7, -3.3], np.float32)
    rng = np.random.default_rng(0)
    few = LowRank((40, 30), (rng.choice(values, (40, 9)), rng.choice(values, (9, 30))))
    arrays = {**dict(model.arrays()), "few": few.to_dense()}
    data = nnr_codec.encode(arrays, options=options, factorizations={**weights, "few": few}).data
    decoded = nnr_codec.decode(data)
    assert all(decoded[name].tobytes() == array.tobytes() for name, array in arrays.items())
    with nnr_codec.open(data) as stream:
        assert stream["few"].tobytes() == arrays["few"].tobytes()
    factors = nnr_codec.decode(data, layers="factorized")
    assert factors["few.factor0"].tobytes() == few.factors[0].tobytes()


def test_order_by_name() -> None:
    """A block of weight and bias stands where its least name does, factors by their own names."""
    weights = {"b.weight": random_factors("cp", (30, 20, 3)), "c": random_factors("cp", (9, 9, 3))}
    rng = np.random.default_rng(0)
    model = {"a.bias": rng.normal(0, 1, 40).astype("f4"), "a.norm": np.ones(3, np.float32)}
    model |= {"a.weight": rng.normal(0, 1, (40, 20)).astype("f4")}
    model |= {
        f"{i}.{n}": rng.normal(0, 1, s).astype("f4")
        for i in "pqrstuvwxyz"
        for n, s in (("bias", 9), ("norm", 2), ("weight", (9, 8)))
    }
    model |= {name: weight.to_dense() for name, weight in weights.items()}
    model = dict(sorted(model.items()))
    data = nnr_codec.encode(model, factorizations=weights).data
    assert b'"order":"name"' in data
    assert list(nnr_codec.decode(data)) == list(model)
    with nnr_codec.open(data) as stream:
        assert list(stream) == list(model)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_model(data: st.DataObject) -> None:
    """Any forms, shapes, sharing and tools come back in order and close to what they were."""
    weights: Weights = {}
    arrays: dict[str, np.ndarray] = {}
    for index in range(data.draw(st.integers(1, 5))):
        name = data.draw(st.sampled_from(["", "x.", "é"])) + f"t{index}"
        form = data.draw(st.sampled_from([*FORMS, "none"]))
        shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=4, max_size=4)))
        if form == "none":
            arrays[name] = np.ones(shape, np.float32)
            continue
        weight = random_factors(form, shape, index)
        earlier = [w for w in weights.values() if w.form == form and w.shape == shape]
        if earlier and weight.shared:
            factors = [
                earlier[0].factors[i] if i in weight.shared else factor
                for i, factor in enumerate(weight.factors)
            ]
            weight = type(weight)(shape, tuple(factors))
        weights[name], arrays[name] = weight, weight.to_dense()
    carriage = data.draw(st.sampled_from(CARRIAGES))
    options = dataclasses.replace(
        FINE,
        dq=data.draw(st.booleans()),
        scan_order=data.draw(st.integers(0, 2)),
        profile=data.draw(st.sampled_from([0, 1])),
        group=data.draw(st.booleans()),
    )
    stream = nnr_codec.encode(
        arrays, options=with_carriage(carriage, options), factorizations=weights
    ).data
    found = nnr_codec.decode(stream)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_allclose(found[name], array, atol=1e-3)


@pytest.mark.parametrize("scan_order", [0, 1, 4])
@pytest.mark.parametrize("rank", [1, 2, 40])
def test_blocks_in_block_rows(scan_order: int, rank: int) -> None:
    """With entry points; a G of one column has none."""
    rng = np.random.default_rng(0)
    factors = (rng.normal(0, 0.3, size).astype("f4") for size in ((200, rank), (rank, 60)))
    weight = LowRank((200, 60), tuple(factors))
    model = {"w": weight.to_dense()}
    options = EncodeOptions(qp=-50, scan_order=scan_order)
    data = nnr_codec.encode(model, options=options, factorizations={"w": weight}).data
    with ThreadPoolExecutor(2) as executor:
        found = nnr_codec.decode(data, executor=executor)
    np.testing.assert_allclose(found["w"], model["w"], atol=1e-2)


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_products_of_large_integers(carriage: Any) -> None:
    """Those that binary64 does not hold exactly too."""
    options = EncodeOptions(qp=-100)
    big = LowRank((2, 2), (np.full((2, 1), 3e4, "f4"), np.full((1, 2), 3e4, "f4")))
    model = {"w": big.to_dense()}
    data = nnr_codec.encode(
        model, options=with_carriage(carriage, options), factorizations={"w": big}
    ).data
    np.testing.assert_allclose(nnr_codec.decode(data)["w"], model["w"], rtol=1e-6)

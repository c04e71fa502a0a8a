"""Weights as factors in a stream: both carriages, dense and factorized, in order, one at a time."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.bitstream import DataUnit, PayloadType, parse_units
from nnr_codec.decoder import StreamDecoder
from nnr_codec.factorization.forms import CP, FORMS, FactoredWeight, JointRight, LowRank
from nnr_codec.model import Model, Parameter
from nnr_codec.unit_decoder import decode_data_unit

FINE = EncodeOptions(qp=-60)
Weights = dict[str, FactoredWeight]
CARRIAGES: list[Any] = ["dc", "factors"]


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


@pytest.mark.parametrize("carriage", CARRIAGES)
@pytest.mark.parametrize("profile", [0, 1])
def test_dense_decoding(carriage: Any, profile: Any) -> None:
    model, weights = mixture()
    options = dataclasses.replace(FINE, profile=profile)
    data = nnr_codec.encode(model, options=options, factorizations=weights, carriage=carriage).data
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
    data = nnr_codec.encode(model, options=FINE, factorizations=weights, carriage=carriage).data
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
    data = nnr_codec.encode(model, factorizations=weights, carriage="factors").data
    whole = nnr_codec.decode(data)
    found = nnr_codec.decode(data, only=only)
    assert list(found) == dense
    assert all(np.array_equal(found[name], whole[name]) for name in dense)
    assert list(nnr_codec.decode(data, only=only, layers="factorized")) == factorized
    for layers, names in (("dense", dense), ("factorized", factorized)):
        outline = StreamDecoder(only=only).outline(data, layers)  # type: ignore[arg-type]
        assert [tensor.name for tensor in outline] == names


def test_a_block_is_the_standards() -> None:
    weights = {"w": random_factors("lr", (8, 6, 3, 3))}
    model = {"w": weights["w"].to_dense()}
    data = nnr_codec.encode(model, factorizations=weights).data
    (record,) = [p.record for p in parse_units(data) if isinstance(p.record, DataUnit)]
    assert (record.payload_type, record.names) == (PayloadType.BLOCK, ["w_G", "w_H"])
    assert (record.decomposition_rank, record.g_number_of_rows) == (3, 8)
    assert record.tensor_dimensions == [8, 6, 3, 3]
    assert b"nnr_model_map" not in data
    as_tensors = nnr_codec.encode(model, factorizations=weights, carriage="factors").data
    assert len(data) < len(as_tensors)


@pytest.mark.parametrize("carriage", CARRIAGES)
@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_element_types(carriage: Any, dtype: str) -> None:
    weights = {"w": random_factors("lr", (8, 6)), "v": random_factors("cp", (4, 5, 3))}
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    model = {name: weight.to_dense().astype(kind) for name, weight in weights.items()}
    data = nnr_codec.encode(model, factorizations=weights, carriage=carriage).data
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


def test_options_of_a_weight_are_those_of_its_factors() -> None:
    weights = {f"{name}.weight": random_factors("lr", (30, 20)) for name in "ab"}
    model = {name: weight.to_dense() for name, weight in weights.items()}
    options = EncodeOptions(
        overrides=(("a.weight", {"qp": -20}), ("*.factor1", {"qp": -30})), exclude=("b*",)
    )
    report = nnr_codec.encode(model, options=options, factorizations=weights).report
    coarse, exact = report.tensors
    assert [factor.qp for factor in coarse.factors] == [-20, -30]
    assert exact.squared_error == 0 < coarse.squared_error
    assert report.unmatched == ()


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_report(carriage: Any) -> None:
    model, weights = mixture()
    seen = []
    result = nnr_codec.encode(
        model,
        factorizations=weights,
        carriage=carriage,
        progress=lambda tensor: seen.append(tensor.name),
    )
    report = result.report
    assert report.bytes == len(result.data or b"")
    assert [t.name for t in report.tensors] == [
        p.name for p in model.values() if p.size and p.tied_to is None
    ]
    by_name = {tensor.name: tensor for tensor in report.tensors}
    for name, weight in weights.items():
        tensor = by_name[name]
        assert (tensor.kind, tensor.shape) == (weight.form, weight.shape)
        assert tensor.original_bytes == 4 * tensor.elements
        assert tensor.bytes == sum(factor.bytes for factor in tensor.factors) > 0
    assert len(by_name["joint_right.2.weight"].factors) == 1
    assert "cp.weight.factor3" in seen


def test_target_size() -> None:
    weights = {"w": random_factors("lr", (300, 200)), "v": random_factors("cp", (40, 30, 3, 3))}
    model = {name: weight.to_dense() for name, weight in weights.items()}
    result = nnr_codec.encode(
        model, options=EncodeOptions(target_size=1500), factorizations=weights
    )
    assert 1300 < len(result.data or b"") <= 1500


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_series(carriage: Any) -> None:
    """Factors serve the contexts of factors, by their names; blocks have none."""
    model, weights = mixture()
    streams: list[bytes] = []
    for _ in range(3):
        result = nnr_codec.encode(model, factorizations=weights, carriage=carriage, parents=streams)
        streams.append(result.data or b"")
    first = nnr_codec.decode(streams[0])
    for count in (1, 2):
        found = nnr_codec.decode(streams[count], parents=streams[:count])
        assert all(np.array_equal(found[name], first[name]) for name in model)


def test_contexts_of_factors() -> None:
    weights = {"w": random_factors("tucker2", (100, 90, 3, 3))}
    model = {"w": weights["w"].to_dense()}
    base = nnr_codec.encode(model, factorizations=weights).data or b""
    update = nnr_codec.encode(model, factorizations=weights, parents=[base]).data or b""
    assert len(update) < 0.95 * len(base)
    assert np.array_equal(
        nnr_codec.decode(update, parents=[base])["w"], nnr_codec.decode(base)["w"]
    )


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


def test_factors_are_freed_with_the_last_weight_made_of_them() -> None:
    model, weights = mixture()
    data = nnr_codec.encode(model, factorizations=weights, carriage="factors").data or b""
    alive: list[weakref.ref[Any]] = []
    for tensor in StreamDecoder().tensors(data):
        if tensor.role == "dense" and tensor.name != "lr.weight":  # that one is tied
            alive.append(weakref.ref(tensor.values))
        del tensor
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 1  # the generator's own


class TestSharedFactorsOfOpenStreams:
    """Four weights of two that share a factor each, read one by one."""

    @pytest.fixture
    def data(self) -> bytes:
        pairs = {name: random_factors("joint_right", (6, 5, 3, 2), ord(name)) for name in "abcd"}
        for first, second in ("ac", "bd"):
            own, shared = pairs[second].factors[0], pairs[first].factors[1]
            pairs[second] = JointRight((6, 5, 3, 2), (own, shared))
        model = {name: weight.to_dense() for name, weight in pairs.items()}
        return nnr_codec.encode(model, options=FINE, factorizations=pairs).data or b""

    @pytest.fixture
    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """Counts how often each tensor is decoded."""
        counts: Counter[str] = Counter()

        def count(parsed: Any, *arguments: Any) -> Any:
            counts.update(parsed.record.names)
            return decode_data_unit(parsed, *arguments)

        monkeypatch.setattr("nnr_codec.stream.decode_data_unit", count)
        return counts

    @pytest.mark.parametrize("order", ["abcd", "dcba", "acbd", "aabbacd", "ac"])
    def test_they_are_decoded_once(self, order: str, data: bytes, decoded: Counter[str]) -> None:
        expected = nnr_codec.decode(data)
        with nnr_codec.open(data) as stream:
            for name in order:
                assert np.array_equal(stream[name], expected[name])
        assert decoded["a.factor1"] == 1
        assert decoded["b.factor1"] == ("b" in order)
        assert decoded["a.factor0"] == order.count("a")

    def test_each_time_that_all_weights_are_read(self, data: bytes, decoded: Counter[str]) -> None:
        with nnr_codec.open(data) as stream:
            for _ in range(3):
                for name in stream:
                    stream[name]
        assert decoded["a.factor1"] == decoded["b.factor1"] == 3

    def test_they_go_with_the_last_weight(
        self, data: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alive: dict[str, weakref.ref[Any]] = {}
        with nnr_codec.open(data) as stream:
            coded = stream._coded

            def noted(name: str) -> Any:
                values = coded(name)
                alive[name] = weakref.ref(values)
                return values

            monkeypatch.setattr(stream, "_coded", noted)
            for order, shared in (("a", {"a.factor1"}), ("b", {"a.factor1", "b.factor1"})):
                stream[order]
                gc.collect()
                assert {name for name, ref in alive.items() if ref() is not None} == shared
            stream["d"]
            stream["c"]
            gc.collect()
            assert all(ref() is None for ref in alive.values())
            stream["a"]
        gc.collect()
        assert all(ref() is None for ref in alive.values())

    def test_those_of_weights_that_are_not_read_are_not_kept(
        self, data: bytes, decoded: Counter[str]
    ) -> None:
        with nnr_codec.open(data, layers="factorized") as stream:
            for name in [*stream, *stream]:
                stream[name]
        assert decoded["a.factor1"] == 2


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
        arrays, options=options, factorizations=weights, carriage=carriage
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
        model, options=options, factorizations={"w": big}, carriage=carriage
    ).data
    np.testing.assert_allclose(nnr_codec.decode(data)["w"], model["w"], rtol=1e-6)


@pytest.mark.parametrize("carriage", CARRIAGES)
def test_weights_that_share_all_factors(carriage: Any) -> None:
    """Each brings one of its own, so that its place in the stream is told."""
    weight = random_factors("lr", (8, 6))
    again = LowRank(weight.shape, weight.factors)
    model = {name: weight.to_dense() for name in "abc"}
    data = nnr_codec.encode(
        model, factorizations={"a": weight, "b": again, "c": weight}, carriage=carriage
    ).data
    found = nnr_codec.decode(data)
    assert list(found) == ["a", "b", "c"]
    assert np.array_equal(found["a"], found["b"])
    assert np.array_equal(found["a"], found["c"])


@pytest.mark.parametrize("carriage", CARRIAGES)
@pytest.mark.parametrize("shared", [0, 1])
def test_low_rank_weights_that_share_a_factor(carriage: Any, shared: int) -> None:
    """A block's factors are no tensors that another weight could have: these are no blocks."""
    first, second, alone = (random_factors("lr", (8, 6), seed) for seed in range(3))
    factors = [first.factors[i] if i == shared else second.factors[i] for i in range(2)]
    weights = {"a": first, "b": LowRank((8, 6), tuple(factors)), "c": alone}
    model = {name: weight.to_dense() for name, weight in weights.items()}
    data = nnr_codec.encode(model, options=FINE, factorizations=weights, carriage=carriage).data
    found = nnr_codec.decode(data)
    for name, values in model.items():
        np.testing.assert_allclose(found[name], values, atol=1e-3)
    names = list(nnr_codec.decode(data, layers="factorized"))
    alone_names = ["c_G", "c_H"] if carriage == "dc" else ["c.factor0", "c.factor1"]
    assert names == ["a.factor0", "a.factor1", f"b.factor{1 - shared}", *alone_names]


class TestRefusals:
    WEIGHT = random_factors("lr", (6, 4))
    DENSE = WEIGHT.to_dense()

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            ({"v": DENSE}, "not in the model"),
            ({"w": DENSE.T.copy()}, r"\(4, 6\)"),
            ({"w": DENSE.astype(np.int32)}, "int32"),
            ({"w": DENSE, "w_G": DENSE}, "w_G"),
            ({"w": DENSE, "w.factor1": DENSE}, r"w\.factor1"),
        ],
    )
    def test_models(self, model: Any, reason: str) -> None:
        with pytest.raises(nnr_codec.InvalidModel, match=reason):
            nnr_codec.encode(model, factorizations={"w": self.WEIGHT})

    def test_names_of_factors(self) -> None:
        model = {"w": self.DENSE, "w.factor1": self.DENSE}
        with pytest.raises(nnr_codec.InvalidModel, match=r"w\.factor1"):
            nnr_codec.encode(model, factorizations={"w": self.WEIGHT}, carriage="factors")

    def test_ties(self) -> None:
        first = Parameter.from_array("w", self.DENSE)
        tied = dataclasses.replace(first, name="t", tied_to="w")
        with pytest.raises(nnr_codec.InvalidModel, match="tied"):
            nnr_codec.encode(Model([first, tied]), factorizations={"t": self.WEIGHT})

    def test_carriage(self) -> None:
        with pytest.raises(nnr_codec.InvalidOptions, match="carriage"):
            nnr_codec.encode({}, carriage="DC")  # type: ignore[arg-type]

    def test_values(self) -> None:
        bad = CP((2, 2, 2), tuple(np.full((2, 1), value, "f4") for value in (1, np.nan, 1)))
        with pytest.raises(nnr_codec.InvalidModel, match=r"w\.factor1.*NaN"):
            nnr_codec.encode({"w": np.zeros((2, 2, 2), "f4")}, factorizations={"w": bad})

"""Encoding weights as factors: what is written, reported and refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from factored_streams_support import CARRIAGES, mixture, random_factors, with_carriage

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.bitstream import DataUnit, PayloadType, parse_units
from nnr_codec.factorization.forms import CP, LowRank
from nnr_codec.model import Model, Parameter


def test_a_block_is_the_standards() -> None:
    weights = {"w": random_factors("lr", (8, 6, 3, 3))}
    model = {"w": weights["w"].to_dense()}
    data = nnr_codec.encode(model, factorizations=weights).data
    (record,) = [p.record for p in parse_units(data) if isinstance(p.record, DataUnit)]
    assert (record.payload_type, record.names) == (PayloadType.BLOCK, ["w_G", "w_H"])
    assert (record.decomposition_rank, record.g_number_of_rows) == (3, 8)
    assert record.tensor_dimensions == [8, 6, 3, 3]
    assert b"nnr_model_map" not in data
    options = with_carriage("factors")
    as_tensors = nnr_codec.encode(model, options=options, factorizations=weights).data
    assert len(data) < len(as_tensors)


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
        options=with_carriage(carriage),
        factorizations=weights,
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
        result = nnr_codec.encode(
            model, options=with_carriage(carriage), factorizations=weights, parents=streams
        )
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
        options = with_carriage("factors")
        with pytest.raises(nnr_codec.InvalidModel, match=r"w\.factor1"):
            nnr_codec.encode(model, options=options, factorizations={"w": self.WEIGHT})

    def test_ties(self) -> None:
        first = Parameter.from_array("w", self.DENSE)
        tied = dataclasses.replace(first, name="t", tied_to="w")
        with pytest.raises(nnr_codec.InvalidModel, match="tied"):
            nnr_codec.encode(Model([first, tied]), factorizations={"t": self.WEIGHT})

    def test_carriage(self) -> None:
        with pytest.raises(nnr_codec.InvalidOptions, match="carriage"):
            with_carriage("DC")

    def test_values(self) -> None:
        bad = CP((2, 2, 2), tuple(np.full((2, 1), value, "f4") for value in (1, np.nan, 1)))
        with pytest.warns(nnr_codec.NnrWarning, match=r"w\.factor1.*NaN.*exactly"):
            nnr_codec.encode({"w": np.zeros((2, 2, 2), "f4")}, factorizations={"w": bad})
        block = LowRank((2, 2), tuple(np.full(s, np.nan, "f4") for s in ((2, 1), (1, 2))))
        with pytest.raises(nnr_codec.InvalidModel, match=r"w\.factor0.*holds NaN"):
            nnr_codec.encode({"w": np.zeros((2, 2), "f4")}, factorizations={"w": block})

"""Forms that are chosen for the fewest bytes."""

from __future__ import annotations

import pytest
from decompose_support import MODEL, RESIDUAL, decomposed, forms, mixed_layers, options

import nnr_codec
from nnr_codec.checkpoints import open_checkpoint
from nnr_codec.decompose import decompose_model
from nnr_codec.decompose.algorithms.kernel import squared_error
from nnr_codec.decompose.auto_size import LARGER
from nnr_codec.model import Model


class TestAuto:
    @pytest.mark.parametrize("carriage", ["dc", "factors"])
    @pytest.mark.parametrize("density", [2, 4])
    def test_fewer_bytes_at_no_larger_error(self, carriage: str, density: int) -> None:
        model = mixed_layers()
        common = {"qp": -38 << density >> 2, "qp_density": density, "nonweight_qp": -75}
        overrides = (("low*", {"dq": False}),)
        plain = nnr_codec.encode(model, options=options(overrides=overrides, **common))
        chosen = options("auto", carriage=carriage, overrides=overrides, **common)
        auto = nnr_codec.encode(model, options=chosen)
        assert len(auto.data or b"") < 0.6 * len(plain.data or b"")
        before, after = nnr_codec.decode(plain.data), nnr_codec.decode(auto.data)
        for name, array in model.items():
            assert squared_error(array, after[name]) <= squared_error(array, before[name]), name
        assert not auto.report.unmatched
        found = decompose_model(Model.from_arrays(model), chosen)
        assert forms(found) == {"low.weight": "lr"}
        assert found.skipped["full.weight"] == LARGER

    def test_never_larger(self) -> None:
        with open_checkpoint(MODEL) as model:  # fewer outputs, which CP is quicker for
            smaller = {name: array[:16] for name, array in model.arrays()}
        for network in (smaller, RESIDUAL):
            plain = nnr_codec.encode(network, options=options(qp=-26))
            auto = nnr_codec.encode(network, options=options("auto", qp=-26))
            assert len(auto.data or b"") <= len(plain.data or b"")

    def test_factors_have_a_qp_of_their_own(self) -> None:
        model = mixed_layers()
        model["a[0]*.weight"] = model.pop("low.weight")
        chosen = options("auto", exclude=("first*", "full*", "kernel*"), qp=-30)
        found = decompose_model(Model.from_arrays(model), chosen)
        qps = [values["qp"] for _, values in found.overrides]
        result = nnr_codec.encode(model, options=chosen)
        (weight,) = [tensor for tensor in result.report.tensors if tensor.factors]
        assert [factor.qp for factor in weight.factors] == qps
        assert len(set(qps)) == 1
        assert qps[0] != chosen.qp

    def test_with_a_method_for_the_others(self) -> None:
        overrides = (("low*", {"decompose": "auto"}),)
        found = decomposed(mixed_layers(), "lr", rank=2, overrides=overrides)
        assert found.factorizations["full.weight"].ranks == (2,)
        assert found.factorizations["low.weight"].ranks == (6,)

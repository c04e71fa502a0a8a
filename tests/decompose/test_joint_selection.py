"""Which weights of a model share factors, at ratios, energies and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from decompose_support import STAGES, decomposed, forms, layers, options, parameters_of_stream

import nnr_codec
from nnr_codec import InvalidOptions
from nnr_codec.decompose.algorithms.kernel import squared_error
from nnr_codec.decompose.joint_selection import ALONE


class TestJoint:
    @pytest.mark.parametrize("scheme", ["right", "left", "binary"])
    def test_ratio(self, scheme: str, tmp_path: Any) -> None:
        chosen = options("joint", joint_scheme=scheme, compression_ratio=1.5)
        result = nnr_codec.encode(STAGES, options=chosen)
        before, after = parameters_of_stream(result.data or b"", tmp_path)
        assert 1.5 <= before / after < 1.65
        decoded = nnr_codec.decode(result.data)
        assert {n: a.shape for n, a in decoded.items()} == {n: a.shape for n, a in STAGES.items()}

    def test_a_ratio_without_groups(self) -> None:
        model = layers(a=(16, 12, 3, 3), b=(12, 16))
        with pytest.raises(InvalidOptions, match=r"compression_ratio: 2\.0: there is no group"):
            decomposed(model, "joint", compression_ratio=2.0)
        found = decomposed(model, "joint", rank=2)  # no ratio: what cannot be shared stays dense
        assert set(found.skipped.values()) == {ALONE}
        reached = (("a", {"decompose": "lr", "rank": 1}), ("b", {"decompose": "lr", "rank": 1}))
        found = decomposed(model, "joint", compression_ratio=1.5, overrides=reached)
        assert list(found.factorizations) == ["a", "b"]

    def test_the_ratio_within_reach_is_told(self) -> None:
        with pytest.raises(InvalidOptions, match=r"compression_ratio: 500") as caught:
            decomposed(STAGES, "joint", compression_ratio=500.0)
        most = float(caught.value.reason.split()[-3])
        found = decomposed(STAGES, "joint", compression_ratio=0.999 * most)
        assert {weight.ranks for weight in found.factorizations.values()} == {(1,)}
        with pytest.raises(InvalidOptions):
            decomposed(STAGES, "joint", compression_ratio=1.001 * most)

    def test_energy(self) -> None:
        found = decomposed(STAGES, "joint", energy=0.5)
        names = [f"layer2.{i}.conv" for i in range(3)]
        assert list(found.factorizations) == names
        left = sum(squared_error(STAGES[n], found.factorizations[n].to_dense()) for n in names)
        whole = sum(float(np.vdot(STAGES[n], STAGES[n])) for n in names)
        assert 0.5 <= 1 - left / whole < 0.55
        assert {found.skipped[n] for n in ("first", "layer1.0.conv", "fc")} == {ALONE}

    def test_overrides(self) -> None:
        overrides = (
            ("first", {"decompose": "none"}),  # so that it is not the first of the others
            ("layer2.1.*", {"decompose": "none"}),
        )
        found = decomposed(STAGES, "joint", rank=4, overrides=overrides)
        assert forms(found) == dict.fromkeys(["layer2.0.conv", "layer2.2.conv"], "joint_right")
        shared = [found.factorizations[f"layer2.{i}.conv"].factors[1] for i in (0, 2)]
        assert shared[0] is shared[1]
        found = decomposed(STAGES, "joint", rank=4, overrides=(("layer2*", {"rank": 6}),))
        assert {w.ranks for w in found.factorizations.values()} == {(6,)}
        alone = (("layer*", {"decompose": "joint", "rank": 5}),)
        found = decomposed(STAGES, overrides=alone)
        assert {w.ranks for w in found.factorizations.values()} == {(5,)}
        apart = (("layer2.1*", {"rank": 6}),)
        found = decomposed(STAGES, "joint", rank=4, overrides=apart)
        assert "layer2.1.conv" in found.skipped

"""Steps by the sizes of tensors, and by what vectors are for."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.encoding.step_sizes.by_size import is_clustered
from nnr_codec.encoding.step_sizes.vector_reach import variance_ranges, vector_reaches
from nnr_codec.encoding.survey import ModelSurvey, survey_model
from nnr_codec.model import Model

Arrays = dict[str, np.ndarray]
NORM = {"gamma": "bn.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


def normal(seed: int, deviation: float, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, deviation, shape).astype(np.float32)


def layers() -> Arrays:
    """Three layers, of 288, 4608 and 73728 weights, and a batch norm behind the second."""
    rng = np.random.default_rng(5)
    return {
        "first.weight": normal(1, 0.3, 32, 9),
        "conv.weight": normal(2, 0.1, 64, 72),
        "conv.bias": normal(3, 0.2, 64),
        "bn.weight": rng.uniform(0.5, 1.5, 64).astype(np.float32),
        "bn.bias": normal(4, 0.5, 64),
        "bn.running_mean": normal(6, 1, 64),
        "bn.running_var": rng.uniform(0.5, 2, 64).astype(np.float32),
        "last.weight": normal(7, 0.05, 256, 288),
    }


def clustered(values: np.ndarray) -> np.ndarray:
    """Return the values as 31 ones that no step says all of."""
    centres = np.quantile(values, np.linspace(0.01, 0.99, 31)).astype(np.float32)
    return centres[np.abs(values[..., None] - centres).argmin(-1)]


def qps(arrays: Arrays, **options: Any) -> dict[str, int | None]:
    result = nnr_codec.encode(arrays, options=EncodeOptions.preset("best", **options))
    return {tensor.name: tensor.qp for tensor in result.report.tensors}


def surveyed(arrays: Arrays) -> ModelSurvey:
    return survey_model(Model.from_arrays(arrays), {}, EncodeOptions.preset("best"))


class TestWeights:
    def test_large_ones_have_coarser_steps(self) -> None:
        found = qps(layers(), qp=-30)
        # 16 times as many elements: 4 * 0.45 octaves of 4 steps; the first one is at the bound.
        assert found["last.weight"] - found["conv.weight"] == pytest.approx(4 * 4 * 0.45, abs=1)
        assert found["first.weight"] < found["conv.weight"]

    def test_clustered_ones_keep_theirs(self) -> None:
        arrays = layers()
        for name in ("conv.weight", "last.weight"):
            arrays[name] = clustered(arrays[name])
        found = qps(arrays, qp=-30, codebook=False)
        assert found["conv.weight"] == found["last.weight"] == -30
        assert is_clustered(arrays["last.weight"].astype(np.float64).reshape(-1)[:2048])
        assert not is_clustered(np.zeros(2048))
        values = normal(0, 1, 2048)
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            assert not is_clustered(values.astype(dtype).astype(np.float64))

    def test_vectors_among_clustered_ones_are_coarser(self) -> None:
        values = layers()["last.weight"]
        arrays = {"last.weight": clustered(values), "last.bias": normal(3, 0.2, 256)}
        found = qps(arrays, qp=-30, codebook=False)
        assert found["last.weight"] == -30
        plain = qps(arrays | {"last.weight": values}, qp=-30, codebook=False)
        assert found["last.bias"] == plain["last.bias"] > -40

    def test_the_rate_counts_in_pruned_ones(self) -> None:
        arrays = layers()
        pruned = np.where(np.abs(arrays["last.weight"]) < 0.04, 0, arrays["last.weight"])
        arrays["last.weight"] = pruned.astype(np.float32)
        arrays["conv.bias"][:40] = 0

        def coded(preset: str, name: str, **options: Any) -> bytes:
            given = EncodeOptions.preset(preset, qp=-30, group=False, codebook=False, **options)
            alone = {n: a for n, a in arrays.items() if n == name}
            return nnr_codec.encode(alone, options=given).data

        with_rates = coded("best", "last.weight")
        assert len(with_rates) < len(coded("default", "last.weight"))
        assert with_rates == coded("default", "last.weight", lambda_scale=0.5)
        assert coded("best", "last.weight", lambda_scale=1) == coded(
            "default", "last.weight", lambda_scale=1
        )
        override = (("last.weight", {"lambda_scale": 0}),)
        assert coded("best", "last.weight", overrides=override) == coded("default", "last.weight")
        override = (("conv.bias", {"lambda_scale": 0}),)  # a vector, full of zeros
        assert coded("best", "conv.bias") == coded("best", "conv.bias", overrides=override)

    def test_the_mean_over_elements_is_the_options(self) -> None:
        arrays, found = layers(), qps(layers(), qp=-30)
        weights = [name for name in arrays if arrays[name].ndim == 2]
        sizes = [arrays[name].size for name in weights]
        assert np.average([found[n] for n in weights], weights=sizes) == pytest.approx(-30, abs=0.6)

    def test_how_large_they_are_does_not_matter(self) -> None:
        arrays = layers()
        arrays["conv.weight"] = 8 * arrays["conv.weight"]
        assert qps(arrays, qp=-40)["conv.weight"] == qps(layers(), qp=-40)["conv.weight"]

    def test_zeros_do_not_count(self) -> None:
        arrays = layers()
        arrays["last.weight"][8:] = 0
        sparse, dense = qps(arrays, qp=-40), qps(layers(), qp=-40)
        difference = sparse["last.weight"] - sparse["conv.weight"]
        assert difference < dense["last.weight"] - dense["conv.weight"] - 2

    def test_layers_of_one_size_have_one_step(self) -> None:
        """A small one among them promises too little."""
        arrays = {f"{i}.weight": normal(i, 0.1 + i, 128, 128) for i in range(8)}
        assert set(qps(arrays, qp=-30).values()) == {-30}
        arrays["small.weight"] = normal(9, 0.1, 12, 12)
        assert set(qps(arrays, qp=-30).values()) == {-30}
        del arrays["7.weight"], arrays["6.weight"], arrays["5.weight"]
        arrays |= {f"small{i}.weight": normal(i, 0.1, 24, 24) for i in range(8)}
        found = qps(arrays, qp=-30)
        assert found["small1.weight"] < found["1.weight"]

    def test_one_tensor_has_the_options_qp(self) -> None:
        assert qps({"w": normal(1, 0.1, 64, 64)}, qp=-30) == {"w": -30}

    def test_none_becomes_all_zero(self) -> None:
        arrays = layers()
        arrays["last.weight"] = arrays["last.weight"] / 100  # a step of the others is as large
        result = nnr_codec.encode(arrays, options=EncodeOptions.preset("best", qp=-46))
        (last,) = (t for t in result.report.tensors if t.name == "last.weight")
        assert last.squared_error < 0.3 * last.energy


class TestOptions:
    def test_is_off_by_default(self) -> None:
        arrays = layers()
        assert nnr_codec.encode(arrays, options=EncodeOptions()).data == (
            nnr_codec.encode(arrays, options=EncodeOptions.preset("best", allocation=False)).data
        )

    def test_a_given_qp_of_vectors_stays(self) -> None:
        found = qps(layers(), qp=-30, nonweight_qp=-50)
        assert {found[name] for name in ("conv.bias", *NORM.values())} == {-50}
        assert found["first.weight"] != -30

    def test_overrides_win(self) -> None:
        overrides = (("last.*", {"qp": -44}), ("bn.bias", {"qp": -60}))
        found = qps(layers(), qp=-30, overrides=overrides)
        assert (found["last.weight"], found["bn.bias"]) == (-44, -60)
        assert found["bn.weight"] != -75

    def test_a_target_size_moves_all(self) -> None:
        arrays = layers()
        near, far = (qps(arrays, target_size=size) for size in (40000, 60000))
        moved = {near[name] - far[name] for name in arrays}
        assert len(moved) == 1
        assert moved.pop() > 0

    def test_what_is_on_a_step_stays_exact(self) -> None:
        arrays = layers()
        arrays["conv.weight"] = np.round(arrays["conv.weight"] * 128) / 128
        best, usual = (
            nnr_codec.encode(arrays, options=EncodeOptions.preset(name)).report.tensors[1]
            for name in ("best", "default")
        )
        assert best == usual
        assert best.squared_error == 0

    def test_updates_keep_their_qp(self) -> None:
        first = nnr_codec.encode(layers(), options=EncodeOptions(profile=1)).data
        options = EncodeOptions.preset("best", qp=-30)
        report = nnr_codec.encode(layers(), options=options, parents=[first]).report
        assert {t.qp for t in report.tensors if t.name.startswith(("first", "last"))} == {-30}


class TestVectors:
    @pytest.mark.parametrize("role", NORM)
    def test_reach_tells_the_error_of_a_batch_norm(self, role: str) -> None:
        arrays = layers()
        reach = vector_reaches(surveyed(arrays))[NORM[role]]
        rng = np.random.default_rng(9)
        vectors = {r: arrays[name].astype(np.float64) for r, name in NORM.items()}
        noise = rng.normal(size=(4000, 64))
        inputs = vectors["mean"] + np.sqrt(vectors["var"]) * noise
        size = 1e-3
        changed = {**vectors, role: vectors[role] + size * rng.normal(size=(4000, 64))}

        def outputs(norm: dict[str, np.ndarray]) -> np.ndarray:
            return norm["gamma"] * (inputs - norm["mean"]) / np.sqrt(norm["var"]) + norm["beta"]

        error = ((outputs(changed) - outputs(vectors)) ** 2).mean()
        relative = error / (vectors["gamma"] ** 2).mean()
        assert relative == pytest.approx(64 * size**2 / reach**2, rel=0.15)

    def test_a_bias_in_front_of_a_batch_norm_is_a_mean(self) -> None:
        reaches = vector_reaches(surveyed(layers()))
        assert reaches["conv.bias"] == reaches["bn.running_mean"]

    def test_a_bias_alone_reaches_as_far_as_its_weights(self) -> None:
        arrays = {"fc.weight": normal(1, 1, 10, 50), "fc.bias": normal(2, 1e-3, 10)}
        norm = np.linalg.norm(arrays["fc.weight"])
        assert vector_reaches(surveyed(arrays))["fc.bias"] == pytest.approx(norm, rel=1e-5)

    def test_small_variances_need_fine_steps(self) -> None:
        arrays = layers()
        usual = qps(arrays, qp=-30)["bn.running_var"]
        arrays["bn.running_var"][::2] *= 0.05
        assert qps(arrays, qp=-30)["bn.running_var"] <= usual - 8

    def test_a_dead_channel_does_not_rule_the_step(self) -> None:
        arrays = layers()
        usual = qps(arrays, qp=-30)["bn.running_var"]
        arrays["bn.running_var"][7] = 0
        assert usual - 16 <= qps(arrays, qp=-30)["bn.running_var"] <= usual

    def test_without_a_scale_the_norm_counts(self) -> None:
        arrays = layers() | {"bn.weight": np.zeros(64, np.float32)}
        norm = np.linalg.norm(arrays["bn.running_mean"])
        assert vector_reaches(surveyed(arrays))["bn.running_mean"] == pytest.approx(norm, rel=1e-5)


class TestSmallVariances:
    """An error may turn one to 0: its channel is then many times as loud."""

    @staticmethod
    def with_small_variance(gamma: float) -> Arrays:
        arrays = layers()
        arrays["bn.running_var"][7] = 0.003
        arrays["bn.weight"][7] = gamma
        return arrays

    @pytest.mark.parametrize("qp", [-30, -20, -10])
    def test_none_is_lost(self, qp: int) -> None:
        arrays = self.with_small_variance(gamma=0.2)
        options = EncodeOptions.preset("best", qp=qp)
        decoded = nnr_codec.decode(nnr_codec.encode(arrays, options=options).data or b"")
        assert decoded["bn.running_var"][7] > 0.001

    def test_those_of_silent_channels_may_be_lost(self) -> None:
        loud, silent = (
            variance_ranges(surveyed(self.with_small_variance(gamma)))["bn.running_var"]
            for gamma in (0.2, 1e-6)
        )
        assert loud < 0.003 < 0.1 < silent

    def test_what_is_about_linear_is_in_range(self) -> None:
        arrays = layers()
        arrays["bn.running_var"][:] = 1.0
        step = variance_ranges(surveyed(arrays))["bn.running_var"]
        # (1 / sqrt(1 - e) - 1)² = 2 (e / 2)² at e = 0.43.
        assert 0.43 / np.sqrt(2) < step < 0.44

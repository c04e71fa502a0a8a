"""Tensors that a step would ruin, and those that exact coding makes no larger."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.errors import NnrWarning
from nnr_codec.factorization.forms import LowRank
from nnr_codec.options import DecompositionOptions

RNG = np.random.default_rng


def normal(scale: float, *shape: int, seed: int = 0) -> np.ndarray:
    return RNG(seed).normal(0, scale, shape).astype(np.float32)


def nmse(found: np.ndarray, values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    return float(((found.astype(np.float64) - wide) ** 2).sum() / (wide**2).sum())


def encoded(model: dict[str, np.ndarray], **options: Any) -> nnr_codec.EncodeResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NnrWarning)
        return nnr_codec.encode(model, options=EncodeOptions(**options))


SMALL = {
    "block scale": np.abs(normal(2e-4, 2, 3)),
    "lora": normal(1e-4, 256, 8),
    "layer scale": np.full(768, 1e-6, np.float32),
    "variances": np.abs(normal(1e-9, 64)),
    "tiny": normal(1e-20, 8, 8),
    "mixed": np.concatenate([normal(1e-6, 100), np.zeros(5, np.float32)]),
    "half": normal(1e-4, 40, 40).astype(np.float16),
    "wide": normal(1e-5, 30).astype(np.float64),
}


class TestMaxTensorError:
    @pytest.mark.parametrize("preset", ["default", "fast"])
    @pytest.mark.parametrize("name", SMALL)
    def test_small_values_come_back(self, name: str, preset: str) -> None:
        model = {"w": normal(1, 64, 64), name: SMALL[name]}
        with pytest.warns(NnrWarning) as caught:
            result = nnr_codec.encode(model, options=EncodeOptions.preset(preset))
        found = nnr_codec.decode(result.data)
        assert nmse(found[name], SMALL[name]) <= 0.02
        assert [repr(name) in str(warning.message) for warning in caught] == [True]
        assert [repr(name) in note for note in result.report.notes] == [True]

    @pytest.mark.parametrize("name", SMALL)
    def test_small_values_come_back_with_steps_of_their_own(self, name: str) -> None:
        """Or protected, as in other presets: what is fine enough anyway is not worth a note."""
        model = {"w": normal(1, 64, 64), name: SMALL[name]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NnrWarning)
            result = nnr_codec.encode(model, options=EncodeOptions.preset("best"))
        assert nmse(nnr_codec.decode(result.data)[name], SMALL[name]) <= 0.02

    def test_finer_or_exact(self) -> None:
        """Whichever is smaller."""
        rows = {t.name: t for t in encoded({**SMALL, "w": normal(1, 9, 9)}).report.tensors}
        assert rows["w"].qp == -38
        assert rows["lora"].kind == "dq"
        assert rows["lora"].qp < -38
        assert rows["lora"].nmse > 0.01  # no finer than it has to be

    @pytest.mark.parametrize("bound", [0.5, 1e-3, 1e-6])
    def test_a_bound(self, bound: float) -> None:
        model = {"a": normal(1e-3, 50, 50), "b": normal(1, 50, 50), "c": normal(1e-5, 70)}
        result = encoded(model, max_tensor_error=bound, qp=-20)
        for tensor in result.report.tensors:
            assert tensor.nmse <= bound
        found = nnr_codec.decode(result.data)
        assert all(nmse(found[name], values) <= bound for name, values in model.items())

    @pytest.mark.parametrize(
        "options",
        [{"qp": -37}, {"nonweight_qp": -70}, {"max_tensor_error": None}],
    )
    def test_else_nothing_is_protected_and_damage_is_told(self, options: dict[str, Any]) -> None:
        model = {f"small{i}": normal(1e-5, 40, 40, seed=i) for i in range(7)}
        model["w"] = normal(1, 20, 20)
        with pytest.warns(NnrWarning, match=r"7 tensors lost more than 10 %.*'small\d' \(100 %\)"):
            result = nnr_codec.encode(model, options=EncodeOptions(**options))
        (note,) = result.report.notes
        assert note.count("'small") == 5
        assert {t.kind for t in result.report.tensors} == {"dq"}

    def test_a_target_with_a_bound(self) -> None:
        model = {"small": normal(1e-4, 60, 60), "w": normal(1, 60, 60)}
        result = encoded(model, target_size=6000, max_tensor_error=0.05)
        assert result.report.bytes <= 6000
        assert all(tensor.nmse <= 0.05 for tensor in result.report.tensors)

    def test_an_override_wins(self) -> None:
        model = {"a.small": normal(1e-4, 40, 40), "b.small": normal(1e-4, 40, 40, seed=1)}
        overrides = (("a.*", {"qp": -30}),)
        rows = {t.name: t for t in encoded(model, overrides=overrides).report.tensors}
        assert (rows["a.small"].qp, rows["a.small"].nmse) == (-30, 1)
        assert rows["b.small"].nmse <= 0.02
        overrides = (("a.*", {"max_tensor_error": 1.0}), ("b.*", {"max_tensor_error": 1e-4}))
        rows = {t.name: t for t in encoded(model, overrides=overrides).report.tensors}
        assert rows["a.small"].qp == -38
        assert rows["b.small"].nmse <= 1e-4

    @pytest.mark.parametrize("carriage", ["dc", "factors"])
    def test_factors(self, carriage: Any) -> None:
        weight = LowRank((40, 30), (normal(1, 40, 2), normal(1e-4, 2, 30)))
        options = EncodeOptions(decomposition=DecompositionOptions(carriage=carriage))
        model = {"w": weight.to_dense()}
        with pytest.warns(NnrWarning, match=r"'w\.factor1'"):
            result = nnr_codec.encode(model, options=options, factorizations={"w": weight})
        assert nmse(nnr_codec.decode(result.data)["w"], model["w"]) <= 0.05

    def test_factors_that_no_qp_protects(self) -> None:
        """Their unit holds nothing that is not quantized: they get the least qp."""
        weight = LowRank((40, 30), (normal(1e3, 40, 2), normal(1e-12, 2, 30)))
        options = EncodeOptions(decomposition=DecompositionOptions(carriage="dc"))
        with pytest.warns(NnrWarning, match=r"'w\.factor1' .* coded at qp -128"):
            nnr_codec.encode(
                {"w": weight.to_dense()}, options=options, factorizations={"w": weight}
            )

    def test_zeros_and_ordinary_tensors_say_nothing(self, recwarn: Any) -> None:
        result = nnr_codec.encode({"z": np.zeros((30, 30), np.float32), "w": normal(0.05, 30, 30)})
        assert result.report.notes == ()
        assert len(recwarn) == 0

    def test_the_worst_is_named(self) -> None:
        model = {"large": normal(10, 50, 50), "bad": normal(2e-3, 40, 40)}
        report = encoded(model, max_tensor_error=None).report
        assert report.worst.name == "bad"
        assert report.nmse < 1e-6 < report.worst.nmse
        data = report.to_json()
        assert (data["worst_tensor"], data["worst_nmse"]) == ("bad", report.worst.nmse)
        assert encoded({}).report.worst is None

    @pytest.mark.parametrize("value", [-0.1, 1.5, 0, "some", float("nan")])
    def test_values_out_of_range(self, value: Any) -> None:
        with pytest.raises(nnr_codec.InvalidOptions) as caught:
            EncodeOptions(max_tensor_error=value)
        assert caught.value.option == "max_tensor_error"


class TestWhatNoStepCanSay:
    @pytest.mark.parametrize(
        ("value", "dtype"),
        [
            *((value, "float32") for value in (np.finfo("f4").min, -np.inf, np.nan, 1e20)),
            *((value, "float64") for value in (1e300, -np.inf, np.nan, 5e-324)),
            *((value, "bfloat16") for value in (3e38, np.inf, np.nan)),
            *((value, "float16") for value in (np.inf, np.nan)),
        ],
    )
    def test_it_comes_back(self, value: float, dtype: str) -> None:
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        mask = np.triu(np.full((4, 4), value), 1).astype(kind)
        result = encoded({"mask": mask, "w": normal(1, 8, 8)})
        found = nnr_codec.decode(result.data)
        assert found["mask"].tobytes() == mask.tobytes()
        assert "'mask'" in result.report.notes[0]
        assert nmse(found["w"], normal(1, 8, 8)) < 1e-4

    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"])
    @pytest.mark.parametrize("dq", [True, False])
    def test_types_do_not_overflow(self, dtype: str, dq: bool) -> None:
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        most = float(ml_dtypes.finfo(kind).max)
        values = RNG(0).uniform(-most, most, (40, 40))
        values[0], values[1] = most, -most
        values = values.astype(kind)
        for octaves in range(-3, 3):
            step = most * 2.0**octaves
            qp = int(4 * np.log2(step))
            if not -128 <= qp < 128:
                continue
            result = encoded({"w": values}, qp=qp, dq=dq, max_tensor_error=None)
            found = nnr_codec.decode(result.data)["w"].astype(np.float64)
            assert np.isfinite(found).all()
            # Twice the step: what a trellis may be off anyhow.
            assert np.abs(found - values.astype(np.float64)).max() <= 2 * 2.0 ** (qp / 4) * 1.2

    @pytest.mark.parametrize("target", [0.22, 0.15, 0.1, 0.05])
    def test_targets_are_met(self, target: float) -> None:
        values = normal(100, 128, 128)
        values = (values / np.abs(values).max() * 448).astype(ml_dtypes.float8_e4m3fn)
        assert encoded({"w": values}, target_size=target).report.bytes <= target * values.nbytes


def quantized_already(bits: int) -> np.ndarray:
    weights = normal(0.05, 64, 128)
    most = 2 ** (bits - 1) - 1
    scales = (np.abs(weights).max(1, keepdims=True) / most).astype(np.float32)
    return np.rint(weights / scales) * scales


COMPETING = {
    "bf16 norm": (1 + 0.2 * normal(1, 4096)).astype(ml_dtypes.bfloat16),
    "f16 norm": (1 + 0.2 * normal(1, 4096)).astype(np.float16),
    "f8": normal(0.2, 128, 128).astype(ml_dtypes.float8_e4m3fn),
    "f8 to 448": normal(100, 128, 128).astype(ml_dtypes.float8_e4m3fn),
    "bf16 of 3": normal(3, 128, 128).astype(ml_dtypes.bfloat16),
    "bf16 of 0.6": normal(0.6, 128, 128).astype(ml_dtypes.bfloat16),
    "grid": (RNG(0).integers(-127, 128, (128, 128)) * 0.0123).astype(np.float32),
    "clusters": RNG(1).normal(0, 1, 16).astype(np.float32)[RNG(2).integers(0, 16, (128, 128))],
    "channels of 4 bits": quantized_already(4),
    "channels of 8 bits": quantized_already(8),
    "variances": np.abs(normal(1e4, 4096)),
    "scalar": np.array(0.3, np.float32),
    "vector": np.full(3, 0.1, np.float32),
    "doubles": normal(1e6, 50).astype(np.float64),
    "ordinary": normal(0.05, 128, 128),
}


class TestExactCoding:
    @pytest.mark.parametrize("preset", ["default", "best", "fast"])
    @pytest.mark.parametrize("name", COMPETING)
    def test_quantizing_never_takes_more(self, name: str, preset: str) -> None:
        model = {"w": COMPETING[name]}
        usual = len(nnr_codec.encode(model, options=EncodeOptions.preset(preset)).data)
        options = EncodeOptions.preset(preset, lossless=True)
        exact = len(nnr_codec.encode(model, options=options).data)
        assert usual <= exact <= model["w"].nbytes + 300

    def test_what_is_quantized_already_is_recognized(self) -> None:
        names = ["grid", "clusters", "channels of 4 bits"]
        report = encoded({name: COMPETING[name] for name in names}).report
        assert [t.kind for t in report.tensors] == ["grid", "table", "groups"]
        assert report.nmse == 0

    def test_ordinary_weights_are_quantized(self) -> None:
        assert [t.kind for t in encoded({"w": COMPETING["ordinary"]}).report.tensors] == ["dq"]
        half = {"w": normal(0.05, 64, 64).astype(ml_dtypes.bfloat16)}
        assert [t.kind for t in encoded(half).report.tensors] == ["dq"]

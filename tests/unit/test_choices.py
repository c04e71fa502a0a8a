"""Choices for a whole stream: target sizes, automatic tools, presets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from two_layers_support import Arrays, two_layers

import nnr_codec
from nnr_codec import EncodeOptions, EncodeResult, InvalidOptions
from nnr_codec.bitstream import DataUnit, parse_units
from nnr_codec.encoding.targets import drafts
from nnr_codec.options import PRESETS


@pytest.fixture(scope="module")
def model() -> Arrays:
    return two_layers()


def encoded(model: Arrays, **options: Any) -> EncodeResult:
    return nnr_codec.encode(model, options=EncodeOptions(**options))


def size(model: Arrays, **options: Any) -> int:
    return len(encoded(model, **options).data or b"")


def original_bytes(model: Arrays) -> int:
    return sum(values.nbytes for values in model.values())


class TestTargetSize:
    @pytest.mark.parametrize("fraction", [0.06, 0.1, 0.2, 0.3, 0.5])
    def test_is_met_and_the_next_finer_is_too_large(self, model: Arrays, fraction: float) -> None:
        result = encoded(model, target_size=fraction)
        offset = result.report.qp_offset
        assert len(result.data or b"") == result.report.bytes <= fraction * original_bytes(model)
        assert result.data == encoded(model, qp=-38 + offset, nonweight_qp=-75 + offset).data
        finer = size(model, qp=-38 + offset - 1, nonweight_qp=-75 + offset - 1)
        assert finer > fraction * original_bytes(model)
        assert 1 < result.report.encodings <= 7

    def test_bytes(self, model: Arrays) -> None:
        at_default = size(model)
        assert encoded(model, target_size=at_default).report.qp_offset == 0
        assert encoded(model, target_size=at_default - 1).report.qp_offset > 0

    def test_finest(self, model: Arrays) -> None:
        report = encoded(model, target_size=10**9).report
        assert report.qp_offset == -128 + 75
        assert report.to_json()["qp_offset"] == -53
        # The finest is tried first, as the estimate says that any stream fits.
        assert report.encodings == report.to_json()["encodings"] == 1

    def test_unreachable_names_the_least(self, model: Arrays, tmp_path: Path) -> None:
        with pytest.raises(InvalidOptions, match=r"quantization takes \d+") as caught:
            nnr_codec.encode(model, tmp_path / "m.nnr", EncodeOptions(target_size=100))
        assert list(tmp_path.iterdir()) == []
        least = int(str(caught.value).split()[-1])
        assert encoded(model, target_size=least).report.bytes == least
        with pytest.raises(InvalidOptions):
            encoded(model, target_size=least - 1)

    def test_lossless_tensors_count(self, model: Arrays) -> None:
        target = 4 * 4800 + 8000
        result = encoded(model, target_size=target, exclude=("b.weight",))
        assert result.report.bytes <= target
        found = nnr_codec.decode(result.data or b"")
        np.testing.assert_array_equal(found["b.weight"], model["b.weight"])
        with pytest.raises(InvalidOptions):
            encoded(model, target_size=3 * 4800, exclude=("b.weight",))

    @pytest.mark.parametrize("empty", [{}, {"a": np.zeros((0, 3), np.float32)}])
    def test_no_elements(self, empty: Arrays) -> None:
        least = size(empty)
        assert encoded(empty, target_size=least).report.bytes == least
        with pytest.raises(InvalidOptions, match="target_size"):
            encoded(empty, target_size=least - 1)

    def test_values_that_leave_their_type(self) -> None:
        values = np.random.default_rng(0).normal(0, 15000, (100, 100)).clip(-65000, 65000)
        result = encoded({"w": values.astype(np.float16)}, target_size=0.05)
        assert result.report.bytes <= 0.05 * 2 * values.size
        assert np.isfinite(nnr_codec.decode(result.data)["w"]).all()

    @pytest.mark.parametrize("target", [300, 360, 1500])
    def test_what_is_so_coarse_that_it_overflows_no_more(self, target: int) -> None:
        values = np.random.default_rng(0).uniform(-65504, 65504, (60, 60)).astype(np.float16)
        assert encoded({"w": values}, target_size=target).report.bytes <= target

    @pytest.mark.parametrize("density", [2, 7])
    def test_overflow_ends_the_search_soon(
        self, density: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = np.random.default_rng(0).normal(0, 1e4, (128, 128)).clip(-65504, 65504)
        values[0, :8] = 65504  # at most steps, what decoders make of it is beyond the type
        begun = []
        encode_stream = drafts.encode_stream
        monkeypatch.setattr(
            drafts, "encode_stream", lambda *a: begun.append(0) or encode_stream(*a)
        )
        options = {"qp": 0, "nonweight_qp": 0, "qp_density": density, "target_size": 400}
        assert encoded({"w": values.astype(np.float16)}, **options).report.bytes <= 400
        assert len(begun) <= 18  # guesses, and halvings of all offsets

    @pytest.mark.parametrize("target", [np.int64(900_000), np.float32(0.5)])
    def test_numbers_of_numpy(self, target: Any) -> None:
        assert EncodeOptions(target_size=target).target_size == target

    def test_nothing_to_quantize(self) -> None:
        steps = {"steps": np.arange(300)}
        assert encoded(steps, target_size=size(steps)).report.bytes == size(steps)
        with pytest.raises(InvalidOptions, match=f"takes {size(steps)}$"):
            encoded(steps, target_size=size(steps) - 1)

    def test_overrides_move_with_it(self, model: Arrays) -> None:
        overrides = (("b.*", {"qp": -30}), ("a.bias", {"nonweight_qp": -60, "dq": False}))
        report = encoded(model, target_size=6000, overrides=overrides).report
        offset = report.qp_offset
        qps = {tensor.name: tensor.qp for tensor in report.tensors}
        wanted = {"a.weight": -38, "b.weight": -30, "a.bias": -60}
        assert {name: qps[name] for name in wanted} == {n: q + offset for n, q in wanted.items()}

    def test_an_override_at_its_limit_stays_there(self, model: Arrays) -> None:
        report = encoded(model, target_size=4500, overrides=(("a.bias", {"qp": 127}),)).report
        offset = report.qp_offset
        assert offset != 0
        qps = {tensor.name: tensor.qp for tensor in report.tensors}
        assert (qps["a.weight"], qps["a.bias"]) == (-38 + offset, 127)
        assert report.bytes <= 4500
        finest = EncodeOptions(overrides=(("a.bias", {"qp": -128}),)).with_offset(-5)
        assert (finest.qp, finest.for_tensor("a.bias").qp) == (-43, -128)

    @pytest.mark.parametrize("options", [{"lossless": True}, {"exclude": ("*",)}])
    def test_lossless_is_encoded_once(self, model: Arrays, options: dict[str, Any]) -> None:
        least = size(model, **options)
        seen: list[str] = []
        result = nnr_codec.encode(
            model,
            options=EncodeOptions(target_size=least, **options),
            progress=lambda tensor: seen.append(tensor.name),
        )
        assert len(seen) == len(model)
        assert (result.report.encodings, result.report.bytes) == (1, least)
        with pytest.raises(InvalidOptions, match=f"nothing is quantized: .* takes {least}$"):
            encoded(model, target_size=least - 1, **options)

    def test_density(self, model: Arrays) -> None:
        options = {"qp_density": 0, "qp": -9, "nonweight_qp": -18}
        report = encoded(model, target_size=6000, **options).report
        assert report.bytes <= 6000
        offset = report.qp_offset - 1
        assert size(model, qp_density=0, qp=-9 + offset, nonweight_qp=-18 + offset) > 6000

    def test_with_threads_and_parents(self, model: Arrays) -> None:
        base = encoded(model, qp=-20).data or b""
        with ThreadPoolExecutor(2) as executor:
            result = nnr_codec.encode(
                model,
                options=EncodeOptions(target_size=5000),
                parents=[base],
                executor=executor,
            )
        alone = nnr_codec.encode(model, options=EncodeOptions(target_size=5000), parents=[base])
        assert result.data == alone.data
        assert result.report.bytes <= 5000
        assert list(nnr_codec.decode(result.data or b"", parents=[base])) == list(model)

    @pytest.mark.parametrize("value", [0, -1, 0.0, float("nan"), float("inf"), "10%", True])
    def test_refusals(self, value: Any) -> None:
        with pytest.raises(InvalidOptions, match="target_size"):
            EncodeOptions(target_size=value)

    @pytest.mark.parametrize(
        ("name", "target", "most"),
        [("grids", 200, 3), ("constant", 0.05, 8), ("usual", 200, 8), ("rows", 0.05, 8)],
    )
    def test_few_streams(self, name: str, target: float, most: int) -> None:
        rng = np.random.default_rng(0)
        grids = rng.integers(-8, 8, (2, 60, 60)) * 2.0**-5
        usual = rng.normal(0, 0.05, 7196)
        rows = rng.normal(0, 0.05, (200, 60)) * (rng.random((200, 1)) < 0.1)
        models = {
            "grids": {"a": grids[0], "b.weight": grids[1]},
            "constant": {"a": np.full((60, 60), 0.1)},
            "usual": {
                "a.weight": usual[:4096].reshape(64, 64),
                "b.weight": usual[4096:7096].reshape(100, 30),
                "b.bias": usual[7096:],
            },
            "rows": {"a": rows},
        }
        seen: list[str] = []
        arrays = {tensor: values.astype(np.float32) for tensor, values in models[name].items()}
        report = nnr_codec.encode(
            arrays,
            options=EncodeOptions(target_size=target),
            progress=lambda tensor: seen.append(tensor.name),
        ).report
        assert len(seen) == len(arrays) * report.encodings
        assert report.encodings <= most

    def test_sizes_that_rise_where_values_lie_on_a_step(self) -> None:
        rng = np.random.default_rng(0)
        model = {
            "a": (rng.integers(-100, 100, (60, 60)) * 2.0**-9).astype(np.float32),
            "b.weight": rng.normal(0, 0.05, (60, 60)).astype(np.float32),
        }
        assert 0.97 * 8640 < encoded(model, target_size=8640).report.bytes <= 8640

    def test_progress_counts_every_encoding(self, model: Arrays) -> None:
        seen: list[str] = []
        options = EncodeOptions(target_size=6000)
        report = nnr_codec.encode(
            model, options=options, progress=lambda tensor: seen.append(tensor.name)
        ).report
        assert len(seen) == len(model) * report.encodings


def pruned(rows: float) -> Arrays:
    """Many rows of zeros between dense ones."""
    rng = np.random.default_rng(2)
    model = {}
    for i in range(3):
        values = rng.normal(0, 0.05, (200, 300)).astype(np.float32)
        values[rng.random(200) < rows] = 0
        model[f"l{i}.weight"] = values
        model[f"l{i}.bias"] = rng.normal(0, 1, 200).astype(np.float32)
    return model


class TestRowSkipping:
    def test_pays_with_rows_of_zeros(self) -> None:
        model = pruned(0.5)
        chosen = encoded(model, qp=-24)
        off, on = (encoded(model, qp=-24, row_skipping=flag) for flag in (False, True))
        assert (chosen.report.profile, off.report.profile) == (1, 0)
        assert chosen.data == on.data
        assert chosen.report.bytes < off.report.bytes
        found, expected = (nnr_codec.decode(r.data or b"") for r in (chosen, off))
        assert all(np.array_equal(found[name], expected[name]) for name in model)

    def test_ordinary_models_are_encoded_once(self, model: Arrays) -> None:
        seen: list[str] = []
        result = nnr_codec.encode(model, progress=lambda tensor: seen.append(tensor.name))
        assert result.report.profile == 0
        assert len(seen) == len(model)

    def test_updates_of_profile_0_are_refused_before_tensors_are_read(self, model: Arrays) -> None:
        damaged = {**model, "damaged": np.full(3, np.nan, np.float32)}
        options, parent = EncodeOptions(profile=0), encoded(model).data
        with pytest.raises(InvalidOptions, match="profile 1"):
            nnr_codec.encode(damaged, options=options, parents=[parent])

    def test_a_profile_is_obeyed(self) -> None:
        model = pruned(0.5)
        forced = encoded(model, profile=0)
        assert forced.report.profile == 0
        assert forced.data == encoded(model, row_skipping=False).data
        assert encoded(model, profile=1).data == encoded(model, row_skipping=True).data

    def test_not_where_a_tensor_must_not(self) -> None:
        overrides = (("*", {"row_skipping": False}),)
        assert encoded(pruned(0.5), overrides=overrides).report.profile == 0

    def test_a_target_size_has_it_too(self) -> None:
        report = encoded(pruned(0.5), target_size=50_000).report
        assert report.profile == 1
        assert report.bytes <= 50_000


class TestCodebook:
    def codebooks(self, values: np.ndarray, **options: Any) -> list[int | None]:
        data = encoded({"w": values}, **options).data or b""
        with nnr_codec.open(data) as stream:
            return [tensor.codebook_size for tensor in stream.info().tensors]

    def test_clustered_weights(self) -> None:
        rng = np.random.default_rng(1)
        centres = rng.normal(0, 0.5, 9).astype(np.float32)
        values = rng.choice(centres, (60, 60)) + rng.normal(0, 1e-6, (60, 60)).astype(np.float32)
        assert self.codebooks(values, dq=False) == [9]
        assert self.codebooks(values, dq=False, codebook=False) == [None]
        assert self.codebooks(values) == [None]  # dependent quantization
        off, on = (size({"w": values}, dq=False, codebook=flag) for flag in (False, "auto"))
        assert on < off

    def test_in_a_block(self) -> None:
        rng = np.random.default_rng(1)
        weight = rng.choice(rng.normal(0, 0.5, 9), (60, 60)) + rng.normal(0, 1e-6, (60, 60))
        weight = weight.astype(np.float32)
        model = {"a.weight": weight, "a.bias": rng.normal(0, 0.5, 60).astype(np.float32)}
        grouped, alone = (encoded(model, dq=False, group=flag) for flag in (True, False))
        assert grouped.report.bytes < alone.report.bytes
        found, expected = (nnr_codec.decode(r.data or b"") for r in (grouped, alone))
        assert all(np.array_equal(found[name], expected[name]) for name in model)

    def test_vectors_with_codebooks_stay_out_of_blocks(self) -> None:
        """There they could have none."""
        rng = np.random.default_rng(1)
        weight = rng.normal(0, 0.5, (60, 60)).astype(np.float32)
        model = {"a.weight": weight, "a.bias": np.full(60, 1.1, np.float32)}
        model["a.bias"][::7] += np.float32(2.0**-23)  # else it is a grid
        assert encoded(model, dq=False).data == encoded(model, dq=False, group=False).data
        model["a.bias"] = rng.normal(0, 0.5, 60).astype(np.float32)
        assert size(model) < size(model, group=False)

    def test_unary_length_is_that_of_the_indices(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.choice(np.arange(12) * 1000 - 6000, (200, 100)).astype(np.float32)
        model = {"w": values * np.float32(2**-9.5)}
        assert size(model, dq=False) <= 1.01 * size(model, dq=False, unary_length=8)

    @pytest.mark.parametrize("options", [{"lossless": True}, {"dq": False}, {"dq": True}])
    def test_exact_steps_obey_the_option(self, options: dict[str, Any]) -> None:
        rng = np.random.default_rng(1)
        values = (rng.choice([-900, -17, 0, 250, 803], (60, 60)) * 2.0**-9).astype(np.float32)
        options = {**options, "qp": -20}  # too coarse for them
        assert self.codebooks(values, **options) == [5]
        assert self.codebooks(values, **options, codebook=False) == [None]
        overrides = (("w", {"codebook": False}),)
        assert self.codebooks(values, **options, overrides=overrides) == [None]

    def test_without_a_codebook_lossless_takes_the_next_best(self) -> None:
        """A table in the model map takes hardly more, integers as they are twice as much."""
        rng = np.random.default_rng(1)
        values = (rng.choice([-900, -17, 0, 250, 803], (60, 60)) * 2.0**-9).astype(np.float32)
        off, on = (encoded({"w": values}, lossless=True, codebook=flag) for flag in (False, True))
        assert [t.kind for r in (off, on) for t in r.report.tensors] == ["table", "step"]
        assert on.report.bytes < off.report.bytes < 1.2 * on.report.bytes

    @pytest.mark.parametrize("magnitude", [0.05, 1e6])
    def test_not_for_ordinary_weights(self, magnitude: float) -> None:
        values = np.random.default_rng(1).normal(0, magnitude, (60, 60)).astype(np.float32)
        assert self.codebooks(values, dq=False) == [None]


class TestPresets:
    def test_default_is_the_default(self) -> None:
        assert EncodeOptions.preset("default") == EncodeOptions()

    def test_changes_win(self) -> None:
        options = EncodeOptions.preset("best", lambda_scale=0.0, qp=-30)
        assert (options.lambda_scale, options.qp) == (0.0, -30)

    def test_unknown(self) -> None:
        with pytest.raises(InvalidOptions, match="default, fast, best"):
            EncodeOptions.preset("placebo")
        with pytest.raises(InvalidOptions, match="qp"):
            EncodeOptions.preset("fast", qp=1000)

    @pytest.mark.parametrize("name", PRESETS)
    def test_round_trip(self, model: Arrays, name: str) -> None:
        data = nnr_codec.encode(model, options=EncodeOptions.preset(name)).data or b""
        found = nnr_codec.decode(data)
        assert list(found) == list(model)
        assert np.abs(found["a.weight"] - model["a.weight"]).max() < 0.005

    def test_rates_have_less_error_in_as_many_bytes(self, model: Arrays) -> None:
        target = 3000
        plain = encoded(model, target_size=target, qp_density=4, qp=-152, nonweight_qp=-300)
        changes = {"qp_density": 4, "qp": -152, "nonweight_qp": -300, "target_size": target}
        rated = nnr_codec.encode(model, options=EncodeOptions(lambda_scale=1.0, **changes))
        assert rated.report.bytes <= target
        assert rated.report.nmse < 0.99 * plain.report.nmse

    @pytest.mark.parametrize(
        ("qp", "rate", "gap"), [(-10, 0.0, 0.9), (-6, 0.0, 1.15), (-7, 1.0, 0.9)]
    )
    def test_best_is_near_the_bound(self, qp: int, rate: float, gap: float) -> None:
        """Of normal weights; in dB above the distortion of that rate. NNCodec: 0.92 and 1.23."""
        weights = np.random.default_rng(3).normal(size=(500, 1000)).astype(np.float32)
        options = EncodeOptions.preset("best", qp=qp, lambda_scale=rate, max_tensor_error=None)
        (tensor,) = nnr_codec.encode({"w": weights}, options=options).report.tensors
        bits = 8 * tensor.bytes / weights.size
        bound = 2.0 ** (-2 * bits) * tensor.energy
        assert 10 * np.log10(tensor.squared_error / bound) < gap

    def test_fast_is_no_smaller(self, model: Arrays) -> None:
        fast = nnr_codec.encode(model, options=EncodeOptions.preset("fast")).report
        assert fast.bytes > size(model)
        assert fast.nmse == encoded(model).report.nmse

    def test_fast_tries_no_contexts_of_parents(self, model: Arrays) -> None:
        """A unit encoded with the integers of the stream before would be another one."""
        base = encoded(model).data or b""

        def update(**changes: Any) -> list[int | None]:
            options = EncodeOptions.preset("fast", **changes)
            data = nnr_codec.encode(model, options=options, parents=[base]).data or b""
            records = [parsed.record for parsed in parse_units(data)]
            parents = [record.parent for record in records if isinstance(record, DataUnit)]
            return [parent.temporal_context_modeling_flag for parent in parents if parent]

        assert update() == []
        assert set(update(temporal_contexts=True)) == {1}


def test_errors_of_float64_are_those_of_its_values() -> None:
    values = np.random.default_rng(0).normal(0, 1, (50, 50))
    result = encoded({"w": values}, qp=-127)
    error = ((nnr_codec.decode(result.data or b"")["w"] - values) ** 2).sum()
    assert result.report.tensors[0].squared_error == pytest.approx(error)

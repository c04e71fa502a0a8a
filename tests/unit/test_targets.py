"""Targets of bits and of quality: the smallest stream that meets them, in few streams, or none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from two_layers_support import Arrays, two_layers

import nnr_codec
from conformance.models.digits import accuracy
from nnr_codec import EncodeOptions, EncodeResult, InvalidOptions, TargetNotReached
from nnr_codec.options.targets import TARGETS

DIGITS = Path(__file__).parents[2] / "conformance" / "models" / "digits_cnn.safetensors"


@pytest.fixture(scope="module")
def model() -> Arrays:
    return two_layers()


def encoded(model: Any, evaluate: Any = None, resume: Any = None, **options: Any) -> EncodeResult:
    return nnr_codec.encode(
        model, options=EncodeOptions(**options), evaluate=evaluate, resume=resume
    )


def offsets(result: EncodeResult) -> list[int]:
    assert result.report.search is not None
    return [seen.qp_offset for seen in result.report.search.evaluations]


class TestOptions:
    @pytest.mark.parametrize("name", TARGETS)
    def test_one_at_a_time(self, name: str) -> None:
        other = "max_nmse" if name == "target_size" else "target_size"
        assert EncodeOptions(**{name: 0.5}).target == name
        with pytest.raises(InvalidOptions, match="leave one out"):
            EncodeOptions(**{name: 0.5, other: 0.25})

    @pytest.mark.parametrize("name", TARGETS)
    @pytest.mark.parametrize("value", [0, -1.0, float("nan"), "1", True])
    def test_refusals(self, name: str, value: Any) -> None:
        with pytest.raises(InvalidOptions, match=name):
            EncodeOptions(**{name: value})

    @pytest.mark.parametrize("name", TARGETS)
    def test_an_offset_has_no_target(self, name: str) -> None:
        options = EncodeOptions(**{name: 0.5}, qp=-20)
        assert options.without_target() == EncodeOptions(qp=-20)
        assert options.with_offset(3).target is None
        assert options.with_offset(3).qp == -17

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_drop": 1}, "max_drop: needs evaluate"),
            ({"max_kl": 1}, "max_kl: needs a module and batches"),
            ({"max_nmse": 0.1, "evaluate": len}, "evaluate: has no effect"),
            ({"evaluate": len}, "evaluate: has no effect"),
        ],
    )
    def test_what_measures_it(self, model: Arrays, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidOptions, match=message):
            encoded(model, **options)


class TestBits:
    @pytest.mark.parametrize("bits", [1.5, 2.5, 6.0])
    def test_is_the_report_s_bits(self, model: Arrays, bits: float) -> None:
        report = encoded(model, target_bits=bits).report
        assert report.bits_per_weight <= bits
        offset = report.qp_offset
        finer = encoded(model, qp=-39 + offset, nonweight_qp=-76 + offset).report
        assert finer.bits_per_weight > bits

    def test_is_a_target_size(self, model: Arrays) -> None:
        elements = sum(values.size for values in model.values())
        by_size = encoded(model, target_size=3 * elements // 8)
        assert encoded(model, target_bits=3).data == by_size.data

    def test_out_of_reach(self, model: Arrays) -> None:
        with pytest.raises(TargetNotReached, match=r"^target_bits: \d+ bytes cannot be reached"):
            encoded(model, target_bits=0.01)


class TestError:
    @pytest.mark.parametrize("bound", [1e-5, 1e-3, 0.01, 0.1])
    def test_is_met_and_not_by_the_next_coarser(self, model: Arrays, bound: float) -> None:
        result = encoded(model, max_nmse=bound)
        report, offset = result.report, result.report.qp_offset
        assert report.nmse <= bound
        assert result.data == encoded(model, qp=-38 + offset, nonweight_qp=-75 + offset).data
        assert encoded(model, qp=-37 + offset, nonweight_qp=-74 + offset).report.nmse > bound
        assert report.encodings == len(offsets(result)) <= 6
        assert offsets(result)[0] == 0

    def test_the_report_has_the_table(self, model: Arrays) -> None:
        report = encoded(model, max_nmse=0.01).report
        found = report.to_json()["search"]
        assert (found["target"], found["bound"], found["kept"]) == (
            "max_nmse",
            0.01,
            report.qp_offset,
        )
        (kept,) = [row for row in found["evaluations"] if row["qp_offset"] == found["kept"]]
        assert (kept["bytes"], kept["loss"]) == (report.bytes, pytest.approx(report.nmse))
        assert kept["bits_per_weight"] == report.bits_per_weight
        assert json.loads(json.dumps(found)) == found
        assert encoded(model).report.to_json()["search"] is None

    @pytest.mark.parametrize("qp", [-100, 0, 10])
    def test_wherever_it_begins(self, model: Arrays, qp: int) -> None:
        result = encoded(model, max_nmse=0.01, qp=qp, nonweight_qp=min(qp, -75))
        assert 0.005 < result.report.nmse <= 0.01
        assert len(offsets(result)) <= 9

    def test_weights_in_factors(self) -> None:
        rng = np.random.default_rng(0)
        low = (rng.normal(0, 1, (60, 4)) @ rng.normal(0, 1, (4, 60))).astype(np.float32)
        decomposition = nnr_codec.options.DecompositionOptions("lr", rank=4)
        report = encoded({"a": low, "b": low}, max_nmse=0.001, decomposition=decomposition).report
        assert report.tensors[1].kind == "lr"
        assert report.search is not None
        kept = {seen.qp_offset: seen for seen in report.search.evaluations}[report.qp_offset]
        assert report.nmse == pytest.approx(kept.loss)
        assert 0.0003 < report.nmse <= 0.001
        assert kept.nmse != pytest.approx(report.nmse, rel=0.01)  # that of the factors

    def test_out_of_reach(self, model: Arrays, tmp_path: Path) -> None:
        with pytest.raises(TargetNotReached) as caught:
            nnr_codec.encode(model, tmp_path / "m.nnr", EncodeOptions(max_nmse=1e-20))
        message = r"max_nmse: 1e-20 cannot be reached: the least is .*, with a qp offset of -53 and"
        assert caught.match(message)
        assert list(tmp_path.iterdir()) == []

    def test_nothing_to_quantize(self) -> None:
        result = encoded({"steps": np.arange(300)}, max_nmse=0.1)
        assert (offsets(result), result.report.nmse) == ([0], 0.0)

    def test_what_overflows_is_too_coarse(self) -> None:
        values = np.random.default_rng(0).normal(0, 1e4, (128, 128)).clip(-65504, 65504)
        values[0, :8] = 65504
        half = values.astype(np.float16)
        report = encoded({"w": half}, max_nmse=0.5, qp=0, nonweight_qp=0).report
        assert 0 < report.nmse <= 0.5
        assert report.search is not None
        failed = [seen for seen in report.search.evaluations if seen.failure is not None]
        assert all(seen.loss is None for seen in failed)

    def test_threads_change_nothing(self, model: Arrays) -> None:
        from concurrent.futures import ThreadPoolExecutor

        options = EncodeOptions(max_nmse=0.003)
        with ThreadPoolExecutor(2) as executor:
            parallel = nnr_codec.encode(model, options=options, executor=executor)
        assert parallel.data == encoded(model, max_nmse=0.003).data

    def test_one_survey_for_all(self, model: Arrays) -> None:
        done: dict[str, int] = {}

        def count(stage: str, elements: int) -> None:
            done[stage] = done.get(stage, 0) + elements

        report = nnr_codec.encode(
            model, options=EncodeOptions(max_nmse=0.01), on_stage=count
        ).report
        elements = report.elements
        assert done["surveyed"] == elements
        assert done["coded"] == done["measured"] == report.encodings * elements


class _Counted:
    """A score, and how often it was asked for."""

    def __init__(self, score: Any) -> None:
        self.calls = 0
        self._score = score

    def __call__(self, tensors: Mapping[str, np.ndarray]) -> Any:
        self.calls += 1
        return self._score(tensors)


class TestDrop:
    @pytest.mark.parametrize(("bound", "qp"), [(0.5, -38), (0.5, 10)])
    def test_of_a_real_network(self, bound: float, qp: int) -> None:
        score = _Counted(accuracy)
        result = encoded(str(DIGITS), score, max_drop=bound, qp=qp, max_tensor_error=None)
        whole, found = (accuracy(nnr_codec.decode(data)) for data in (_exact(), result.data))
        assert whole - found <= bound
        assert score.calls == len(offsets(result)) + 1 <= 8
        offset = result.report.qp_offset
        coarser = encoded(str(DIGITS), qp=qp + offset + 1, nonweight_qp=-75 + offset + 1)
        assert whole - accuracy(nnr_codec.decode(coarser.data or b"")) > bound
        assert result.report.search is not None
        assert result.report.search.reference == whole

    def test_what_saturates_ends_within_the_calls(self, model: Arrays) -> None:
        """All or nothing, far from where the search begins: no line leads there."""
        weight = model["a.weight"]

        def works(tensors: Mapping[str, np.ndarray]) -> bool:
            return bool(np.abs(tensors["a.weight"] - weight).max() < 1e-5)

        score = _Counted(works)
        result = encoded(model, score, max_drop=0.5)
        assert works(nnr_codec.decode(result.data or b""))
        assert score.calls <= 8

    def test_out_of_calls_is_told(self, model: Arrays) -> None:
        weight = model["a.weight"]
        score = _Counted(lambda tensors: np.abs(tensors["a.weight"] - weight).max() < 1e-3)
        options = {"qp_density": 7, "qp": -2000, "nonweight_qp": -2000}
        with pytest.warns(nnr_codec.NnrWarning, match="a smaller one may be within it"):
            result = encoded(model, score, max_drop=0.5, **options)
        assert score.calls == 8
        assert len(offsets(result)) == 7

    def test_out_of_reach_names_the_least(self, model: Arrays) -> None:
        scores = iter([1.0])
        with pytest.raises(TargetNotReached, match=r"the least is 0\.75, with a qp offset of"):
            encoded(model, lambda tensors: next(scores, 0.25), max_drop=0.5)

    @pytest.mark.parametrize("returned", ["good", None, [1, 2], {}])
    def test_no_number(self, model: Arrays, returned: Any) -> None:
        with pytest.raises(InvalidOptions, match=r"evaluate: returns .*, not one number"):
            encoded(model, lambda tensors: returned, max_drop=1)

    def test_no_finite_score(self, model: Arrays) -> None:
        with pytest.raises(InvalidOptions, match="evaluate: returns nan of the model itself"):
            encoded(model, lambda tensors: float("nan"), max_drop=1)
        scores = iter([1.0, float("nan"), 1.0])
        report = encoded(model, lambda tensors: next(scores, 0.0), max_drop=0.5).report
        assert report.search is not None
        assert report.search.evaluations[0].loss == float("inf")
        assert report.to_json()["search"]["evaluations"][0]["loss"] is None
        assert report.qp_offset == report.search.evaluations[1].qp_offset


def _exact() -> bytes:
    return encoded(str(DIGITS), lossless=True).data or b""


class _Stops(Exception):
    """Stands for an interruption."""


class TestResume:
    def interrupted(self, model: Arrays, path: Path, calls: int, **options: Any) -> None:
        def score(tensors: Mapping[str, np.ndarray]) -> float:
            nonlocal calls
            if not calls:
                raise _Stops
            calls -= 1
            return _closeness(tensors)

        with pytest.raises(_Stops):
            encoded(model, _like_closeness(score), path, **options)

    @pytest.mark.parametrize("calls", [1, 2, 4])
    def test_goes_on_where_it_was(self, model: Arrays, tmp_path: Path, calls: int) -> None:
        path, options = tmp_path / "log.json", {"max_drop": 0.004}
        whole = _Counted(_closeness)
        expected = encoded(model, _like_closeness(whole), **options)
        assert whole.calls > calls
        self.interrupted(model, path, calls, **options)
        assert path.exists()
        again = _Counted(_closeness)
        result = encoded(model, _like_closeness(again), path, **options)
        assert again.calls == whole.calls - calls
        assert result.data == expected.data
        assert result.report.search is not None
        assert result.report.search.resumed == calls - 1
        assert offsets(result) == offsets(expected)
        assert not path.exists()

    @pytest.mark.parametrize("other", ["model", "options", "score"])
    def test_another_search_begins_anew(self, model: Arrays, tmp_path: Path, other: str) -> None:
        path, options = tmp_path / "log.json", {"max_drop": 0.004}
        self.interrupted(model, path, 3, **options)
        score = _like_closeness(_Counted(_closeness))
        if other == "model":
            model = {**model, "a.bias": model["a.bias"] + 1}
        elif other == "options":
            options["lambda_scale"] = 1.0
        else:
            score.fingerprint = "another"
        result = encoded(model, score, path, **options)
        assert result.report.search is not None
        assert result.report.search.resumed == 0

    def test_a_log_of_other_streams_is_dropped(self, model: Arrays, tmp_path: Path) -> None:
        path, options = tmp_path / "log.json", {"max_drop": 0.004}
        expected = encoded(model, _closeness, **options)
        self.interrupted(model, path, 5, **options)
        entry = json.loads(path.read_text())
        for seen in entry["evaluations"]:
            seen["bytes"] -= 1
            seen["loss"] = 0.0  # so that none of them exceeds
        path.write_text(json.dumps(entry))
        result = encoded(model, _like_closeness(_closeness), path, **options)
        assert result.data == expected.data

    def test_out_of_reach_leaves_nothing(self, model: Arrays, tmp_path: Path) -> None:
        path = tmp_path / "log.json"
        with pytest.raises(TargetNotReached):
            encoded(model, resume=path, max_nmse=1e-20)
        assert not path.exists()

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "other"}'])
    def test_another_file_is_kept(self, model: Arrays, tmp_path: Path, text: str) -> None:
        path = tmp_path / "log.json"
        path.write_text(text)
        with pytest.raises(InvalidOptions, match=r"resume: .*log.json.* is not what a search"):
            encoded(model, resume=path, max_nmse=0.1)
        assert path.read_text() == text

    def test_no_file_without_a_target(self, model: Arrays, tmp_path: Path) -> None:
        encoded(model, resume=tmp_path / "missing" / "log.json")


def _closeness(tensors: Mapping[str, np.ndarray]) -> float:
    rng = np.random.default_rng(8)
    return -float(np.abs(tensors["a.weight"] - rng.laplace(0, 0.05, (120, 60))).max())


class _like_closeness:  # noqa: N801
    """A score that counts as the same, whoever computes it."""

    def __init__(self, score: Any) -> None:
        self.fingerprint = "closeness"
        self._score = score

    def __call__(self, tensors: Mapping[str, np.ndarray]) -> float:
        return self._score(tensors)

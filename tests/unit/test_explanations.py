"""What a calibration cannot tell of tensors, what is done instead, and what users are told."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.calibration.moments import Calibration, InputMoments, ResultMoments, RowLayout
from nnr_codec.encoding.tensor_feedback import EMPTY, NOT_REACHED, OF_ANOTHER_SHAPE, TRANSPOSED
from nnr_codec.report import EncodeReport, TensorReport

ROWS, COLS = 24, 36
RNG = np.random.default_rng(0)
MODEL = {name: RNG.normal(0, 0.1, (ROWS, COLS)).astype(np.float32) for name in "abc"}
MODEL |= {"a.bias": RNG.normal(0, 0.1, ROWS).astype(np.float32)}
OPTIONS = EncodeOptions(qp=-24, group=False)


def moment(size: int) -> np.ndarray:
    samples = np.random.default_rng(size).normal(0, 1, (5 * size, size))
    return samples.T @ samples


RESULT = ResultMoments(moment(COLS)[None, None], moment(ROWS), 10**6)
INPUTS = InputMoments(RowLayout((ROWS, COLS)), moment(COLS)[None, None], 10**6)
KNOWN = Calibration({}, 100, (), {"a": RESULT}, {"a": 1.0, "a.bias": 4.0})


def report(known: Calibration | None, options: EncodeOptions = OPTIONS) -> EncodeReport:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nnr_codec.NnrWarning)
        return nnr_codec.encode(MODEL, options=options, calibration=known).report


def tensor(name: str, found: EncodeReport) -> TensorReport:
    return {tensor.name: tensor for tensor in found.tensors}[name]


def test_what_is_said_of_each_tensor() -> None:
    found = report(KNOWN)
    a, b = tensor("a", found), tensor("b", found)
    assert (a.step_by, a.feedback, a.feedback_reason) == ("sensitivity", "result", "")
    assert (b.step_by, b.feedback, b.feedback_reason) == ("options", "none", NOT_REACHED)
    assert tensor("a.bias", found).step_by == "sensitivity"
    assert tensor("a.bias", found).feedback is None
    row = found.to_json()["per_tensor"][1]
    assert (row["step_by"], row["feedback"], row["feedback_reason"]) == (
        "options",
        "none",
        NOT_REACHED,
    )
    assert [note for note in found.notes if NOT_REACHED in note] == [
        f"'b', 'c': {NOT_REACHED}: quantized as without data"
    ]


def test_nothing_is_said_without_a_calibration() -> None:
    found = report(None)
    assert {t.step_by for t in found.tensors} == {"options"}
    assert {t.feedback for t in found.tensors} == {None}
    assert found.notes == ()


def test_what_steps_follow() -> None:
    best = report(None, replace(OPTIONS, allocation=True))
    assert tensor("a.bias", best).step_by == "size"
    overrides = (("a", {"qp": -30}), ("b", {"max_tensor_error": 1e-4}))
    set_ = report(KNOWN, replace(OPTIONS, overrides=overrides))
    assert [tensor(name, set_).step_by for name in "abc"] == ["given", "protection", "options"]
    assert tensor("b", set_).qp < -24
    only_bias = replace(KNOWN, sensitivities={"a": 1.0})
    assert tensor("a.bias", report(only_bias)).step_by == "centre"
    exact = report(KNOWN, replace(OPTIONS, exclude=("a",)))
    assert (tensor("a", exact).step_by, tensor("a", exact).feedback) == (None, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"columns": RESULT.columns * 0}, EMPTY),
        ({"columns": RESULT.columns * np.nan}, EMPTY),
        ({"columns": -RESULT.columns}, EMPTY),
        ({"columns": moment(COLS + 1)[None, None]}, OF_ANOTHER_SHAPE),
        ({"rows": moment(ROWS - 1)}, OF_ANOTHER_SHAPE),
    ],
)
def test_moments_that_cannot_be_used(changes: dict[str, Any], reason: str) -> None:
    """The others of the tensor stand in their place, and without any it is as without data."""
    broken = replace(KNOWN, result={"a": replace(RESULT, **changes)})
    found = report(broken)
    a = tensor("a", found)
    assert (a.feedback, a.feedback_reason, a.step_by) == ("none", reason, "sensitivity")
    assert f"'a': {reason}: quantized as without data" in found.notes
    both = report(replace(broken, moments={"a": INPUTS}))
    assert (tensor("a", both).feedback, tensor("a", both).feedback_reason) == ("inputs", reason)
    instead = f"'a': {reason}: errors of the layer's outputs count, not of the result"
    assert instead in both.notes


def test_inputs_that_cannot_be_used() -> None:
    layouts = {
        TRANSPOSED: RowLayout((ROWS, COLS), transposed=True),
        OF_ANOTHER_SHAPE: RowLayout((ROWS + 1, COLS)),
    }
    for reason, layout in layouts.items():
        found = report(Calibration({"a": replace(INPUTS, layout=layout)}, 100))
        assert (tensor("a", found).feedback, tensor("a", found).feedback_reason) == ("none", reason)
    good = tensor("a", report(Calibration({"a": INPUTS}, 100)))
    assert (good.feedback, good.feedback_reason) == ("inputs", "")


def test_blocks_are_scanned_without_feedback() -> None:
    found = tensor("a", report(KNOWN, replace(OPTIONS, scan_order=1)))
    assert found.feedback == "none"
    assert "scanned in blocks" in found.feedback_reason


def test_what_is_not_reached_is_as_without_data() -> None:
    """Bit by bit: the rate counts in no search that feeds nothing back."""
    options = replace(OPTIONS, max_tensor_error=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nnr_codec.NnrWarning)
        plain = nnr_codec.encode(MODEL, options=options).data
        aware = nnr_codec.encode(MODEL, options=options, calibration=KNOWN).data
    before, after = nnr_codec.decode(plain or b""), nnr_codec.decode(aware or b"")
    assert np.array_equal(before["b"], after["b"])
    assert not np.array_equal(before["a"], after["a"])


def test_factors_are_no_layers() -> None:
    """That the calibration does not know them is not worth a note."""
    decomposition = nnr_codec.options.DecompositionOptions("lr", rank=4)
    found = report(KNOWN, replace(OPTIONS, decomposition=decomposition))
    assert not any(NOT_REACHED in note for note in found.notes)
    factors = tensor("b", found).factors
    assert [factor.step_by for factor in factors] == ["options", "options"]
    assert {factor.feedback for factor in factors} == {None}


def test_long_lists_of_names_are_cut() -> None:
    many = {f"w{i}": MODEL["a"] for i in range(8)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nnr_codec.NnrWarning)
        found = nnr_codec.encode(many, options=OPTIONS, calibration=Calibration({}, 1)).report
    (note,) = found.notes
    assert note.startswith("'w0', 'w1', 'w2', 'w3', 'w4' and 3 more: not reached")

"""What updates send of values: what the base stands for, sums of rows, errors, protection."""

from __future__ import annotations

import numpy as np
import pytest
from updates_support import Arrays, assert_same, encoded, two_matrices

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.bitstream.qp import step_size
from nnr_codec.encoding.updates.difference import with_row_sums

QP = -38
STEP = step_size(QP, 2)


@pytest.fixture(scope="module")
def weights() -> Arrays:
    return two_matrices()


@pytest.mark.parametrize("dq", [True, False])
def test_what_the_base_stands_for_costs_nothing(dq: bool, weights: Arrays) -> None:
    options = EncodeOptions(qp=QP, dq=dq)
    base = encoded(weights, options)
    has = nnr_codec.decode(base)
    rng = np.random.default_rng(0)
    near = {
        name: values + (rng.uniform(-0.45, 0.45, values.shape) * STEP).astype(np.float32)
        for name, values in has.items()
    }
    update = nnr_codec.encode(near, options=options, base=[base])
    assert not any(tensor.bytes for tensor in update.report.tensors)
    assert update.report.nmse > 0


def test_finer_steps_refine_the_base(weights: Arrays) -> None:
    base = encoded(weights, EncodeOptions(qp=-20))
    update = nnr_codec.encode(weights, options=EncodeOptions(qp=-44), base=[base])
    assert (
        update.report.nmse
        < 2 * nnr_codec.encode(weights, options=EncodeOptions(qp=-44)).report.nmse
    )


def test_the_old_model_tells_what_did_not_change() -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(0, 0.05, (64, 64)).astype(np.float32)
    base = encoded({"w": old}, EncodeOptions(qp=-20))
    new = old.copy()
    new[0] += np.float32(0.3)
    finer = EncodeOptions(qp=-44)
    without = nnr_codec.encode({"w": new}, options=finer, base=[base])
    update = nnr_codec.encode({"w": new}, options=finer, base=[base], base_model={"w": old})
    decoded = nnr_codec.decode(update.data, base=[base])["w"]
    assert np.array_equal(decoded[1:], nnr_codec.decode(base)["w"][1:])
    assert np.abs(decoded[0] - new[0]).max() < 0.01
    assert len(update.data or b"") < 0.3 * len(without.data or b"")


def test_a_tensor_that_is_new_altogether_is_whole(weights: Arrays) -> None:
    rng = np.random.default_rng(9)
    new = {**weights, "a": rng.normal(0, 0.05, weights["a"].shape).astype(np.float32)}
    base = encoded(weights)
    made = nnr_codec.encode(new, base=[base])
    assert [tensor.is_difference for tensor in made.report.tensors] == [False, True]
    assert len(made.data or b"") < len(nnr_codec.encode(new).data or b"")


def test_sums_are_rounded_to_the_type_of_the_tensor(weights: Arrays) -> None:
    narrow = {"a": weights["a"].astype(np.float16)}
    options = EncodeOptions(qp=-50)
    base = encoded(narrow, options)
    new = {"a": (weights["a"] + 0.3).astype(np.float16)}
    decoded = nnr_codec.decode(encoded(new, options, base=[base]), base=[base])
    assert decoded["a"].dtype == np.float16
    assert np.abs(decoded["a"].astype(float) - new["a"]).max() < 2 * step_size(-50, 2) + 0.0005


def test_values_that_no_difference_can_say_are_coded_whole(weights: Arrays) -> None:
    new = {name: values.copy() for name, values in weights.items()}
    new["a"][0, 0] = np.inf
    base = encoded(weights)
    assert_same(
        {"a": nnr_codec.decode(encoded(new, base=[base]), base=[base])["a"]}, {"a": new["a"]}
    )
    back = encoded(weights, base=[encoded(new)])
    assert np.isfinite(nnr_codec.decode(back, base=[encoded(new)])["a"]).all()


def test_protection_is_that_of_the_new_tensor() -> None:
    rng = np.random.default_rng(0)
    large = {"w": rng.normal(0, 1, (32, 32)).astype(np.float32)}
    small = {"w": rng.normal(0, 0.002, (32, 32)).astype(np.float32)}
    base = encoded(large, EncodeOptions(qp=QP, max_tensor_error=None))
    for options in (EncodeOptions(), EncodeOptions(qp=-20, max_tensor_error=0.01)):
        report = nnr_codec.encode(small, options=options, base=[base]).report
        assert report.tensors[0].nmse <= (options.allowed_error("w") or 1)


def test_rows_keep_their_sums() -> None:
    rng = np.random.default_rng(0)
    difference = rng.uniform(-0.2, 0.8, (16, 30)).astype(np.float32)
    kept = np.zeros((16, 30), np.float32)
    kept[:, 3] = 5.0
    dropped = np.where(kept == 0, difference, 0)
    before = kept.copy()
    with_row_sums(kept, dropped, 2.0)
    assert np.abs(kept.sum(1) - (before + dropped).sum(1)).max() <= 1.0
    assert (kept[:, 3] == 5.0).all()
    for row in range(16):  # where the most was dropped
        chosen = (kept[row] == 2.0) & (before[row] == 0)
        rest = ~chosen & (before[row] == 0)
        assert dropped[row][chosen].min() >= dropped[row][rest].max()


def test_small_changes_that_go_one_way_are_sent(weights: Arrays) -> None:
    base = encoded(weights)
    has = nnr_codec.decode(base)
    rng = np.random.default_rng(0)
    one_way = {"a": has["a"] + np.float32(0.4 * STEP), "b": has["b"]}
    signs = rng.choice([-1, 1], has["a"].shape).astype(np.float32)
    any_way = {"a": has["a"] + np.float32(0.4 * STEP) * signs, "b": has["b"]}
    sent = nnr_codec.encode(one_way, base=[base])
    assert sent.report.tensors[0].bytes > 0
    assert nnr_codec.encode(any_way, base=[base]).report.tensors[0].bytes == 0
    rows = nnr_codec.decode(sent.data, base=[base])["a"].sum(1) - one_way["a"].sum(1)
    assert np.abs(rows).max() < 6 * STEP  # of 19 that the rows moved by


def test_sums_stay_within_their_type() -> None:
    rng = np.random.default_rng(0)
    old = rng.uniform(-60000, 60000, (16, 16)).astype(np.float16)
    options = EncodeOptions(qp=40, max_tensor_error=None)
    base = encoded({"w": old}, options)
    new = old.copy()
    new[:4] = 65504
    decoded = nnr_codec.decode(encoded({"w": new}, options, base=[base]), base=[base])
    assert np.isfinite(decoded["w"]).all()

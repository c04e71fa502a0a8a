"""The factored forms: their algebra against sums written out, their shapes, counts and refusals."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnr_codec.factorization import forms
from nnr_codec.factorization.factored_weight import FactoredWeight
from nnr_codec.factorization.forms import FORMS, LowRank
from nnr_codec.factorization.joint_forms import fold, unfold, unfolded_size

DIMENSIONS = {"lr": (2, 3, 4), "cp": (3, 4), "tucker2": (3, 4), "ht2": (4,)}
SUMS = {
    ("lr", 2): "tr,rs->ts",
    ("cp", 3): "tr,sr,ir->tsi",
    ("cp", 4): "tr,sr,ir,jr->tsij",
    ("tucker2", 3): "abi,ta,sb->tsi",
    ("tucker2", 4): "abij,ta,sb->tsij",
    ("ht2", 4): "sa,aib,bcj,tc->tsij",
}


@st.composite
def weights(draw: st.DrawFn, form: str) -> FactoredWeight:
    """Draw a weight of `form` with random factors."""
    dimensions = draw(st.sampled_from(DIMENSIONS.get(form, (2, 3, 4))))
    shape = tuple(draw(st.integers(1, 6)) for _ in range(dimensions))
    kind = FORMS[form]
    ranks = [draw(st.integers(1, most)) for most in kind.max_ranks(shape)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factors = [rng.normal(size=size) for size in kind.factor_shapes(shape, ranks)]
    return kind(shape, tuple(factor.astype(np.float32) for factor in factors))


def written_out(weight: FactoredWeight) -> np.ndarray[Any, Any]:
    """Return the dense weight by the sum that defines its form."""
    factors = [factor.astype(np.float64) for factor in weight.factors]
    if weight.form == "lr":
        return np.einsum("tr,rs->ts", *factors).reshape(weight.shape)
    if not weight.form.startswith("joint"):
        return np.einsum(SUMS[weight.form, len(weight.shape)], *factors)
    outputs, inputs, rows, columns = (*weight.shape, 1, 1)[:4]
    total = np.zeros((outputs, inputs, rows, columns))
    for u, v in zip(factors[::2], factors[1::2], strict=True):
        left, right = u.reshape(rows, inputs, -1), v.reshape(-1, columns, outputs)
        total += np.einsum("isr,rjt->tsij", left, right)
    return total.reshape(weight.shape)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(data=st.data())
def test_dense_is_the_sum_that_defines_the_form(form: str, data: st.DataObject) -> None:
    weight = data.draw(weights(form))
    dense = weight.to_dense()
    assert (dense.shape, dense.dtype) == (weight.shape, np.float32)
    expected = written_out(weight)
    assert np.abs(dense - expected).max() <= 1e-6 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(data=st.data())
def test_ranks_and_counts(form: str, data: st.DataObject) -> None:
    weight = data.draw(weights(form))
    kind, shapes = type(weight), [factor.shape for factor in weight.factors]
    assert kind.ranks_of(weight.shape, shapes) == weight.ranks
    assert kind.factor_shapes(weight.shape, weight.ranks) == tuple(shapes)
    assert weight.parameter_count == sum(math.prod(size) for size in shapes)
    assert kind.parameters(weight.shape, weight.ranks) == weight.parameter_count
    assert kind.product_operations(weight.shape, weight.ranks) >= math.prod(weight.shape)
    assert kind.form == form
    assert all(index < len(shapes) for index in kind.shared)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(data=st.data())
def test_whatever_does_not_fit_is_refused(form: str, data: st.DataObject) -> None:
    weight = data.draw(weights(form))
    kind = type(weight)
    shapes = [list(factor.shape) for factor in weight.factors]
    refused = [shapes[:-1], [*shapes, [1, 1]], [[*shapes[0], 1], *shapes[1:]], [[], *shapes[1:]]]
    index = data.draw(st.integers(0, len(shapes) - 1))
    axis = data.draw(st.integers(0, len(shapes[index]) - 1))
    changed = [list(size) for size in shapes]
    changed[index][axis] += data.draw(st.sampled_from([-changed[index][axis], 1]))
    # A rank may be read off this axis alone: then the others do not fit it.
    for case in [*refused, changed]:
        with pytest.raises(ValueError, match=kind.form):
            kind.ranks_of(weight.shape, case)
    too_high = [most + 1 for most in kind.max_ranks(weight.shape)]
    for ranks in [too_high, [0] * len(too_high), [1] * (len(too_high) + 1)]:
        with pytest.raises(ValueError, match=kind.form):
            kind.factor_shapes(weight.shape, ranks)


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("lr", (4,)),
        ("lr", (4, 0)),
        ("cp", (4, 4)),
        ("cp", (4, 4, 3, 3, 3)),
        ("tucker2", (4, 4)),
        ("ht2", (4, 4, 3)),
        ("joint_right", (4, 4, 3, 3, 3)),
        ("joint_binary", (0, 4, 3, 3)),
    ],
)
def test_shapes_that_a_form_does_not_have(form: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no form of shape"):
        FORMS[form].max_ranks(shape)


def test_factors_are_checked_when_a_weight_is_made() -> None:
    with pytest.raises(ValueError, match="lr"):
        LowRank((4, 6), (np.ones((4, 2)), np.ones((3, 6))))


def test_macs_by_hand() -> None:
    """A 3x3 convolution 8→16 of stride 2 on 10x12: 5x6 outputs, 5x12 between the steps."""

    def macs(form: str, *ranks: int) -> int:
        shapes = FORMS[form].factor_shapes((16, 8, 3, 3), ranks)
        weight = FORMS[form]((16, 8, 3, 3), tuple(np.ones(size) for size in shapes))
        return weight.macs((10, 12), (5, 6))

    assert macs("lr", 4) == 4 * (8 * 9 + 16) * 30
    assert macs("cp", 5) == 5 * (8 * 120 + 3 * 60 + 3 * 30 + 16 * 30)
    assert macs("tucker2", 7, 4) == 8 * 4 * 120 + 7 * 4 * 9 * 30 + 16 * 7 * 30
    assert macs("ht2", 4, 6, 7) == 8 * 4 * 120 + 4 * 6 * 3 * 60 + (6 * 7 * 3 + 7 * 16) * 30
    assert macs("joint_left", 6) == 6 * 3 * 8 * 60 + 6 * 3 * 16 * 30
    assert macs("joint_binary", 6, 2) == 8 * 3 * 8 * 60 + 8 * 3 * 16 * 30


def test_macs_of_linear_layers_count_tokens() -> None:
    weight = LowRank((6, 4), (np.ones((6, 2)), np.ones((2, 4))))
    assert weight.macs() == 20
    assert weight.macs((7,), (7,)) == 140
    convolution = LowRank((6, 2, 2), (np.ones((6, 2)), np.ones((2, 4))))
    with pytest.raises(ValueError, match="1 dimensions"):
        convolution.macs()


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("lr", (8, 2**17)),
        ("cp", (1, 64, 128, 128)),
        ("tucker2", (2, 64, 64, 128)),
        ("ht2", (64, 64, 16, 16)),
        ("joint_binary", (64, 64, 16, 16)),
    ],
)
def test_memory_follows_the_weight(form: str, shape: tuple[int, ...]) -> None:
    """At any ranks that are allowed: hostile ones must not multiply what the limits count."""
    kind = FORMS[form]
    ranks = [min(most, 256) for most in kind.max_ranks(shape)]
    factors = tuple(np.ones(size, np.float32) for size in kind.factor_shapes(shape, ranks))
    weight = kind(shape, factors)
    tracemalloc.start()
    try:
        weight.to_dense()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    copies = 8 * weight.parameter_count  # of the factors in float64
    assert peak <= copies + 4 * 8 * math.prod(shape) + 2**21


@pytest.mark.parametrize("shape", [(9, 4, 5), (4, 9, 5), (4, 5, 9, 2), (2, 3, 4, 9), (3, 3, 3, 3)])
def test_terms_of_cp_in_blocks(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever dimension is the largest, and with a last block that is not full."""
    monkeypatch.setattr(forms, "_CP_BLOCK", 1)
    kind = FORMS["cp"]
    rng = np.random.default_rng(0)
    factors = (rng.normal(size=size) for size in kind.factor_shapes(shape, kind.max_ranks(shape)))
    weight = kind(shape, tuple(factor.astype(np.float32) for factor in factors))
    np.testing.assert_allclose(weight.to_dense(), written_out(weight), rtol=1e-5, atol=1e-6)


def test_non_finite_and_huge_factors_pass_without_a_warning() -> None:
    huge = LowRank((1, 2), (np.full((1, 1), 3e38, np.float32), np.array([[1e38, np.nan]])))
    assert np.array_equal(huge.to_dense(), [[np.inf, np.nan]], equal_nan=True)


@settings(deadline=None)
@given(data=st.data())
def test_unfolding_of_the_joint_forms(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    weight = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    matrix = unfold(weight)
    assert matrix.shape == unfolded_size(shape)
    assert np.array_equal(fold(matrix, shape), weight)
    index = [data.draw(st.integers(0, size - 1)) for size in shape]
    output, channel, row, column = (*index, 0, 0)[:4]
    position = row * shape[1] + channel, column * shape[0] + output
    assert matrix[position] == weight[tuple(index)]

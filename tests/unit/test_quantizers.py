"""Quantizers as the encoder chooses them: objects with one method."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnr_codec._core import TensorSyntax, choose_unary_length, quantize
from nnr_codec.quantize.quantizer import (
    DEPENDENT,
    UNIFORM,
    CodingRates,
    InputKnowledge,
    quantizer_of,
)

STEP = 0.02
WEIGHTS = np.random.default_rng(3).laplace(0, 0.05, 40 * 30).astype(np.float32)
SLOPES = {False: math.log(2) / 6, True: 2.8 * math.log(2) / 6}  # -dD/dR at high rate
each_quantizer = pytest.mark.parametrize("dependent", [False, True])


def syntax(*, dependent: bool, unary_length: int = 1) -> TensorSyntax:
    return TensorSyntax(40, 30, unary_length=unary_length, dependent_quantization=dependent)


def test_choice() -> None:
    assert quantizer_of(dependent=True) is DEPENDENT
    assert quantizer_of(dependent=False) is UNIFORM


@each_quantizer
def test_without_rates(dependent: bool) -> None:
    rates = CodingRates((40, 30))
    levels = quantizer_of(dependent=dependent).integers(WEIGHTS, STEP, rates, InputKnowledge())
    assert np.array_equal(levels, quantize(syntax(dependent=dependent), WEIGHTS, STEP))


@each_quantizer
@pytest.mark.parametrize("unary_length", [None, 5])
def test_with_rates(dependent: bool, unary_length: int | None) -> None:
    """The unary length is that of rounded integers, if none is given."""
    rates = CodingRates((40, 30), unary_length=unary_length, lambda_scale=1.0)
    levels = quantizer_of(dependent=dependent).integers(WEIGHTS, STEP, rates, InputKnowledge())
    rounded = quantize(syntax(dependent=False), WEIGHTS, 2 * STEP if dependent else STEP)
    length = unary_length or choose_unary_length(rounded)
    expected = syntax(dependent=dependent, unary_length=length)
    assert np.array_equal(levels, quantize(expected, WEIGHTS, STEP, SLOPES[dependent]))
    without = quantizer_of(dependent=dependent).integers(
        WEIGHTS, STEP, CodingRates((40, 30)), InputKnowledge()
    )
    assert not np.array_equal(levels, without)


@each_quantizer
def test_importance(dependent: bool) -> None:
    """What is known of the inputs: where errors matter more, they are smaller."""
    importance = np.where(np.arange(WEIGHTS.size) % 2, 20, 0.5).astype(np.float32)
    rates = CodingRates((40, 30), unary_length=3, lambda_scale=1.0)
    quantizer = quantizer_of(dependent=dependent)
    aware = quantizer.integers(WEIGHTS, STEP, rates, InputKnowledge(importance))
    expected = syntax(dependent=dependent, unary_length=3)
    same = quantize(expected, WEIGHTS, STEP, SLOPES[dependent], importance)
    assert np.array_equal(aware, same)
    assert not np.array_equal(aware, quantizer.integers(WEIGHTS, STEP, rates, InputKnowledge()))

"""What calibrations of dense weights tell of their factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnr_codec.calibration.factor_knowledge import factor_knowledge, shared_knowledge
from nnr_codec.calibration.moments import InputMoments, ResultMoments, RowLayout, TensorKnowledge
from nnr_codec.factorization.forms import LowRank

ROWS, COLUMNS, RANK, SAMPLES = 6, 8, 3, 40


def _weight() -> LowRank:
    rng = np.random.default_rng(0)
    return LowRank((ROWS, COLUMNS), (rng.normal(size=(ROWS, RANK)), rng.normal(size=(RANK, 8))))


def _gradients() -> Any:
    """Return gradients of samples, whose rows and columns are independent but not alike."""
    rng = np.random.default_rng(1)
    of_rows, of_columns = rng.normal(size=(ROWS, ROWS)), rng.normal(size=(COLUMNS, COLUMNS))
    return of_rows @ rng.normal(size=(SAMPLES * 100, ROWS, COLUMNS)) @ of_columns


def _moments_of(gradients: Any) -> ResultMoments:
    columns = np.einsum("nrc,nrd->cd", gradients, gradients)[np.newaxis, np.newaxis]
    rows = np.einsum("nrc,nsc->rs", gradients, gradients)
    return ResultMoments(columns, rows, len(gradients))


def _known_of(gradients: Any) -> TensorKnowledge:
    mean = float(np.square(gradients).mean())
    return TensorKnowledge(result=_moments_of(gradients), sensitivity=mean)


def _result(known: TensorKnowledge | None) -> Any:
    assert known is not None
    return known.result


def test_moments_of_factors_are_those_of_their_gradients() -> None:
    weight, gradients = _weight(), _gradients()
    left, right = weight.factors
    for index, of_factor in enumerate((gradients @ right.T, left.T @ gradients)):
        known, exact = factor_knowledge(weight, index, _known_of(gradients)), _known_of(of_factor)
        found, expected = _result(known), _result(exact)
        for side in ("columns", "rows"):
            error = np.linalg.norm(getattr(found, side) - getattr(expected, side))
            assert error < 0.05 * np.linalg.norm(getattr(expected, side))
        assert found.count == expected.count
        assert found.is_checked
        assert known is not None
        assert known.sensitivity == pytest.approx(exact.sensitivity, rel=0.05)


def test_without_gradients_it_is_the_output_that_counts() -> None:
    rng = np.random.default_rng(2)
    moment = np.cov(rng.normal(size=(COLUMNS, 50)))
    inputs = InputMoments(RowLayout((ROWS, COLUMNS)), moment[np.newaxis, np.newaxis], 50)
    weight = _weight()
    left, right = weight.factors
    of_left, of_right = (factor_knowledge(weight, i, TensorKnowledge(inputs)) for i in (0, 1))
    np.testing.assert_allclose(_result(of_left).columns[0, 0], right @ moment @ right.T)
    expected = left.T @ left * np.trace(moment) / ROWS
    np.testing.assert_allclose(_result(of_right).rows, expected)
    assert not _result(of_right).is_checked


def test_groups_count_together() -> None:
    known: Any = _moments_of(_gradients())
    halves = np.concatenate([0.25 * known.columns, 0.75 * known.columns])
    grouped = ResultMoments(halves, known.rows, known.count)
    for index in range(2):
        one, several = (
            _result(factor_knowledge(_weight(), index, TensorKnowledge(result=moments)))
            for moments in (known, grouped)
        )
        np.testing.assert_allclose(one.columns, several.columns)


def test_a_sensitivity_alone() -> None:
    weight = _weight()
    known = factor_knowledge(weight, 0, TensorKnowledge(sensitivity=2.0))
    # An error of an element of G makes one of a row, in proportion to a row of H.
    expected = 2.0 * float(np.square(weight.factors[1]).sum(axis=1).mean())
    assert known is not None
    assert known.result is None
    assert known.sensitivity == pytest.approx(expected)


def test_nothing_known() -> None:
    weight = _weight()
    zeros = ResultMoments(np.zeros((1, 1, COLUMNS, COLUMNS)), None, 1)
    assert factor_knowledge(weight, 0, None) is None
    assert factor_knowledge(weight, 0, TensorKnowledge(result=zeros)) is None
    silent = LowRank(weight.shape, (weight.factors[0], np.zeros((RANK, COLUMNS))))
    assert factor_knowledge(silent, 0, TensorKnowledge(sensitivity=2.0)) is None
    assert shared_knowledge([None, None]) is None


def test_what_weights_know_of_a_shared_factor_adds_up() -> None:
    known = _known_of(_gradients())
    twice = shared_knowledge([known, None, known])
    np.testing.assert_allclose(_result(twice).columns, 2 * _result(known).columns)
    np.testing.assert_allclose(_result(twice).rows, 2 * _result(known).rows)
    assert twice is not None
    assert twice.sensitivity == pytest.approx(2 * (known.sensitivity or 0))
    assert shared_knowledge([known]) is known
    more = shared_knowledge([known, TensorKnowledge(sensitivity=1.0)])
    assert _result(more) is known.result

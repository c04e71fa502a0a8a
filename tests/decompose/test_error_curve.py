"""Errors by the number of parameters: what curves tell, and what the methods reach."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from decompose_support import (
    ONE_LAYER,
    Array,
    random_kernel,
    random_moment,
    relative_error,
    trained_kernel,
)

from nnr_codec import InvalidModel
from nnr_codec.decompose.algorithms.cp import cp
from nnr_codec.decompose.algorithms.ht2 import ht2
from nnr_codec.decompose.algorithms.kernel import damped, squared_error
from nnr_codec.decompose.algorithms.separable import SeparableNorm
from nnr_codec.decompose.algorithms.svd import low_rank
from nnr_codec.decompose.algorithms.tucker import tucker2
from nnr_codec.decompose.fitting import decompose_within
from nnr_codec.decompose.ranks.error_curve import Choice, ErrorCurve, error_curve, merged
from nnr_codec.factorization.forms import CP, HT2, FactoredWeight, LowRank, Tucker2

METHODS: dict[type[FactoredWeight], Any] = {
    LowRank: low_rank,
    CP: cp,
    Tucker2: tucker2,
    HT2: ht2,
}


def made_of(choice: Choice, weight: Array, moment: Array | None = None) -> FactoredWeight:
    ranks = choice.ranks[0] if len(choice.ranks) == 1 else choice.ranks
    made = METHODS[choice.form](weight, ranks, moment=moment)
    assert isinstance(made, FactoredWeight)
    return made


@pytest.mark.parametrize("form", ONE_LAYER)
def test_curves_tell_what_the_methods_reach(form: type[FactoredWeight]) -> None:
    weight = trained_kernel("conv2.weight")
    curve = error_curve(form, weight)
    assert curve.dense == weight.size
    assert len(curve.choices) > 50
    for earlier, later in itertools.pairwise(curve.choices):
        assert later.parameters > earlier.parameters
        assert later.error < earlier.error
    for fraction in (0.06, 0.25, 0.5, 0.9):
        choice = curve.best(fraction * weight.size)
        assert choice is not None
        assert 0.9 * fraction * weight.size <= choice.parameters <= fraction * weight.size
        made = made_of(choice, weight)
        assert made.parameter_count == choice.parameters
        error = relative_error(weight, made.to_dense()) ** 2
        # CP gains more from a full fit, the most at high ranks; a start may fit by accident.
        least = 0.4 if form is CP else 0.9
        assert least * choice.error - 1e-6 <= error <= 1.02 * choice.error + 1e-6
        if form in (LowRank, HT2):
            assert error == pytest.approx(choice.error, rel=1e-3)


@pytest.mark.parametrize("form", ONE_LAYER)
def test_curves_in_the_norm_of_the_output(form: type[FactoredWeight]) -> None:
    """They are not far off, and lead to smaller errors than those of the weight itself."""
    weight = trained_kernel("conv2.weight")
    moment = random_moment(math.prod(weight.shape[1:]), samples=400)
    curve = error_curve(form, weight, moment)
    for fraction in (0.25, 0.5):
        choice = curve.best(fraction * weight.size)
        plain = error_curve(form, weight).best(fraction * weight.size)
        assert choice is not None
        assert plain is not None
        reached = relative_error(weight, made_of(choice, weight, moment).to_dense(), moment) ** 2
        by_plain = relative_error(weight, made_of(plain, weight).to_dense(), moment) ** 2
        assert reached <= 2 * choice.error
        assert reached < by_plain
        if form is LowRank:
            assert reached == pytest.approx(choice.error, rel=0.05)  # but for the damping


def test_a_separable_moment_is_met_exactly() -> None:
    """With a Kronecker product for a moment, the norm of the output is that of the modes."""
    weight = random_kernel((5, 4, 3, 2)).astype(np.float64)
    channels, rows, columns = (random_moment(size, seed=size) for size in (4, 3, 2))
    moment = np.kron(np.kron(channels, rows), columns)
    damping = 0.01 * np.trace(moment) / len(moment) * np.eye(len(moment))
    scale = np.trace(damped(moment)) / np.trace(moment + damping)
    np.testing.assert_allclose(damped(moment), scale * (moment + damping))
    norm = SeparableNorm.of(moment, weight.shape)
    transformed = norm.applied(weight)
    expected = scale * squared_error(weight, np.zeros_like(weight), moment + damping)
    assert np.vdot(transformed, transformed) == pytest.approx(expected, rel=0.02)
    for mode in (1, 2, 3):
        root = norm.roots[mode - 1]
        factor = random_kernel((weight.shape[mode], 7)).astype(np.float64)
        np.testing.assert_allclose(root.T @ norm.undone(factor, mode), factor, atol=1e-9)


def test_an_error_is_met_by_few_parameters() -> None:
    weight = trained_kernel("conv2.weight")
    for form in ONE_LAYER:
        curve = error_curve(form, weight)
        for error in (0.5, 0.35):
            made = decompose_within(curve, error, weight)
            assert made is not None
            assert relative_error(weight, made.to_dense()) ** 2 <= error
            expected = curve.fewest(error)
            assert expected is not None
            assert made.parameter_count <= expected.parameters
    # Out of reach, or not to be met by fewer parameters than the dense weight has.
    assert decompose_within(error_curve(LowRank, weight), 0.0, weight) is None


def test_expectations_that_are_wrong_are_corrected() -> None:
    """Of a curve that promises too much or too little, the best choice is found all the same."""
    weight = random_kernel((40, 40))
    curve = error_curve(LowRank, weight)
    wanted = curve.fewest(0.3)
    assert wanted is not None
    for factor in (0.5, 0.8, 1.25, 2.0):
        made = decompose_within(curve.scaled(factor), 0.3, weight)
        assert made is not None
        assert abs(made.ranks[0] - wanted.ranks[0]) <= 1


def test_curves_merge_and_scale() -> None:
    def choice(parameters: int, error: float) -> Choice:
        return Choice(LowRank, (parameters,), parameters, error)

    first = ErrorCurve.of(100, [choice(10, 0.5), choice(30, 0.2), choice(40, 0.3), choice(100, 0)])
    assert [c.parameters for c in first.choices] == [10, 30]
    second = ErrorCurve.of(100, [choice(20, 0.4), choice(35, 0.25), choice(60, 0.1)])
    assert [c.parameters for c in merged([first, second]).choices] == [10, 20, 30, 60]
    assert [c.error for c in first.scaled(4.0).choices] == [1.0, 0.8]
    assert first.fewest(0.1) is None
    assert first.best(9) is None
    assert first.best(29) == first.choices[0]
    assert first.of_losses().choices[0].error == pytest.approx(math.log(2))


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (2, 1, 1, 3), (3, 2, 2), (1, 5, 2, 2), (7, 1, 2)])
@pytest.mark.parametrize("form", ONE_LAYER)
def test_curves_of_small_kernels(form: type[FactoredWeight], shape: tuple[int, ...]) -> None:
    if form is HT2 and len(shape) != 4:
        with pytest.raises(InvalidModel, match="'w'"):
            error_curve(form, random_kernel(shape), name="w")
        return
    weight = random_kernel(shape)
    for moment in (None, random_moment(weight.size // len(weight))):
        for choice in error_curve(form, weight, moment).choices:
            assert choice.parameters < weight.size
            assert made_of(choice, weight, moment).parameter_count <= choice.parameters


@pytest.mark.parametrize("form", [Tucker2, HT2])
def test_curves_of_wide_kernels_reach_ranks_of_one(form: type[FactoredWeight]) -> None:
    """Errors are told of some ranks alone: among them small ones, so that no ratio is refused."""
    shape = (160, 140, 3, 3)
    curve = error_curve(form, random_kernel(shape))
    assert set(curve.choices[0].ranks) == {1}
    size = curve.dense
    for ratio in (5, 20, 50, 100, 200):
        choice = curve.best(size / ratio)
        assert choice is not None
        assert choice.parameters > 0.6 * size / ratio

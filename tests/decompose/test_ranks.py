"""Ranks: of fractions, energies and VBMF; and the allocation of a whole model's."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from decompose_support import Array, random_kernel, random_moment, relative_error, trained_kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from nnr_codec import InvalidModel, InvalidOptions
from nnr_codec.decompose.allocation import allocate
from nnr_codec.decompose.cp import cp
from nnr_codec.decompose.error_curve import (
    Choice,
    ErrorCurve,
    error_curve,
    fewest_parameters,
    merged,
)
from nnr_codec.decompose.ht2 import ht2
from nnr_codec.decompose.kernel import damped, squared_error
from nnr_codec.decompose.ranks import (
    best_ranks,
    energy_ranks,
    rank_of_fraction,
    resolved_ranks,
    vbmf_ranks,
)
from nnr_codec.decompose.separable import SeparableNorm
from nnr_codec.decompose.svd import low_rank
from nnr_codec.decompose.tucker import tucker2
from nnr_codec.decompose.vbmf import vbmf_rank
from nnr_codec.factorization.forms import (
    CP,
    HT2,
    FactoredWeight,
    JointRight,
    LowRank,
    Tucker2,
)

ONE_LAYER = [LowRank, CP, Tucker2, HT2]


SHAPES = st.lists(st.integers(1, 12), min_size=4, max_size=4)


@settings(deadline=None)
@given(st.sampled_from(ONE_LAYER), SHAPES, st.floats(0.001, 1), st.integers(0, 99))
def test_the_best_ranks_keep_the_fraction(
    form: type[FactoredWeight], shape: list[int], fraction: float, seed: int
) -> None:
    weight = random_kernel(shape, seed)
    ranks = best_ranks(form, weight, fraction)
    form.factor_shapes(shape, ranks)
    allowed = fraction * weight.size * (1 + 1e-9)
    if set(ranks) != {1}:
        assert form.parameters(shape, ranks) <= allowed
    if len(ranks) == 1:
        (most,) = form.max_ranks(shape)
        assert ranks[0] == most or form.parameters(shape, (ranks[0] + 1,)) > fraction * weight.size


@pytest.mark.parametrize("moment", [None, random_moment(18, seed=3)])
@pytest.mark.parametrize("form", [Tucker2, HT2])
def test_the_best_ranks_are_about_the_best_of_all(
    form: type[FactoredWeight], moment: Array | None
) -> None:
    """Against all ranks that the fraction allows, really decomposed."""
    weight = trained_kernel("conv2.weight")[:6, :2] if form is HT2 else trained_kernel()[:8, :2]
    method = {Tucker2: tucker2, HT2: ht2}[form]
    errors = {
        ranks: relative_error(weight, method(weight, ranks, moment=moment).to_dense(), moment)
        for ranks in itertools.product(*(range(1, n + 1) for n in form.max_ranks(weight.shape)))
        if form.parameters(weight.shape, ranks) <= 0.6 * weight.size
    }
    chosen = best_ranks(form, weight, 0.6, moment)
    assert errors[chosen] <= 1.1 * min(errors.values())
    assert errors[chosen] < np.median(list(errors.values()))


@given(st.lists(st.integers(1, 64), min_size=4, max_size=4), st.integers(1, 12))
def test_the_published_rule_of_one_ratio(shape: list[int], ratio: int) -> None:
    outputs, rest = shape[0], math.prod(shape[1:])
    rule = outputs * rest // (ratio * (outputs + rest))
    clamped = min(max(rule, 1), min(outputs, rest))
    assert rank_of_fraction(LowRank, shape, 1 / ratio) == clamped
    rule = outputs * rest // (ratio * sum(shape))
    assert rank_of_fraction(CP, shape, 1 / ratio) == min(max(rule, 1), *CP.max_ranks(shape))


def test_what_a_rank_option_means() -> None:
    weight = random_kernel((64, 32, 3, 3))
    assert resolved_ranks(Tucker2, weight, 4) == (4, 4)
    assert resolved_ranks(HT2, weight, (4, 9, 6)) == (4, 9, 6)
    assert resolved_ranks(LowRank, weight, 0.5) == best_ranks(LowRank, weight, 0.5) == (26,)
    assert resolved_ranks(Tucker2, weight, 0.25) == best_ranks(Tucker2, weight, 0.25)
    for rank in (0, -3, 65, (1, 2), 0.0, 1.5, float("nan")):
        with pytest.raises(InvalidOptions, match=r"rank: 'a\.weight'"):
            resolved_ranks(LowRank, weight, rank, name="a.weight")
    with pytest.raises(InvalidModel, match=r"'a\.weight'"):
        resolved_ranks(CP, weight[:, :, 0, 0], 4, name="a.weight")


@pytest.mark.parametrize("energy", [0.3, 0.9, 1.0])
def test_energy(energy: float) -> None:
    weight = trained_kernel("conv2.weight")
    (rank,) = energy_ranks(LowRank, weight, energy)
    for kept, enough in ((rank, True), (rank - 1, False)):
        error = relative_error(weight, low_rank(weight, kept).to_dense())
        assert (1 - error**2 >= energy - 1e-6) == enough
    for form, method in ((Tucker2, tucker2), (HT2, ht2)):
        made = method(weight, energy_ranks(form, weight, energy))
        cuts = len(made.ranks)
        assert relative_error(weight, made.to_dense()) ** 2 <= cuts * (1 - energy) + 1e-6
    made = cp(weight, *energy_ranks(CP, weight, energy))
    assert relative_error(weight, made.to_dense()) ** 2 <= (1 - energy) * 1.011 + 1e-6


def test_energy_of_exact_low_rank_ignores_rounding() -> None:
    weight = (random_kernel((20, 4)).astype(np.float64) @ random_kernel((4, 30))).astype(np.float64)
    assert energy_ranks(LowRank, weight, 1.0) == (4,)
    assert vbmf_ranks(LowRank, weight) == (4,)


def test_errors_of_energy_and_vbmf() -> None:
    weight = random_kernel((4, 4, 3, 3))
    for energy in (0.0, 1.1, float("nan")):
        with pytest.raises(InvalidOptions, match=r"energy: 'a\.weight'"):
            energy_ranks(LowRank, weight, energy, name="a.weight")
    with pytest.raises(InvalidOptions, match="groups"):
        energy_ranks(JointRight, weight, 0.9)
    with pytest.raises(InvalidOptions, match="VBMF has no ranks of cp"):
        vbmf_ranks(CP, weight)
    with pytest.raises(InvalidModel, match="zeros"):
        vbmf_ranks(LowRank, np.zeros((3, 3), np.float32))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "rank", "noise"),
    [(60, 200, 5, 0.5), (100, 100, 10, 0.3), (64, 576, 20, 0.1), (64, 576, 0, 1.0), (30, 30, 3, 0)],
)
def test_vbmf_finds_the_rank_under_noise(
    rows: int, columns: int, rank: int, noise: float, transposed: bool
) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        matrix = noise * rng.normal(size=(rows, columns))
        if rank:
            matrix += rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) / rank**0.5
        assert vbmf_rank(matrix.T if transposed else matrix) == rank
        assert vbmf_rank(1e3 * matrix) == rank  # whatever the scale


def test_vbmf_drops_what_drowns_in_noise() -> None:
    rng = np.random.default_rng(0)
    strong, weak = (np.outer(rng.normal(size=80), rng.normal(size=300)) for _ in range(2))
    noise = rng.normal(size=(80, 300))
    assert vbmf_rank(strong + 0.02 * weak + noise) == 1
    assert vbmf_rank(strong + 0.5 * weak + noise) == 2
    assert vbmf_rank(np.zeros((3, 4))) == 0


def test_vbmf_of_a_tucker_core() -> None:
    kernel = tucker2(random_kernel((40, 30, 3, 3)), (6, 4)).to_dense()
    assert vbmf_ranks(Tucker2, kernel + 0.002 * random_kernel(kernel.shape, 1)) == (6, 4)


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
            made = fewest_parameters(
                curve,
                error,
                lambda choice: made_of(choice, weight),
                lambda made: relative_error(weight, made.to_dense()) ** 2,
            )
            assert made is not None
            assert relative_error(weight, made.to_dense()) ** 2 <= error
            expected = curve.fewest(error)
            assert expected is not None
            assert made.parameter_count <= expected.parameters
    # Out of reach, or not to be met by fewer parameters than the dense weight has.
    assert fewest_parameters(error_curve(LowRank, weight), 0.0, made_of, lambda made: 0.0) is None


def test_expectations_that_are_wrong_are_corrected() -> None:
    """Of a curve that promises too much or too little, the best choice is found all the same."""
    weight = random_kernel((40, 40))
    curve = error_curve(LowRank, weight)
    wanted = curve.fewest(0.3)
    assert wanted is not None
    for factor in (0.5, 0.8, 1.25, 2.0):
        made = fewest_parameters(
            curve.scaled(factor),
            0.3,
            lambda choice: made_of(choice, weight),
            lambda made: relative_error(weight, made.to_dense()) ** 2,
        )
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


@st.composite
def curves(draw: st.DrawFn) -> dict[str, ErrorCurve]:
    made = {}
    for index in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 5))
        parameters = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
        errors = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
        rows = zip(range(1, count + 1), parameters, errors, strict=True)
        choices = (Choice(LowRank, (rank,), size, error) for rank, size, error in rows)
        made[f"{index}"] = ErrorCurve.of(draw(st.integers(1, 60)), choices)
    return made


NOTHING = Choice(LowRank, (), 0, 0.0)


def cost_and_error(curve: ErrorCurve, choice: Choice | None) -> tuple[int, float]:
    return (curve.dense, 0.0) if choice is None else (choice.parameters, choice.error)


@settings(deadline=None)
@given(curves(), st.floats(1, 20), st.integers(0, 30))
def test_allocation_keeps_the_ratio_near_the_optimum(
    layers: dict[str, ErrorCurve], ratio: float, others: int
) -> None:
    """Against all combinations; no step fits any more, and the hull's slope bounds the gap."""
    before = others + sum(curve.dense for curve in layers.values())
    combinations = []
    for choice in itertools.product(*([None, *curve.choices] for curve in layers.values())):
        pairs = [cost_and_error(*pair) for pair in zip(layers.values(), choice, strict=True)]
        combinations.append((others + sum(p[0] for p in pairs), sum(p[1] for p in pairs)))
    feasible = [error for cost, error in combinations if cost <= before / ratio * (1 + 1e-12)]
    if not feasible:
        with pytest.raises(InvalidOptions, match="at most"):
            allocate(layers, ratio, others)
        return
    chosen = allocate(layers, ratio, others)
    pairs = [cost_and_error(layers[name], choice) for name, choice in chosen.items()]
    assert others + sum(cost for cost, _ in pairs) <= before / ratio * (1 + 1e-12)
    largest = max(c.error for curve in layers.values() for c in [*curve.choices, NOTHING])
    assert sum(error for _, error in pairs) <= min(feasible) + largest + 1e-9


def test_allocation_of_a_convex_problem_is_optimal() -> None:
    """Two layers of 10 parameters a rank; the second one's errors fall twice as fast."""
    slow, fast = (
        ErrorCurve.of(100, [Choice(LowRank, (r,), 10 * r, base**r) for r in range(1, 10)])
        for base in (0.5, 0.25)
    )
    chosen = allocate({"slow": slow, "fast": fast}, 2.0, others=40)
    assert {name: c and c.ranks for name, c in chosen.items()} == {"slow": (5,), "fast": (3,)}
    assert allocate({"slow": slow, "fast": fast}, 1.0) == {"slow": None, "fast": None}


def test_allocation_spends_nothing_on_what_is_exact() -> None:
    choices = Choice(LowRank, (1,), 30, 0.5), Choice(LowRank, (2,), 60, 0.0)
    assert allocate({"exact": ErrorCurve.of(100, choices)}, 1.0) == {"exact": choices[1]}


def test_allocation_over_a_model_meets_the_ratio_closely() -> None:
    weights = {name: trained_kernel(name) for name in ("conv2.weight", "conv3.weight", "fc.weight")}
    forms = {"conv2.weight": CP, "conv3.weight": HT2, "fc.weight": LowRank}
    found = {name: error_curve(forms[name], weight) for name, weight in weights.items()}
    before = 500 + sum(weight.size for weight in weights.values())
    for ratio in (1.5, 3.0, 8.0):
        chosen = allocate(found, ratio, others=500)
        after = 500 + sum(
            weights[name].size if choice is None else choice.parameters
            for name, choice in chosen.items()
        )
        assert ratio <= before / after < 1.03 * ratio


@pytest.mark.parametrize("ratio", [0.5, 0.0, float("nan"), float("inf"), 1000.0])
def test_impossible_ratios(ratio: float) -> None:
    curve = error_curve(LowRank, random_kernel((20, 20)))
    with pytest.raises(InvalidOptions, match="compression_ratio"):
        allocate({"w": curve}, ratio, others=10)

"""Ranks: of fractions, energies and VBMF; and the allocation of a whole model's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from decompose_support import random_kernel, random_moment, relative_error, trained_kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from nnr_codec import InvalidModel, InvalidOptions
from nnr_codec.decompose.allocation import (
    ErrorCurve,
    allocate,
    estimated_curve,
    measured_curve,
)
from nnr_codec.decompose.cp import cp
from nnr_codec.decompose.ht2 import ht2
from nnr_codec.decompose.ranks import (
    best_ranks,
    energy_path,
    energy_ranks,
    rank_of_fraction,
    resolved_ranks,
    vbmf_ranks,
)
from nnr_codec.decompose.svd import low_rank
from nnr_codec.decompose.tucker import tucker2
from nnr_codec.decompose.vbmf import vbmf_rank
from nnr_codec.factorization.forms import (
    CP,
    FORMS,
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
    path = energy_path(form, weight.astype(np.float64), "w")
    fitting = [r for r in path if form.parameters(shape, r) <= fraction * weight.size * (1 + 1e-9)]
    if len(ranks) > 1:
        assert ranks == (fitting or path)[-1 if fitting else 0]
    elif fitting:
        assert form.parameters(shape, ranks) <= fraction * weight.size * (1 + 1e-9)
        (most,) = form.max_ranks(shape)
        higher = ranks[0] + 1
        assert ranks[0] == most or form.parameters(shape, (higher,)) > fraction * weight.size
    else:
        assert ranks == (1,)


@settings(deadline=None)
@given(st.sampled_from(ONE_LAYER), SHAPES, st.integers(0, 99))
def test_the_path_of_energies_only_rises(
    form: type[FactoredWeight], shape: list[int], seed: int
) -> None:
    path = energy_path(form, random_kernel(shape, seed).astype(np.float64), "w")
    for earlier, later in itertools.pairwise(path):
        assert earlier != later
        assert all(low <= high for low, high in zip(earlier, later, strict=True))
    for ranks in path:
        form.factor_shapes(shape, ranks)


def test_one_energy_for_all_ranks_is_better_than_one_proportion() -> None:
    weight = trained_kernel()
    ranks = best_ranks(HT2, weight, 0.4)
    largest = HT2.max_ranks(weight.shape)
    proportional = max(
        (tuple(-(-most * step // 64) for most in largest) for step in range(1, 65)),
        key=lambda r: (HT2.parameters(weight.shape, r) <= 0.4 * weight.size, r),
    )
    errors = [relative_error(weight, ht2(weight, r).to_dense()) for r in (ranks, proportional)]
    assert errors[0] < errors[1]


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
            resolved_ranks(LowRank, weight, rank, "a.weight")
    with pytest.raises(InvalidModel, match=r"'a\.weight'"):
        resolved_ranks(CP, weight[:, :, 0, 0], 4, "a.weight")


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
            energy_ranks(LowRank, weight, energy, "a.weight")
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


@pytest.mark.parametrize("form", ONE_LAYER)
def test_estimated_curve_bounds_what_the_method_reaches(form: type[FactoredWeight]) -> None:
    method = {LowRank: low_rank, CP: cp, Tucker2: tucker2, HT2: ht2}[form]
    weight = trained_kernel("conv2.weight")
    curve = estimated_curve(form, weight)
    assert curve.dense == weight.size
    assert curve.errors[-1] < 1e-9
    assert all(later <= earlier for earlier, later in itertools.pairwise(curve.errors))
    for index in (0, len(curve.ranks) // 4, len(curve.ranks) // 2):
        ranks = curve.ranks[index]
        made = method(weight, ranks[0] if form in (LowRank, CP) else ranks)
        assert made.parameter_count <= curve.parameters[index]
        error = relative_error(weight, made.to_dense()) ** 2
        assert error <= curve.errors[index] * 1.011 + 1e-6
        if form is LowRank:
            assert error == pytest.approx(curve.errors[index], rel=1e-4)


def test_measured_curve() -> None:
    weight, moment = random_kernel((12, 10)), random_moment(10)
    curve = measured_curve(
        weight, [(2,), (5,)], lambda ranks: low_rank(weight, *ranks, moment=moment), moment
    )
    assert curve.ranks == ((2,), (5,))
    assert curve.parameters == (44, 110)
    expected = relative_error(weight, low_rank(weight, 5, moment=moment).to_dense(), moment) ** 2
    assert curve.errors[1] == pytest.approx(expected)


@st.composite
def curves(draw: st.DrawFn) -> dict[str, ErrorCurve]:
    made = {}
    for index in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 5))
        parameters = sorted(draw(st.lists(st.integers(1, 60), min_size=count, max_size=count)))
        errors = sorted(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
        ranks = tuple((rank,) for rank in range(1, count + 1))
        dense = draw(st.integers(1, 60))
        made[f"{index}"] = ErrorCurve(dense, ranks, tuple(parameters), tuple(errors[::-1]))
    return made


def cost_and_error(curve: ErrorCurve, ranks: tuple[int, ...] | None) -> tuple[int, float]:
    if ranks is None:
        return curve.dense, 0.0
    index = curve.ranks.index(ranks)
    return curve.parameters[index], curve.errors[index]


@settings(deadline=None)
@given(curves(), st.floats(1, 20), st.integers(0, 30))
def test_allocation_keeps_the_ratio_near_the_optimum(
    layers: dict[str, ErrorCurve], ratio: float, others: int
) -> None:
    """Against all combinations; no step fits any more, and the hull's slope bounds the gap."""
    before = others + sum(curve.dense for curve in layers.values())
    combinations = []
    for choice in itertools.product(*([None, *curve.ranks] for curve in layers.values())):
        pairs = [cost_and_error(c, r) for c, r in zip(layers.values(), choice, strict=True)]
        combinations.append((others + sum(p[0] for p in pairs), sum(p[1] for p in pairs)))
    feasible = [error for cost, error in combinations if cost <= before / ratio * (1 + 1e-12)]
    if not feasible:
        with pytest.raises(InvalidOptions, match="at most"):
            allocate(layers, ratio, others)
        return
    chosen = allocate(layers, ratio, others)
    pairs = [cost_and_error(layers[name], ranks) for name, ranks in chosen.items()]
    assert others + sum(cost for cost, _ in pairs) <= before / ratio * (1 + 1e-12)
    largest = max(max(curve.errors) for curve in layers.values())
    assert sum(error for _, error in pairs) <= min(feasible) + largest + 1e-9


def test_allocation_of_a_convex_problem_is_optimal() -> None:
    """Two layers of 10 parameters a rank; the second one's errors fall twice as fast."""
    ranks, parameters = tuple((r,) for r in range(1, 10)), tuple(range(10, 100, 10))
    slow = ErrorCurve(100, ranks, parameters, tuple(0.5**r for r in range(1, 10)))
    fast = ErrorCurve(100, ranks, parameters, tuple(0.5 ** (2 * r) for r in range(1, 10)))
    chosen = allocate({"slow": slow, "fast": fast}, 2.0, others=40)
    assert chosen == {"slow": (5,), "fast": (3,)}
    assert allocate({"slow": slow, "fast": fast}, 1.0) == {"slow": None, "fast": None}


def test_allocation_spends_nothing_on_what_is_exact() -> None:
    exact = ErrorCurve(100, ((1,), (2,)), (30, 60), (0.5, 0.0))
    assert allocate({"exact": exact}, 1.0) == {"exact": (2,)}


def test_allocation_over_a_model_meets_the_ratio_closely() -> None:
    weights = {name: trained_kernel(name) for name in ("conv2.weight", "conv3.weight", "fc.weight")}
    forms = {"conv2.weight": CP, "conv3.weight": Tucker2, "fc.weight": LowRank}
    found = {name: estimated_curve(forms[name], weight) for name, weight in weights.items()}
    before = 500 + sum(weight.size for weight in weights.values())
    for ratio in (1.5, 3.0, 8.0):
        chosen = allocate(found, ratio, others=500)
        after = 500 + sum(
            weights[name].size
            if ranks is None
            else forms[name].parameters(weights[name].shape, ranks)
            for name, ranks in chosen.items()
        )
        assert ratio <= before / after < 1.03 * ratio


@pytest.mark.parametrize("ratio", [0.5, 0.0, float("nan"), float("inf"), 1000.0])
def test_impossible_ratios(ratio: float) -> None:
    curve = estimated_curve(FORMS["lr"], random_kernel((20, 20)))
    with pytest.raises(InvalidOptions, match="compression_ratio"):
        allocate({"w": curve}, ratio, others=10)

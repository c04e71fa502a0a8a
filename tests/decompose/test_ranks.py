"""Ranks of one weight: of fractions, energies and VBMF."""

from __future__ import annotations

import itertools
import math

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
from hypothesis import given, settings
from hypothesis import strategies as st

from nnr_codec import InvalidModel, InvalidOptions
from nnr_codec.decompose.algorithms.cp import cp
from nnr_codec.decompose.algorithms.ht2 import ht2
from nnr_codec.decompose.algorithms.svd import low_rank
from nnr_codec.decompose.algorithms.tucker import tucker2
from nnr_codec.decompose.algorithms.vbmf import vbmf_rank
from nnr_codec.decompose.ranks.rank_options import (
    energy_ranks,
    rank_of_fraction,
    resolved_ranks,
    vbmf_ranks,
)
from nnr_codec.factorization.forms import CP, HT2, FactoredWeight, JointRight, LowRank, Tucker2

SHAPES = st.lists(st.integers(1, 12), min_size=4, max_size=4)


@settings(deadline=None)
@given(st.sampled_from(ONE_LAYER), SHAPES, st.floats(0.001, 1), st.integers(0, 99))
def test_the_best_ranks_keep_the_fraction(
    form: type[FactoredWeight], shape: list[int], fraction: float, seed: int
) -> None:
    weight = random_kernel(shape, seed)
    ranks = resolved_ranks(form, weight, fraction)
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
    chosen = resolved_ranks(form, weight, 0.6, moment)
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
    assert resolved_ranks(LowRank, weight, 0.5) == (26,)
    for rank in (0, -3, 65, 0.0, 1.5, float("nan")):
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

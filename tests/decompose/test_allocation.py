"""The allocation of a whole model's ranks at a ratio of parameters."""

from __future__ import annotations

import itertools

import pytest
from decompose_support import random_kernel, trained_kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from nnr_codec import InvalidOptions
from nnr_codec.decompose.ranks.allocation import allocate
from nnr_codec.decompose.ranks.error_curve import Choice, ErrorCurve, error_curve
from nnr_codec.factorization.forms import CP, HT2, LowRank


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

"""BD-rates of curves whose difference is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from nnr_codec.experiments.report.bd_rate import bd_rate, lower_hull

CURVE = [(0.001, 4000.0), (0.004, 3000.0), (0.02, 2000.0), (0.1, 1500.0), (0.7, 1000.0)]


def scaled(factor: float) -> list[tuple[float, float]]:
    return [(divergence, factor * size) for divergence, size in CURVE]


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.3])
def test_proportional_curves(factor: float) -> None:
    found = bd_rate(scaled(factor), CURVE)
    assert found.change == pytest.approx(factor - 1, abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(0.001), pytest.approx(0.7))
    assert (found.points, found.anchor_points, found.reason) == (5, 5, "")


def test_power_laws_have_a_closed_form() -> None:
    # log bytes = a - b log d: the mean difference is linear in the mean of log d.
    divergences = np.geomspace(0.01, 1, 6)
    anchor = [(float(d), 1000 * d**-0.2) for d in divergences]
    method = [(float(d), 900 * d**-0.3) for d in divergences[:4]]
    found = bd_rate(method, anchor)
    middle = math.log(0.01 * divergences[3]) / 2
    assert found.change == pytest.approx(math.exp(math.log(0.9) - 0.1 * middle) - 1, rel=1e-9)


def test_only_the_interval_counts() -> None:
    changed = [(d, b * (0.5 if d > 0.1 else 0.8)) for d, b in CURVE]
    assert bd_rate(changed, CURVE, (0.001, 0.02)).change == pytest.approx(-0.2, abs=1e-9)
    inside = bd_rate(CURVE, CURVE, (0.002, 0.05))
    assert (inside.low, inside.high) == (pytest.approx(0.002), pytest.approx(0.05))


def test_points_that_others_beat_do_not_count() -> None:
    assert bd_rate([*CURVE, (0.05, 3900.0), (0.3, 5000.0)], CURVE).change == pytest.approx(0)
    hull = lower_hull(np.array([[2.0, 5.0], [1.0, 5.0], [3.0, 1.0], [1.0, 6.0], [4.0, 2.0]]))
    assert hull.tolist() == [[1.0, 5.0], [3.0, 1.0]]


def test_what_cannot_be_compared_says_why() -> None:
    apart = bd_rate([(5.0, 10.0), (6.0, 9.0)], CURVE)
    assert (apart.change, apart.low) == (None, None)
    assert apart.reason == "no common interval"
    lossless = bd_rate([(0.0, 10.0), (0.01, 9.0)], CURVE)
    assert (lossless.change, lossless.points) == (None, 1)
    assert lossless.reason == "too few points"
    assert bd_rate(CURVE, []).reason == "anchor has too few points"
    assert bd_rate(CURVE, CURVE, (2.0, 3.0)).change is None

"""Bjøntegaard's difference of rates: how many bytes a method takes more at equal divergence.

After G. Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001,
with log divergence in place of PSNR, and monotone piecewise cubic interpolation (PCHIP), as later
practice has it. Each method's curve goes through the lower hull of its points: those that no other
point of the method beats in both, bytes and divergence. (Not the convex hull: log bytes are a
concave function of log divergence, of which that would leave little but the ends.)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...model import Float64

Points = Sequence[tuple[float, float]]
"""(divergence, bytes) of a method at its operating points."""


@dataclass(frozen=True)
class BdRate:
    """A method against the anchor.

    Attributes:
        change: bytes more, as a fraction of the anchor's: -0.1 is 10 % fewer; None: not defined.
        low, high: the interval of divergence; None where there is none.
        points, anchor_points: on the hulls, the interval or not.
        reason: why there is no figure; empty where there is.
    """

    change: float | None
    low: float | None = None
    high: float | None = None
    points: int = 0
    anchor_points: int = 0
    reason: str = ""


def bd_rate(
    points: Points, anchor: Points, interval: tuple[float, float] = (0.0, math.inf)
) -> BdRate:
    """Compare two methods over the divergences that both of them reach.

    Args:
        points: of the method; a divergence of 0 has no logarithm and is left out.
        anchor: of the anchor.
        interval: of divergence; what is outside is left out.
    """
    from scipy.interpolate import PchipInterpolator

    hulls = [lower_hull(_logarithms(curve)) for curve in (points, anchor)]
    counts = (len(hulls[0]), len(hulls[1]))
    if min(counts) < 2:
        whose = "anchor has " if counts[1] < 2 else ""
        return BdRate(None, None, None, *counts, f"{whose}too few points")
    low, high = max(hull[0, 0] for hull in hulls), min(hull[-1, 0] for hull in hulls)
    low, high = np.clip((low, high), *np.log(np.maximum(interval, sys.float_info.min))).tolist()
    if not low < high:
        return BdRate(None, None, None, *counts, "no common interval")
    means = [
        float(PchipInterpolator(hull[:, 0], hull[:, 1]).integrate(low, high)) / (high - low)
        for hull in hulls
    ]
    change = math.expm1(means[0] - means[1])
    return BdRate(change, math.exp(low), math.exp(high), *counts)


def _logarithms(points: Points) -> Float64:
    logs = [(math.log(d), math.log(b)) for d, b in points if d > 0 and b > 0]
    return np.array(logs, np.float64).reshape(-1, 2)


def lower_hull(points: Float64) -> Float64:
    """Return the points that no other beats in both coordinates, from left to right.

    Args:
        points: (n, 2), x and y.

    Returns:
        (m, 2), x ascending and y descending, m <= n.
    """
    hull: list[list[float]] = []
    for x, y in sorted(points.tolist()):
        if not hull or y < hull[-1][1]:
            hull.append([x, y])
    return np.array(hull, np.float64).reshape(-1, 2)

"""Ranks of all layers from one compression ratio, where each parameter lowers the error most."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...errors import InvalidOptions
from .error_curve import Choice, ErrorCurve

_LEAST_FRACTION = 1e-9
"""Of a layer's parameters: all ranks are then 1."""

_FRACTION_STEPS = 50
"""Halvings of the interval from 0 to 1."""


def allocate(
    curves: Mapping[str, ErrorCurve], ratio: float, others: int = 0, saved: int = 0
) -> dict[str, Choice | None]:
    """Return each layer's choice, or None for dense, at the least sum of errors found.

    The choices of a layer on the lower convex hull of its errors are made step by step, always
    the step that lowers the error most per parameter (water-filling). What is left at the end
    goes to single improvements that fit.

    Args:
        curves: of the layers that may be decomposed; the errors are what is added up.
        ratio: parameters of the whole model before over after, at least 1. It is reached or
            exceeded.
        others: parameters of all else, which stays as it is.
        saved: what all else had more of before.

    Raises:
        InvalidOptions: the ratio is below 1, or beyond what the lowest ranks give.
    """
    if not (math.isfinite(ratio) and ratio >= 1):
        raise InvalidOptions("compression_ratio", f"{ratio} is not a number of at least 1")
    layers = {name: _points(curve) for name, curve in curves.items()}
    before = saved + others + sum(curve.dense for curve in curves.values())
    chosen = dict.fromkeys(layers, 0)
    least = others + sum(points[0].parameters for points in layers.values())
    budget = math.floor(before / ratio * (1 + 1e-12)) - least
    if budget < 0:
        raise _out_of_reach(ratio, before, least)
    steps = sorted(
        (_slope(layers[name], start, end), name, end)
        for name, points in layers.items()
        for start, end in pairwise(_hull(points))
    )
    for _, name, end in steps:  # a hull's slopes rise, so its steps come in order
        cost = layers[name][end].parameters - layers[name][chosen[name]].parameters
        if cost > budget:
            continue
        chosen[name], budget = end, budget - cost
    _spend(layers, chosen, budget)
    return {name: layers[name][index].choice for name, index in chosen.items()}


def largest_fraction(
    parameters: Callable[[float], int], ratio: float, before: int, others: int
) -> float:
    """Return the largest fraction of every layer's parameters at which a model has a ratio.

    Args:
        parameters: what all layers take together where this fraction, above 0 and up to 1, is kept
            of each; it must not fall.
        ratio: parameters of the whole model before over after.
        before: the former.
        others: of the latter, those of all but the layers.

    Raises:
        InvalidOptions: the least fraction takes more.
    """
    low, high, budget = _LEAST_FRACTION, 1.0, before / ratio - others
    least = parameters(low)
    if least > budget:
        raise _out_of_reach(ratio, before, others + least)
    for _ in range(_FRACTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if parameters(middle) <= budget else (low, middle)
    return low


def _out_of_reach(ratio: float, before: int, least: int) -> InvalidOptions:
    reason = f"{ratio}: these layers give {before / least:.4g} at most"
    return InvalidOptions("compression_ratio", reason)


@dataclass(frozen=True)
class _Point:
    parameters: int
    error: float
    choice: Choice | None


def _points(curve: ErrorCurve) -> list[_Point]:
    """Return what may become of a layer, by rising parameters; the last is to stay dense."""
    points = [_Point(c.parameters, c.error, c) for c in curve.choices if c.error > 0]
    exact = [_Point(c.parameters, 0.0, c) for c in curve.choices if c.error <= 0]
    return [*points, *(exact or [_Point(curve.dense, 0.0, None)])]


def _slope(points: Sequence[_Point], start: int, end: int) -> float:
    """Return the change of the error per parameter from one choice to another."""
    cost = points[end].parameters - points[start].parameters
    return (points[end].error - points[start].error) / cost


def _hull(points: Sequence[_Point]) -> list[int]:
    """Return the indices of the points on the lower convex hull, from the first to the last."""
    hull: list[int] = []
    for index in range(len(points)):
        while len(hull) > 1 and _slope(points, hull[-2], hull[-1]) >= _slope(
            points, hull[-1], index
        ):
            hull.pop()
        hull.append(index)
    return hull


def _spend(layers: Mapping[str, Sequence[_Point]], chosen: dict[str, int], budget: int) -> None:
    """Go on to better points of single layers while one fits the budget, the steepest first."""
    while True:
        steps = [
            (_slope(points, chosen[name], index), name, index)
            for name, points in layers.items()
            for index in range(chosen[name] + 1, len(points))
            if points[index].parameters - points[chosen[name]].parameters <= budget
        ]
        if not steps:
            return
        _, name, index = min(steps)
        budget -= layers[name][index].parameters - layers[name][chosen[name]].parameters
        chosen[name] = index

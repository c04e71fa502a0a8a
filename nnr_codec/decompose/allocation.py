"""Ranks of all layers from one compression ratio, where each parameter lowers the error most."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidOptions
from ..factorization.forms import FactoredWeight
from .kernel import Float64, checked_weight, squared_error
from .ranks import Ranks, energy_path, spectra

_LEAST_FRACTION = 1e-9
"""Of a layer's parameters: all ranks are then 1."""

_FRACTION_STEPS = 50
"""Halvings of the interval from 0 to 1."""


@dataclass(frozen=True)
class ErrorCurve:
    """What a layer's error would be at some ranks.

    Attributes:
        dense: parameters of the dense weight; its error is 0.
        ranks: at least one choice.
        parameters: of each choice.
        errors: of each choice, squared and 0 or more; comparable between layers, such as
            relative to the layer's own energy.
    """

    dense: int
    ranks: tuple[Ranks, ...]
    parameters: tuple[int, ...]
    errors: tuple[float, ...]


def estimated_curve(
    form: type[FactoredWeight], weight: npt.NDArray[Any], name: str = "weight"
) -> ErrorCurve:
    """Return a bound of the relative squared error along `energy_path`, from singular values.

    For low rank it is the error itself; for the others the sum of what each rank cuts off, and
    for CP the error of the orthogonal terms that the fit starts from.

    Raises:
        InvalidModel: the weight cannot be decomposed.
        InvalidOptions: the form is joint.
    """
    return _curve(form, weight, name, lambda tails: min(sum(tails), 1.0))


def loss_curve(
    form: type[FactoredWeight], weight: npt.NDArray[Any], name: str = "weight"
) -> ErrorCurve:
    """Return -log of the part of the energy that is kept along `energy_path`.

    Like `estimated_curve` where little is lost; but the sum over layers is then that of the log
    of what a chain of layers passes on, and no layer is given up for the others: the loss is
    unbounded as a layer's energy vanishes.

    Raises:
        InvalidModel: the weight cannot be decomposed.
        InvalidOptions: the form is joint.
    """
    return _curve(form, weight, name, lambda tails: -sum(math.log1p(-tail) for tail in tails))


def _curve(
    form: type[FactoredWeight],
    weight: npt.NDArray[Any],
    name: str,
    error_of: Callable[[list[float]], float],
) -> ErrorCurve:
    """Return the errors along `energy_path`, from the parts of energy that each rank cuts off."""
    values = checked_weight(weight, form, name)
    tails = []
    for spectrum in spectra(form, values, name):
        beyond = np.append(np.cumsum(spectrum[::-1])[::-1], 0.0)
        tails.append(beyond / beyond[0])
    ranks = tuple(energy_path(form, values, name))
    cut = [[float(t[r]) for t, r in zip(tails, choice, strict=True)] for choice in ranks]
    return ErrorCurve(
        weight.size,
        ranks,
        tuple(form.parameters(weight.shape, choice) for choice in ranks),
        tuple(map(error_of, cut)),
    )


def measured_curve(
    weight: npt.NDArray[Any],
    choices: Sequence[Ranks],
    decompose: Callable[[Ranks], FactoredWeight],
    moment: Float64 | None = None,
) -> ErrorCurve:
    """Return the relative squared errors of decompositions made at the given ranks.

    Args:
        weight: not of zeros alone.
        choices: ranks to try, at least one.
        decompose: makes the weight's form of ranks.
        moment: of the unfolded input: then the error is the output's.
    """
    forms = [decompose(ranks) for ranks in choices]
    energy = squared_error(weight, np.zeros_like(weight), moment)
    return ErrorCurve(
        weight.size,
        tuple(form.ranks for form in forms),
        tuple(form.parameter_count for form in forms),
        tuple(squared_error(weight, form.to_dense(), moment) / energy for form in forms),
    )


def allocate(
    curves: Mapping[str, ErrorCurve], ratio: float, others: int = 0
) -> dict[str, Ranks | None]:
    """Return each layer's ranks, or None for dense, at the least sum of errors found.

    The choices of a layer on the lower convex hull of its errors are taken step by step, always
    the step that lowers the error most per parameter (water-filling). What is left at the end
    goes to single improvements that fit.

    Args:
        curves: of the layers that may be decomposed.
        ratio: parameters of the whole model before over after, at least 1. It is reached or
            exceeded.
        others: parameters of everything else, which stays as it is.

    Raises:
        InvalidOptions: the ratio is below 1, or beyond what the lowest ranks give.
    """
    if not (math.isfinite(ratio) and ratio >= 1):
        raise InvalidOptions("compression_ratio", f"{ratio} is not a number of at least 1")
    layers = {name: _choices(curve) for name, curve in curves.items()}
    before = others + sum(curve.dense for curve in curves.values())
    taken = dict.fromkeys(layers, 0)
    least = others + sum(int(choices[0].parameters) for choices in layers.values())
    budget = math.floor(before / ratio * (1 + 1e-12)) - least
    if budget < 0:
        most = before / least
        raise InvalidOptions("compression_ratio", f"{ratio}: these layers give {most:.4g} at most")
    hulls = {name: _hull(choices) for name, choices in layers.items()}
    steps = sorted(
        (_slope(layers[name], start, end), name, end)
        for name, hull in hulls.items()
        for start, end in pairwise(hull)
    )
    for _, name, end in steps:  # a hull's slopes rise, so its steps come in order
        cost = layers[name][end].parameters - layers[name][taken[name]].parameters
        if cost > budget:
            continue
        taken[name], budget = end, budget - cost
    _spend(layers, taken, budget)
    return {name: layers[name][index].ranks for name, index in taken.items()}


def largest_fraction(parameters: Callable[[float], int], budget: float) -> float | None:
    """Return the largest fraction of every layer's parameters that a budget allows.

    Args:
        parameters: what all layers take together where this fraction, above 0 and up to 1, is kept
            of each; it must not fall.
        budget: parameters that they may take.

    Returns:
        None if the least fraction takes more.
    """
    low, high = _LEAST_FRACTION, 1.0
    if parameters(low) > budget:
        return None
    for _ in range(_FRACTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if parameters(middle) <= budget else (low, middle)
    return low


@dataclass(frozen=True)
class _Choice:
    parameters: int
    error: float
    ranks: Ranks | None


def _choices(curve: ErrorCurve) -> list[_Choice]:
    """Return the choices worth having, by rising parameters and falling errors."""
    rows = zip(curve.parameters, curve.errors, curve.ranks, strict=True)
    found = [_Choice(*row) for row in rows if row[0] < curve.dense]
    found.append(_Choice(curve.dense, 0.0, None))
    found.sort(key=lambda choice: (choice.parameters, choice.error))
    kept: list[_Choice] = []
    for choice in found:
        if not kept or choice.error < kept[-1].error:
            kept.append(choice)
    return kept


def _slope(choices: Sequence[_Choice], start: int, end: int) -> float:
    """Return the change of the error per parameter from one choice to another."""
    cost = choices[end].parameters - choices[start].parameters
    return (choices[end].error - choices[start].error) / cost


def _hull(choices: Sequence[_Choice]) -> list[int]:
    """Return the indices of the choices on the lower convex hull, from the first to the last."""
    hull: list[int] = []
    for index in range(len(choices)):
        while len(hull) > 1 and _slope(choices, hull[-2], hull[-1]) >= _slope(
            choices, hull[-1], index
        ):
            hull.pop()
        hull.append(index)
    return hull


def _spend(layers: Mapping[str, Sequence[_Choice]], taken: dict[str, int], budget: int) -> None:
    """Go on to better choices of single layers while one fits the budget, the steepest first."""
    while True:
        steps = [
            (_slope(choices, taken[name], index), name, index)
            for name, choices in layers.items()
            for index in range(taken[name] + 1, len(choices))
            if choices[index].parameters - choices[taken[name]].parameters <= budget
            and choices[index].error < choices[taken[name]].error
        ]
        if not steps:
            return
        _, name, index = min(steps)
        budget -= layers[name][index].parameters - layers[name][taken[name]].parameters
        taken[name] = index

"""Weights decomposed into forms, to ranks or within an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidModel
from ..factorization.factored_weight import FactoredWeight, Ranks
from ..model import Array, Float64
from .algorithms.kernel import checked_weight, relative_error
from .forms import fitting_of
from .layer_kinds import LayerWeight
from .ranks.error_curve import ErrorCurve

Form = type[FactoredWeight]

_TRIES, _MOST_TRIES = 4, 12
"""Decompositions made to meet an error, each from what the one before has missed it by: so many
for fewer parameters, and so many for any that meets it."""


@dataclass(frozen=True)
class Task:
    """A weight to be decomposed.

    Attributes:
        weight: which.
        form: into what.
        ranks: of the form.
        moment: of the layer's unfolded input, or None.
    """

    weight: LayerWeight
    form: Form
    ranks: Ranks = ()
    moment: Float64 | None = None


def values_of(weight: LayerWeight) -> Array:
    """Return the values of a weight, float64 as they are and all others as float32."""
    values = weight.parameter.read()
    return values if values.dtype == np.float64 else values.astype(np.float32)


def decomposed(task: Task) -> FactoredWeight | str:
    """Return the factors of a task, or the reason why the weight cannot be decomposed."""
    weight = task.weight
    try:
        return decompose_to(task.form, values_of(weight), task.ranks, task.moment, weight.name)
    except InvalidModel as error:
        return error.reason


def usable(weights: Iterable[tuple[LayerWeight, Form]], skipped: dict[str, str]) -> set[str]:
    """Return the names of the weights that can get these forms; add to `skipped` why not others."""
    names = set()
    for weight, form in weights:
        try:
            checked_weight(values_of(weight), form, weight.name)
        except InvalidModel as error:
            skipped[weight.name] = error.reason
        else:
            names.add(weight.name)
    return names


def decompose_within(
    curve: ErrorCurve,
    error: float,
    values: Array,
    moment: Float64 | None = None,
    name: str = "weight",
) -> FactoredWeight | None:
    """Return the decomposition of fewest parameters found that really has at most an error.

    Args:
        curve: the errors to expect of the weight's forms, which are corrected by those reached.
        error: squared and relative, 0 to 1; of the output where the moment is given.
        values, moment, name: as of `decompose_to`.

    Raises:
        InvalidModel: the weight cannot be decomposed.
    """
    best: FactoredWeight | None = None
    tried: set[tuple[int, ...]] = set()
    correction = 1.0
    for tries in range(_MOST_TRIES):
        if tries >= _TRIES and best is not None:
            break
        choice = curve.fewest(error / correction)
        if choice is None or choice.ranks in tried:
            break
        tried.add(choice.ranks)
        made = decompose_to(choice.form, values, choice.ranks, moment, name)
        reached = relative_error(values, made.to_dense(), moment)
        if reached <= error and (best is None or made.parameter_count < best.parameter_count):
            best = made
        if choice.error <= 0 or reached <= 0:
            break
        correction = reached / choice.error
    return best


def decompose_to(
    form: Form,
    values: Array,
    ranks: Sequence[int],
    moment: Float64 | None = None,
    name: str = "weight",
) -> FactoredWeight:
    """Decompose a weight into a form of a single weight.

    Args:
        values: of a shape that the form has.
        moment: of the unfolded input: then the error of the output is minimized.

    Raises:
        InvalidModel: the weight cannot be decomposed.
        InvalidOptions: the ranks are impossible, or the form is joint.
    """
    return fitting_of(form, name).fit(values, ranks, moment, name)

"""Weights decomposed into forms, to ranks or within an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidModel
from ..factorization.forms import FactoredWeight
from ..model import Array, Float64
from .algorithms.kernel import checked_weight, relative_error
from .forms import fitting_of
from .layer_kinds import LayerWeight
from .ranks.error_curve import ErrorCurve, fewest_parameters
from .ranks.rank_options import Ranks

Form = type[FactoredWeight]


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
    """Carry a task out; a weight that cannot be decomposed gives the reason."""
    try:
        return decompose_to(
            task.form, values_of(task.weight), task.ranks, task.moment, task.weight.name
        )
    except InvalidModel as error:
        return error.reason


def usable(weights: Iterable[tuple[LayerWeight, Form]], skipped: dict[str, str]) -> set[str]:
    """Return the names of the weights that can be decomposed; note in `skipped` why others cannot.

    Args:
        weights: and the forms that they are meant to get.
        skipped: reasons by name, added to.
    """
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
    """Decompose a weight with few parameters, within a relative squared error, if that is found.

    Args:
        curve: the errors to expect of a form of the weight.
        error: 0 to 1; of the output where the moment is given.
        values, moment, name: as of `decompose_to`.

    Raises:
        InvalidModel: the weight cannot be decomposed.
    """
    return fewest_parameters(
        curve,
        error,
        lambda choice: decompose_to(choice.form, values, choice.ranks, moment, name),
        lambda made: relative_error(values, made.to_dense(), moment),
    )


def decompose_to(
    form: Form,
    values: Array,
    ranks: Sequence[int],
    moment: Float64 | None = None,
    name: str = "weight",
) -> FactoredWeight:
    """Decompose a weight into a form of its own.

    Args:
        form: of a single weight.
        values: of the weight, of a shape that the form has.
        ranks: of the form.
        moment: of the unfolded input: then the error of the output is minimized.
        name: the weight's name, for errors.

    Raises:
        InvalidModel: the weight cannot be decomposed.
        InvalidOptions: the ranks are impossible, or the form is joint.
    """
    return fitting_of(form, name).fit(values, ranks, moment, name)

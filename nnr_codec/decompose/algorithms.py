"""The algorithm of each form, called alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidModel
from ..factorization.forms import CP, HT2, FactoredWeight, LowRank, Tucker2
from .cp import cp
from .ht2 import ht2
from .kernel import Float64
from .layer_kinds import LayerWeight
from .ranks import Ranks
from .svd import low_rank
from .tucker import tucker2

__all__ = ["Form", "Task", "decompose_to", "decomposed", "values_of"]

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


def values_of(weight: LayerWeight) -> npt.NDArray[Any]:
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


def decompose_to(
    form: Form,
    values: npt.NDArray[Any],
    ranks: Sequence[int],
    moment: Float64 | None = None,
    name: str = "weight",
) -> FactoredWeight:
    """Decompose a weight into a form of its own.

    Args:
        form: low rank, CP, Tucker-2 or HT-2.
        values: of the weight, of a shape that the form has.
        ranks: of the form.
        moment: of the unfolded input: then the error of the output is minimized.
        name: the weight's name, for errors.

    Raises:
        InvalidModel: the weight cannot be decomposed.
        InvalidOptions: the ranks are impossible.
    """
    if form is LowRank:
        return low_rank(values, ranks[0], moment=moment, name=name)
    if form is CP:
        return cp(values, ranks[0], moment=moment, name=name)
    if form is Tucker2:
        return tucker2(values, ranks, moment=moment, name=name)
    if form is HT2:
        return ht2(values, ranks, moment=moment, name=name)
    raise AssertionError(f"{form.form} is no form of a single weight")

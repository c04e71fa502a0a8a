"""What a layer's error would be at the ranks of a form: what all choices of ranks rest on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...factorization.forms import FactoredWeight
from ...model import Array, Float64
from ..algorithms.kernel import checked_weight
from ..forms import fitting_of

_LEVELS = 400
"""Of parameters, evenly spaced by logarithm: a curve has the best choice up to each."""

_LARGEST_ERROR = 1 - 1e-12
"""Of a choice, for its logarithm: it keeps something."""


@dataclass(frozen=True)
class Choice:
    """A form and its ranks.

    Attributes:
        form: of a single weight.
        ranks: as many as the form has.
        parameters: of all factors.
        error: squared, relative to the weight's energy, or to the output's one: 0 to 1; of
            `ErrorCurve.of_losses` the loss instead, 0 or more.
    """

    form: type[FactoredWeight]
    ranks: tuple[int, ...]
    parameters: int
    error: float


@dataclass(frozen=True)
class ErrorCurve:
    """Choices for a layer, and what error to expect of each.

    Attributes:
        dense: parameters of the dense weight; its error is 0.
        choices: by rising parameters, all less than `dense`, and falling errors; there may be none.
    """

    dense: int
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, dense: int, choices: Iterable[Choice]) -> ErrorCurve:
        """Return a curve of those choices that no other one is better than."""
        kept: list[Choice] = []
        for choice in sorted(choices, key=lambda c: (c.parameters, c.error)):
            if choice.parameters < dense and (not kept or choice.error < kept[-1].error):
                kept.append(choice)
        return cls(dense, tuple(kept))

    def fewest(self, error: float) -> Choice | None:
        """Return the choice of fewest parameters with at most this error, if there is one."""
        return next((choice for choice in self.choices if choice.error <= error), None)

    def best(self, parameters: float) -> Choice | None:
        """Return the choice of least error with at most so many parameters, if there is one."""
        fitting = (c for c in reversed(self.choices) if c.parameters <= parameters)
        return next(fitting, None)

    def scaled(self, factor: float) -> ErrorCurve:
        """Return the curve with all errors times `factor`, but not above 1."""
        scaled = (replace(c, error=min(c.error * factor, 1.0)) for c in self.choices)
        return ErrorCurve.of(self.dense, scaled)

    def of_losses(self) -> ErrorCurve:
        """Return the curve of -log(1 - error), that of the energy which is kept.

        Added up over layers, it is the loss of what a chain of them passes on. No layer is given
        up for the others, as it grows beyond all bounds when a layer's energy vanishes.
        """
        losses = (-math.log1p(-min(c.error, _LARGEST_ERROR)) for c in self.choices)
        choices = zip(self.choices, losses, strict=True)
        return ErrorCurve(self.dense, tuple(replace(c, error=loss) for c, loss in choices))


def error_curve(
    form: type[FactoredWeight],
    weight: Array,
    moment: Float64 | None = None,
    name: str = "weight",
) -> ErrorCurve:
    """Return the errors to expect of a form.

    Those of low rank are exact. Those of Tucker-2 and HT-2 are of leading singular vectors, before
    any iteration; those of CP are fitted at a few ranks. With a moment, all but low rank go by
    `SeparableNorm`, and what is reached in the end is mostly less.

    Args:
        form: of a single weight.
        weight: dense, any float type, of a shape that the form has.
        moment: of the layer's unfolded input, n x n: the error is then the output's.

    Raises:
        InvalidModel: the weight cannot be decomposed.
        InvalidOptions: the form is joint, or the moment does not fit the weight.
    """
    fitting = fitting_of(form, name)
    values = checked_weight(weight, form, name, moment)
    ranks, errors = fitting.errors(values if moment is None else fitting.in_norm(values, moment))
    parameters = np.array([form.parameters(weight.shape, r) for r in ranks.tolist()], np.int64)
    chosen = _worthwhile(parameters, errors)
    rows = zip(ranks[chosen].tolist(), parameters[chosen], errors[chosen], strict=True)
    choices = (Choice(form, tuple(r), int(p), float(e)) for r, p, e in rows)
    return ErrorCurve.of(weight.size, choices)


def merged(curves: Iterable[ErrorCurve]) -> ErrorCurve:
    """Return the best choices of several curves of one weight."""
    listed = list(curves)
    return ErrorCurve.of(listed[0].dense, (c for curve in listed for c in curve.choices))


def _worthwhile(parameters: npt.NDArray[np.int64], errors: Float64) -> npt.NDArray[np.int64]:
    """Return the indices of the best choice at each of some levels of parameters."""
    order = np.lexsort((errors, parameters))
    falling = np.minimum.accumulate(errors[order])
    kept = order[np.flatnonzero(errors[order] <= falling)]
    levels = np.geomspace(parameters[kept[0]], parameters[kept[-1]], _LEVELS)
    last = np.searchsorted(parameters[kept], levels * (1 + 1e-9), side="right") - 1
    return np.asarray(kept[np.unique(last)])

"""Comparison of two models, tensor by tensor, whichever files they are in."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..model import Array, Parameter
from ..support.pieces import pieces
from ._open_models import OpenModel

_PIECE = 1 << 16
"""Elements that are compared together: what is computed of them takes little memory."""


@dataclass(frozen=True)
class Difference:
    """How the values of a tensor in a second model differ from those in the first.

    Attributes:
        elements: of the tensor.
        changed: elements whose values differ; NaN equals NaN, and -0 equals 0.
        squared_error: sum of the squared differences; infinite where only one value is finite.
        energy: sum of the squares of the first model's finite values.
        largest_error: the largest absolute difference.
    """

    elements: int = 0
    changed: int = 0
    squared_error: float = 0.0
    energy: float = 0.0
    largest_error: float = 0.0

    @property
    def nmse(self) -> float:
        """The squared error over the energy; infinite for an error where there is no energy."""
        if not self.squared_error:
            return 0.0
        return self.squared_error / self.energy if self.energy else math.inf

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.elements + other.elements,
            self.changed + other.changed,
            self.squared_error + other.squared_error,
            self.energy + other.energy,
            max(self.largest_error, other.largest_error),
        )


@dataclass(frozen=True)
class ComparedTensor:
    """A tensor of one of two models, or of both.

    Attributes:
        name: of the tensor.
        first, second: it in the models; None where it is missing. Not to be read.
        coded_bytes: in the two files, where these are streams.
        difference: of the values; None if only one has it, or the shapes differ.
    """

    name: str
    first: Parameter | None
    second: Parameter | None
    coded_bytes: tuple[int | None, int | None]
    difference: Difference | None

    @property
    def is_equal(self) -> bool:
        """Whether both have it with the same shape, element type and values."""
        first, second, difference = self.first, self.second, self.difference
        if first is None or second is None or difference is None:
            return False
        return first.dtype == second.dtype and not difference.changed


def compared(
    first: OpenModel, second: OpenModel, only: str | None = None
) -> Iterator[ComparedTensor]:
    """Yield the tensors of two models, in the order of the first, those of the second alone last.

    One tensor of each is in memory at a time.

    Args:
        first, second: the models.
        only: a glob that names have to match.
    """
    for name in dict.fromkeys([*first.parameters, *second.parameters]):
        if only is not None and not fnmatch.fnmatchcase(name, only):
            continue
        one, other = first.parameters.get(name), second.parameters.get(name)
        difference = None
        if one is not None and other is not None and one.shape == other.shape:
            difference = difference_of(one.read(), other.read())
        sizes = first.coded_bytes.get(name), second.coded_bytes.get(name)
        yield ComparedTensor(name, one, other, sizes, difference)


def difference_of(first: Array, second: Array) -> Difference:
    """Compare the values of two arrays of one shape, and of any types that can be coded."""
    one, other = first.reshape(-1), second.reshape(-1)
    total = Difference()
    for piece in pieces(one.size, _PIECE):
        total += _difference(one[piece], other[piece])
    return total


def _difference(first: Array, second: Array) -> Difference:
    # Integers of 64 bits are told apart as they are, not in binary64.
    is_changed = first != second if first.dtype == second.dtype else None
    one, other = first.astype(np.float64), second.astype(np.float64)
    if is_changed is None:
        is_changed = one != other
    is_changed &= ~(np.isnan(one) & np.isnan(other))
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.abs(other - one)[is_changed]
        errors[np.isnan(errors)] = math.inf
        squares = np.where(np.isfinite(one), one, 0.0) ** 2
        return Difference(
            first.size,
            int(is_changed.sum()),
            float((errors**2).sum()),
            float(squares.sum()),
            float(errors.max(initial=0.0)),
        )

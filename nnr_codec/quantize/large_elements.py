"""The elements of a tensor that are not near zero: those that have errors once it is quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import Float64
from ..support.pieces import pieces
from .feedback import ErrorFeedback

_SMALL = 0.25
"""Of the deviation, below which elements count as being near zero, whatever steps they get."""

_PIECE = 1 << 20
"""Elements that are looked at together, in float64."""


@dataclass(frozen=True, slots=True)
class LargeElements:
    """What is known of the large elements of a tensor.

    Attributes:
        deviation: root of E[x⁴] / 3 E[x²] over all elements: that of normal ones, however many
            zeros are beside them.
        count: how many there are; elements near zero count less, by their squares.
        felt: how much more than in the mean errors cost there, by the feedback; 1 if that is not
            known.
    """

    deviation: float
    count: float
    felt: float = 1.0


def large_elements(
    values: npt.NDArray[Any], largest: float, feedback: ErrorFeedback | None
) -> LargeElements | None:
    """Return what is known of the large elements of a tensor; None: they are 0, or subnormal.

    Args:
        values: of the tensor, finite.
        largest: the largest magnitude of them.
        feedback: of its errors, if that is known.
    """
    if not largest:
        return None
    flat = values.reshape(-1)
    parts = [flat[part] for part in pieces(flat.size, _PIECE)]
    sums = np.zeros(2)
    for part in parts:
        squares = _squares(part, largest)
        sums += squares.sum(), np.square(squares).sum()
    deviation = largest * math.sqrt(sums[1] / sums[0] / 3)
    size = _SMALL * deviation
    if size < float(np.finfo(np.float32).tiny):
        return None
    count = sum(float(np.minimum(_squares(part, size), 1).sum()) for part in parts)
    felt = 1.0 if feedback is None else feedback.felt(values, size)
    return LargeElements(deviation, count, felt)


def _squares(values: npt.NDArray[Any], unit: float) -> Float64:
    with np.errstate(over="ignore"):
        return np.square(values.astype(np.float64) / unit)

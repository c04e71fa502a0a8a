"""A target of quality: the smallest stream whose loss is within it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ...errors import TargetNotReached
from ...report import Evaluation
from ..stream_encoder import Draft
from .offsets import Narrowing, Values
from .target import Seen

_SLOPES = 1.0, 4.0
"""Of log losses over those of squares of steps: what is measured rises no slower than these."""

_GROWTH = 2

_OCTAVES_BELOW = 6
"""By which a loss may seem to be below the bound: scores are noisy, and 0 has no logarithm."""


@dataclass(frozen=True)
class QualityTarget:
    """The offset that gives the smallest stream with a loss that is within the bound.

    Losses rise about as the square of the step does: their logarithm is a line of the offset, by
    which the next one is guessed.

    Attributes:
        option: its name.
        bound: the most that the loss may be; above 0.
        range: the least and the greatest offset.
        per_octave: offsets that double the step.
        most: streams that are measured.
        measure: returns the loss of a stream.
    """

    option: str
    bound: float
    range: tuple[int, int]
    per_octave: int
    most: int
    measure: Callable[[Draft], float]

    compares_kept: ClassVar[bool] = False  # its loss would be another

    def offsets(self, seen: Seen) -> Iterator[int]:
        """Yield where to encode next: first with the options' own qp, if the range has it."""
        lowest, highest = self.range
        first = min(max(0, lowest), highest)
        yield first
        # Positions are offsets the other way round, as the losses fall where these do.
        exceeds, fits = -highest - 1, -lowest + 1
        exceeds, fits = (-first, fits) if self._exceeds(seen[first]) else (exceeds, -first)
        logarithms = Values(seen, self._logarithm, reversed_=True)
        is_exceeding = partial(operator.lt, 0.0)
        narrowing = Narrowing(logarithms, 0.0, self._estimate, is_exceeding, _SLOPES, _GROWTH)
        for position in narrowing.positions(exceeds, fits):
            if len(seen) == self.most - 1 and self.best(seen) is None:
                yield lowest
                return
            if len(seen) == self.most:
                return
            yield -position

    def _exceeds(self, seen: Evaluation) -> bool:
        return self._loss(seen) > self.bound

    def _logarithm(self, seen: Evaluation) -> float:
        """Return the octaves by which a loss exceeds the bound."""
        loss = self._loss(seen)
        return math.inf if math.isinf(loss) else math.log2(max(loss / self.bound, self._least))

    _least: ClassVar[float] = 2.0**-_OCTAVES_BELOW

    def _estimate(self, position: int) -> float:
        """Return the octaves of the square of the step, more or less all the same number."""
        return -2 * position / self.per_octave

    def loss(self, draft: Draft) -> float:
        """Return what is measured of a stream; infinite if that is nothing finite."""
        loss = self.measure(draft)
        return loss if math.isfinite(loss) else math.inf

    def best(self, seen: Seen) -> Evaluation | None:
        """Return the smallest of the streams that are within the bound."""
        within = [one for one in seen.values() if not self._exceeds(one)]
        return min(within, key=lambda one: (one.bytes or 0, one.qp_offset), default=None)

    def notes(self, seen: Seen) -> list[str]:
        """Say so if the search ended before the next coarser stream was seen to exceed."""
        best = self.best(seen)
        if best is None or best.qp_offset + 1 in seen or best.qp_offset == self.range[1]:
            return []
        reason = f"the search ended with the {len(seen)} streams that it may measure"
        return [f"{self.option}: {reason}; a smaller one may be within it"]

    def not_reached(self, seen: Seen) -> TargetNotReached:
        """Return the error that names the stream with the least loss."""
        least = min(seen.values(), key=lambda one: (self._loss(one), one.qp_offset))
        at = f"with a qp offset of {least.qp_offset}"
        if least.failure is not None:
            return TargetNotReached(self.option, f"not reached: {at}, tensor {least.failure}")
        reason = f"{self.bound:g} cannot be reached: the least is {least.loss:.3g}, {at}"
        return TargetNotReached(self.option, f"{reason} and {least.bytes} bytes")

    @staticmethod
    def _loss(seen: Evaluation) -> float:
        return math.inf if seen.loss is None or seen.failure is not None else seen.loss

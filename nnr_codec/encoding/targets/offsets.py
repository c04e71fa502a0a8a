"""Where to look next, between a position where a value exceeds what is allowed and one where not.

Positions are whole numbers; values fall with them, unless they rise here and there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

from ...report import Evaluation


class Values(Mapping[int, float]):
    """A value of each stream that was made, by position: looks into a mapping that grows."""

    def __init__(
        self,
        seen: Mapping[int, Evaluation],
        value: Callable[[Evaluation], float],
        *,
        reversed_: bool = False,
    ) -> None:
        """`seen`: by offset, which is the position, or, reversed, less than 0 by as much."""
        self._seen = seen
        self._value = value
        self._sign = -1 if reversed_ else 1

    def __getitem__(self, position: int) -> float:
        return self._value(self._seen[self._sign * position])

    def __iter__(self) -> Iterator[int]:
        return (self._sign * offset for offset in self._seen)

    def __len__(self) -> int:
        return len(self._seen)


@dataclass(frozen=True)
class Narrowing:
    """The search between two positions.

    Attributes:
        values: those that are known, by position; infinite where there is no stream.
        allowed: the most that a value may be.
        estimate: about the value at a position, or something that it is a line of.
        is_exceeding: whether the answer lies behind a position with this value.
        slopes: the least and the greatest of values over estimates, from one stream to another:
            two may be alike.
        growth: by which the distance grows that is added to guesses which all miss on one side, as
            each is closer than the estimate is exact.
    """

    values: Mapping[int, float]
    allowed: float
    estimate: Callable[[int], float]
    is_exceeding: Callable[[float], bool]
    slopes: tuple[float, float]
    growth: int

    def positions(self, exceeds: int, fits: int) -> Generator[int, None, tuple[int, int]]:
        """Yield where to look next, until the positions are neighbours; values must be there when
        the next one is wanted. What is outside of the range may be the first `exceeds`, or `fits`.

        Returns:
            The neighbours.
        """
        values = self.values
        widths = [math.inf, math.inf]
        while fits - exceeds > 1:
            widths.append(fits - exceeds if exceeds in values and fits in values else math.inf)
            is_slow = math.inf > widths[-3] < 4 * widths[-1]
            is_slow |= math.inf in (values.get(exceeds), values.get(fits))
            position = (exceeds + fits) // 2 if is_slow else self._guess(exceeds, fits)
            yield position
            is_behind = self.is_exceeding(values[position])
            exceeds, fits = (position, fits) if is_behind else (exceeds, position)
        return exceeds, fits

    def _guess(self, exceeds: int, fits: int) -> int:
        """Return the first position where the value seems to fit, by the estimate on a line through
        the nearest values."""
        finite = {at: value for at, value in self.values.items() if value < math.inf}
        is_between = exceeds in finite and fits in finite
        end = exceeds if exceeds in finite else fits
        distances = {at: (abs(v - self.allowed), abs(at - end)) for at, v in finite.items()}
        nearest = sorted(distances, key=distances.__getitem__)[:2]
        first, *second = (exceeds, fits) if is_between else nearest or (0,)
        slope = 1.0
        if second and (rise := self.estimate(first) - self.estimate(*second)):
            slope = (finite[first] - finite[second[0]]) / rise
            slope = slope if is_between else min(max(slope, self.slopes[0]), self.slopes[1])
        origin = finite[first] - slope * self.estimate(first) if finite else 0.0
        low, high = exceeds + 1, fits - 1
        while low < high:
            middle = (low + high) // 2
            seems_to_fit = origin + slope * self.estimate(middle) <= self.allowed
            low, high = (low, middle) if seems_to_fit else (middle + 1, high)
        beyond = self.growth ** (len(finite) - 2) if len(finite) > 1 else 0
        if (exceeds in finite) != (fits in finite):
            low += beyond if exceeds in finite else -beyond
        return min(max(low, exceeds + 1), fits - 1)

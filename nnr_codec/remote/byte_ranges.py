"""Sets of bytes of a file, as ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""The bytes from the first number up to, but without, the second."""


class ByteRanges:
    """A set of byte positions, kept as ranges that neither touch nor overlap, in order."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    @property
    def byte_count(self) -> int:
        """How many bytes are in the set."""
        return sum(self._stops) - sum(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Add the bytes from `start` to `stop`, some of which may be in the set."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)  # of the ranges that are touched
        end = bisect_right(self._starts, stop)
        if first < end:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[end - 1])
        self._starts[first:end] = [start]
        self._stops[first:end] = [stop]

    def first_gap(self, start: int, stop: int) -> Range | None:
        """Return the first range between `start` and `stop` that is not in the set, if any."""
        index = bisect_right(self._starts, start) - 1
        if index >= 0:
            start = max(start, self._stops[index])
        if start >= stop:
            return None
        if index + 1 < len(self._starts):
            stop = min(stop, self._starts[index + 1])
        return start, stop

    def gaps(self, start: int, stop: int) -> Iterator[Range]:
        """Yield the ranges between `start` and `stop` that are not in the set, in order."""
        while gap := self.first_gap(start, stop):
            yield gap
            start = gap[1]


def joined(ranges: Iterable[Range], bridge: int) -> list[Range]:
    """Return ranges with those joined that follow each other in the file as they do in the order
    given, with at most `bridge` bytes between them; empty ones are left out."""
    result: list[Range] = []
    for start, stop in ranges:
        if start >= stop:
            continue
        if result and result[-1][0] <= start <= result[-1][1] + bridge:
            result[-1] = result[-1][0], max(result[-1][1], stop)
        else:
            result.append((start, stop))
    return result

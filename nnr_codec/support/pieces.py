"""Long arrays that are worked on piece by piece, which bounds what is made of them."""

from __future__ import annotations

from collections.abc import Iterator


def pieces(count: int, most: int) -> Iterator[slice]:
    """Yield slices that together cover so many indices, each of `most` of them at most, or of one
    if that is less."""
    step = max(1, most)
    return (slice(start, start + step) for start in range(0, count, step))

"""Moments of gradients in several passes over the batches, those of a few weights in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .gradients import OutputGradients
from .moments import ResultMoments
from .spilled_moments import SpilledMoments


def spilled_in_turns(turns: Sequence[OutputGradients], batches: Iterable[Any]) -> SpilledMoments:
    """Return the moments of collectors of which the first has seen the batches.

    Args:
        turns: the collectors; each sees all batches.
        batches: of samples, the same ones again.
    """

    def moments() -> Iterator[tuple[str, ResultMoments]]:
        for number, collector in enumerate(turns):
            if number:
                for batch in batches:
                    collector.add(batch)
            yield from collector.moments().items()

    return SpilledMoments(moments())

"""Moments of gradients in several passes over the batches, those of a few weights in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..errors import InvalidOptions
from ..user.module import inputs_of, sample_count
from .gradients import OutputGradients
from .held_back import HoldBack, KeptBatches
from .moments import ResultMoments
from .spilled_moments import SpilledMoments

_REMEDY = "let it be a list, or a loader that does not shuffle"


def check_repeatable(batches: Iterable[Any]) -> None:
    """Raise InvalidOptions if batches are an iterator, which is used up by one pass."""
    if not is_repeatable(batches):
        kind = type(_source_of(batches)).__name__
        reason = f"goes over the batches several times, and a {kind} is used up by one: {_REMEDY}"
        raise InvalidOptions("low_memory", reason)


def is_repeatable(batches: Iterable[Any]) -> bool:
    """Whether batches can be gone over again, as far as their type tells."""
    return not isinstance(_source_of(batches), Iterator)


def _source_of(batches: Iterable[Any]) -> Iterable[Any]:
    while isinstance(batches, HoldBack | KeptBatches):
        batches = batches.source
    return batches


def spilled_in_turns(
    turns: Sequence[OutputGradients], batches: Iterable[Any], samples: int
) -> SpilledMoments:
    """Return the moments of collectors of which the first has seen the batches.

    Args:
        turns: the collectors; each sees all batches.
        batches: of samples, the same ones again.
        samples: in all batches, by the first pass.

    Raises:
        InvalidOptions: a later pass has other samples than the first.
    """

    def moments() -> Iterator[tuple[str, ResultMoments]]:
        for number, collector in enumerate(turns):
            if number:
                _collect(collector, batches, samples)
            yield from collector.moments().items()

    return SpilledMoments(moments())


def _collect(collector: OutputGradients, batches: Iterable[Any], samples: int) -> None:
    seen = 0
    for batch in batches:
        seen += sample_count(inputs_of(batch))
        collector.add(batch)
    if seen != samples:
        reason = f"the batches, gone over again, have {seen} samples, not {samples}: {_REMEDY}"
        raise InvalidOptions("calibration", reason)

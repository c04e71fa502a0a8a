"""Batches of samples: loaded by index, and thinned out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nnr_codec.errors import InvalidOptions
from nnr_codec.user.module import sample_count

Batch = tuple[Any, Any]
"""Inputs and targets of some samples; both are a tensor or an array, or a tuple of them, with
samples along the first dimension. Targets are None where there are none."""


@dataclass(frozen=True)
class Batches:
    """Samples that are loaded by index, in batches; a callable as `Subject.batches` takes it.

    Thinned out, it loads nothing but the samples chosen, which any other iterable cannot.

    Attributes:
        load: returns the samples of some indices as one batch.
        indices: of the samples, in order.
        size: samples in a batch; the last may have fewer.
    """

    load: Callable[[Sequence[int]], Batch]
    indices: Sequence[int]
    size: int = 100

    def __call__(self) -> Iterator[Batch]:
        """Load one batch after the other."""
        for start in range(0, len(self.indices), self.size):
            yield self.load(self.indices[start : start + self.size])


def thinned(
    batches: Callable[[], Iterable[Batch]], stride: int, limit: int | None
) -> Callable[[], Iterable[Batch]]:
    """Return every `stride`-th sample of `batches`, from the first one on, at most `limit`.

    Raises:
        InvalidOptions: `stride` or `limit` is less than 1.
    """
    for option, value in (("stride", stride), ("limit", limit)):
        if value is not None and value < 1:
            raise InvalidOptions(option, f"{value} is less than 1")
    if stride == 1 and limit is None:
        return batches
    if isinstance(batches, Batches):
        return replace(batches, indices=batches.indices[::stride][:limit])
    return lambda: _chosen(batches(), stride, limit)


def _chosen(batches: Iterable[Batch], stride: int, limit: int | None) -> Iterator[Batch]:
    passed, chosen = 0, 0
    for inputs, targets in batches:
        count = sample_count(inputs)
        first = -passed % stride
        end = count if limit is None else min(count, first + (limit - chosen) * stride)
        passed += count
        if first < end:
            which = slice(first, end, stride)
            chosen += len(range(count)[which])
            yield _part(inputs, which), _part(targets, which)
        if chosen == limit:
            return


def _part(values: Any, which: slice) -> Any:
    if isinstance(values, tuple):
        return tuple(value[which] for value in values)
    return None if values is None else values[which]


def first_sample(inputs: Any) -> Any:
    """Return the first sample of a batch's `inputs`, as a batch of one."""
    return _part(inputs, slice(1))

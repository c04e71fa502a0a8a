"""Calibration samples: some that are held back, to judge by, and some that are kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from typing import Any

from ..errors import InvalidOptions
from ..user.module import inputs_of, sample_count, with_parts

_EVERY = 4
"""Of so many batches, or samples, the last one is held back."""

KEPT_BYTES = 1 << 28
"""Of batches that are kept in memory, unless the caller says otherwise."""


class HoldBack:
    """Batches without those that are held back: every fourth one.

    Of fewer than four batches it is every fourth sample of all of them together; what in a batch
    has another length than its inputs stays whole. It is iterated over as often as its batches can
    be.

    Attributes:
        batches: those that were held back, when all others have been given; they stay in memory.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        """`batches`: inputs, or pairs (inputs, targets), samples along the first dimension."""
        self._source = batches
        self.batches: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        self.batches = []
        batches = iter(self._source)
        first = list(islice(batches, _EVERY))
        if len(first) < _EVERY:
            yield from self._by_sample(first)
            return
        for number, batch in enumerate(chain(first, batches), 1):
            if number % _EVERY:
                yield batch
            else:
                self.batches.append(batch)

    def _by_sample(self, batches: list[Any]) -> Iterator[Any]:
        start = 0
        for batch in batches:
            count = sample_count(inputs_of(batch))
            held = [i for i in range(count) if (start + i) % _EVERY == _EVERY - 1]
            others = [i for i in range(count) if (start + i) % _EVERY != _EVERY - 1]
            start += count
            if held:
                self.batches.append(samples_of(batch, held, count))
            if others:
                yield samples_of(batch, others, count)

    def held(self) -> list[Any]:
        """Return what was held back.

        Raises:
            InvalidOptions: it is nothing, as there are fewer than four samples.
        """
        if not self.batches:
            reason = f"needs at least {_EVERY} calibration samples, of which it holds one back"
            raise InvalidOptions("max_kl", reason)
        return self.batches


class KeptBatches:
    """Batches as they are, of which the first ones stay in memory: they may come only once.

    Attributes:
        batches: those that are kept, when all have been given.
    """

    def __init__(self, batches: Iterable[Any], max_bytes: int = KEPT_BYTES) -> None:
        """`max_bytes`: of what is kept; the first batch always is."""
        self._source = batches
        self._max_bytes = max_bytes
        self.batches: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        self.batches = []
        left = self._max_bytes
        for batch in self._source:
            left -= bytes_of(inputs_of(batch))
            if left >= 0 or not self.batches:
                self.batches.append(batch)
            yield batch


def bytes_of(values: Any) -> int:
    """Return the bytes of the tensors in inputs, or in a batch."""
    if isinstance(values, Mapping):
        return sum(map(bytes_of, values.values()))
    if isinstance(values, tuple | list):
        return sum(map(bytes_of, values))
    if getattr(values, "is_sparse", False):
        return bytes_of((values._values(), values._indices()))
    return int(getattr(values, "nbytes", 0))


def samples_of(batch: Any, samples: list[int], count: int) -> Any:
    """Return some samples of a batch of so many; what has another length stays whole."""
    if isinstance(batch, list):
        is_column = len(batch) == count and not any(hasattr(value, "shape") for value in batch)
        if is_column:
            return [batch[sample] for sample in samples]
    if isinstance(batch, Mapping | tuple | list):
        return with_parts(partial(samples_of, samples=samples, count=count), batch)
    shape: Any = getattr(batch, "shape", ())
    return batch[samples] if len(shape) and shape[0] == count else batch

"""Bytes at a loss of accuracy, with bootstrap intervals over the samples.

All methods of a subject are judged on the same resampled sets of samples, as is the uncompressed
network (a paired bootstrap): B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993,
percentile intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...model import Float64

LEVEL = 0.95
"""Of the intervals."""

_BLOCK = 64  # resampled sets at a time


@dataclass(frozen=True)
class BytesAtLoss:
    """The bytes that a method takes at a loss of accuracy of at most `loss`.

    Attributes:
        loss: in the units of the accuracy that was given.
        bytes: interpolated between measured points; None: no point loses so little.
        is_bound: no smaller point was measured: fewer bytes might do.
        low, high: the interval; None: beyond what was measured, in more than (1 - LEVEL) / 2 of
            the resampled sets.
    """

    loss: float
    bytes: int | None
    is_bound: bool
    low: int | None
    high: int | None

    def is_tied_with(self, best: BytesAtLoss) -> bool:
        """Whether the samples do not tell it from the best: one lies in the other's interval."""
        if self.bytes is None or best.bytes is None:
            return False
        is_low = self.low is not None and self.low <= best.bytes
        return is_low or (best.high is not None and self.bytes <= best.high)


def marks_of_losses(losses: Mapping[str, BytesAtLoss]) -> dict[str, Literal["best", "tie"]]:
    """Return which of several methods is best at a loss, and which are tied with it."""
    known = {name: loss for name, loss in losses.items() if loss.bytes is not None}
    if not known:
        return {}
    best = min(known, key=lambda name: known[name].bytes or 0)
    ties = [name for name, loss in known.items() if loss.is_tied_with(known[best])]
    return {**dict.fromkeys(ties, "tie"), best: "best"}


def resampled_means(values: Float64, resamples: int, seed: Sequence[int]) -> Float64:
    """Return the means of resampled sets of samples.

    Args:
        values: (samples, columns): all columns are resampled alike.
        resamples: sets.
        seed: of the generator.

    Returns:
        (resamples, columns).
    """
    rng = np.random.default_rng(list(seed))
    count = len(values)
    blocks = []
    for start in range(0, resamples, _BLOCK):
        sets = min(_BLOCK, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=sets)
        blocks.append(weights @ values / count)
    return np.concatenate(blocks)


def bytes_within(sizes: Sequence[float], losses: Float64, allowed: float) -> Float64:
    """Return the bytes at which a method loses `allowed`.

    The smallest point that loses no more counts, and from there the way to the next smaller point,
    which loses more: bytes are interpolated in their logarithm, linearly in the loss.

    Args:
        sizes: bytes of the points, ascending.
        losses: (..., points) of accuracy against the uncompressed network.
        allowed: loss.

    Returns:
        (...); inf where no point loses so little.
    """
    logs = np.log(np.asarray(sizes, np.float64))
    fits = losses <= allowed
    first = np.argmax(fits, axis=-1)
    left = np.maximum(first - 1, 0)
    places = np.stack([first, left], axis=-1)
    better, worse = np.moveaxis(np.take_along_axis(losses, places, axis=-1), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(first > 0, (allowed - better) / (worse - better), 0.0)
    sizes_at_loss = np.exp(logs[first] + part * (logs[left] - logs[first]))
    return np.where(fits.any(axis=-1), sizes_at_loss, np.inf)


def bytes_at_losses(
    sizes: Sequence[int], measured: Float64, resampled: Float64, allowed: Sequence[float]
) -> list[BytesAtLoss]:
    """Return the bytes of a method at several losses.

    Args:
        sizes: bytes of its points, ascending.
        measured: (1 + points,) accuracy: of the uncompressed network, then of the points.
        resampled: (resamples, 1 + points) likewise.
        allowed: the losses.
    """
    losses, sets = (values[..., :1] - values[..., 1:] for values in (measured, resampled))
    tail = (1 - LEVEL) / 2
    results = []
    for loss in allowed:
        count = float(bytes_within(sizes, losses, loss))
        spread = np.sort(bytes_within(sizes, sets, loss))
        low = float(spread[math.floor(tail * (len(spread) - 1))])
        high = float(spread[math.ceil((1 - tail) * (len(spread) - 1))])
        is_bound = bool(losses[0] <= loss)
        results.append(BytesAtLoss(loss, _whole(count), is_bound, _whole(low), _whole(high)))
    return results


def _whole(value: float) -> int | None:
    return round(value) if math.isfinite(value) else None

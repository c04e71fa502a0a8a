"""A target of bytes: the finest quantization with which the stream is no larger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ...errors import TargetNotReached
from ...model import Model
from ...options import EncodeOptions
from ...report import Evaluation
from ..stream_encoder import Draft
from .offsets import Narrowing, Values
from .target import Seen

_LOOSE, _MAX_BEYOND, _ENOUGH = 0.97, 4, 10
"""Below which part of the target, how often, and before how many streams an offset is tried that is
finer than those that exceed."""

_SLOPES = 1 / 6, 6.0
"""Of bytes over estimated ones."""

_GROWTH = 4

Estimate = Callable[[int], float]
"""About the bytes of what is quantized at an offset."""


def allowed_bytes(options: EncodeOptions, model: Model) -> int:
    """Return the bytes that a target size, or a target of bits, allows for a model."""
    if options.target_bits is not None:
        elements = sum(p.size for p in model.values() if p.tied_to is None)
        return int(options.target_bits * elements / 8)
    target = options.target_size
    if not isinstance(target, float):
        return target or 0
    return int(target * sum(parameter.nbytes for parameter in model.values()))


@dataclass(frozen=True)
class SizeTarget:
    """The least offset with which the stream is within the bytes, and is not with the next finer
    one: the least of all, unless sizes rise here and there.

    Attributes:
        option: its name.
        bound: bytes.
        range: the least and the greatest offset.
        quantizes: whether an offset changes anything.
        estimate: what to search by.
    """

    option: str
    bound: int
    range: tuple[int, int]
    quantizes: bool
    estimate: Estimate

    compares_kept: ClassVar[bool] = True

    def offsets(self, seen: Seen) -> Iterator[int]:
        """Yield where to encode next."""
        sizes = Values(seen, _bytes)
        allowed, (lowest, highest) = self.bound, self.range
        is_exceeding = partial(_is_between, allowed)
        narrowing = Narrowing(sizes, allowed, self.estimate, is_exceeding, _SLOPES, _GROWTH)
        exceeds, fits = lowest - 1, highest + 1  # offsets next to which the answer lies
        for _ in range(1 + _MAX_BEYOND):
            exceeds, fits = yield from narrowing.positions(exceeds, fits)
            finer = next(o for o in range(exceeds - 1, lowest - 3, -1) if o not in sizes)
            if len(sizes) >= _ENOUGH or finer < lowest or not self._may_fit(sizes, fits, finer):
                break
            yield finer
            if sizes[finer] <= allowed:
                exceeds, fits = max((o for o in sizes if o < finer), default=lowest - 1), finer
        if min(sizes.values()) > allowed and highest not in sizes:
            yield highest  # what is so coarse may overflow no more

    def _may_fit(self, sizes: Values, fits: int, finer: int) -> bool:
        """Whether a stream that is finer than others that exceed may nevertheless fit."""
        size = sizes.get(fits, math.inf)
        is_loose = size < _LOOSE * self.bound
        return is_loose and size * self.estimate(finer) <= self.bound * self.estimate(fits)

    def loss(self, draft: Draft) -> None:
        """Return None: bytes are all that counts."""

    def notes(self, seen: Seen) -> list[str]:
        """Return nothing: the search always ends."""
        return []

    def best(self, seen: Seen) -> Evaluation | None:
        """Return the finest of the streams that fit."""
        fitting = [one for one in seen.values() if _bytes(one) <= self.bound]
        return min(fitting, key=lambda one: one.qp_offset, default=None)

    def not_reached(self, seen: Seen) -> TargetNotReached:
        """Return the error that names the bytes of the coarsest quantization."""
        coarsest = seen[self.range[1]]
        if coarsest.failure is not None:
            reason = f"with a qp offset of {coarsest.qp_offset}, tensor {coarsest.failure}"
            return TargetNotReached(self.option, f"not reached: {reason}")
        least = "the coarsest quantization"
        if not self.quantizes:
            least = "nothing is quantized: the stream"
        reason = f"{self.bound} bytes cannot be reached: {least} takes {coarsest.bytes}"
        return TargetNotReached(self.option, reason)


def _is_between(allowed: int, size: float) -> bool:
    """Whether a stream is too large; where there is none, its quantization is too coarse."""
    return allowed < size < math.inf


def _bytes(seen: Evaluation) -> float:
    return math.inf if seen.bytes is None or seen.failure is not None else seen.bytes

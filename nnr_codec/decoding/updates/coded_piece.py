"""A tensor that data units of one stream hold, or of several that are added up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...model import Array
from .open_stream import QuantizerStep
from .series_pass import WantedUnit, one_pass
from .sums import summed


class Summand(NamedTuple):
    """A tensor of one stream, or a product, as a part of a sum.

    Attributes:
        read: decodes it.
        step: returns the step that it was quantized with.
        units: those that `read` decodes, as far as other summands may need their integers.
        xor: whether it says which bits of what stands before it change.
    """

    read: Callable[[], Array]
    step: Callable[[], QuantizerStep]
    units: tuple[WantedUnit, ...] = ()
    xor: bool = False


@dataclass(frozen=True, slots=True)
class CodedPiece:
    """A tensor that data units hold, in one stream or as a sum over several.

    Attributes:
        shape, dtype: as it comes back.
        summands: what is added up, oldest first.
        operations: multiplications of the product of factors among the summands; 0: there is none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    summands: tuple[Summand, ...]
    operations: int = 0

    @property
    def units(self) -> tuple[WantedUnit, ...]:
        """Those that all summands are decoded of."""
        return tuple(unit for summand in self.summands for unit in summand.units)

    def read(self) -> Array:
        """Decode it.

        Raises:
            BitstreamError: a stream is damaged.
        """
        first, *later = self.summands
        with one_pass(self.units):
            values = first.read()
            for summand in later:
                values = summed(values, summand.read(), summand.xor)
        return values

    def step(self) -> QuantizerStep:
        """Return the largest step of a summand; raises what `read` raises."""
        with one_pass(self.units):
            return max(summand.step() for summand in self.summands)

    def kept_by(self, keep: Callable[[Callable[[], Array]], Array]) -> CodedPiece:
        """Return the same as one summand, for which `keep` is called with what decodes it."""
        whole = Summand(partial(keep, self.read), self.step, self.units)
        return replace(self, summands=(whole,))

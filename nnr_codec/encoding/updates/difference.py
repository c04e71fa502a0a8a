"""Differences to tensors of a base, as parameters that are coded in place of the new tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from ...bitstream.unit_layout import Integers
from ...decoding.updates.open_stream import QuantizerStep
from ...decoding.updates.sums import summed
from ...factorization.words import words_of
from ...model import Array, Parameter
from ...quantize.distortion import Distortion, weight_error
from ..corrections.moved_weight import MovedWeight

_MOST_OF_SEARCH = 2.0
"""The greatest error of dependent quantization, in steps."""

_MEAN_SQUARE, _SPREAD = 0.35, 0.75
"""Of errors over their usual bound: their mean square, which is a third without a search and about
a quarter with one; and what it may be more in few values, times the root of their number."""

_PARTS = 2**10
"""Of a bound, in which errors are counted."""

_FRACTIONS = 2**20
"""Of a quantum, in which values are summed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(Parameter):
    """What is to be added to a tensor of the base.

    Attributes:
        new: the tensor as the model has it.
        base: that of the base, of the same shape and element type.
        may_be_left_out: whether a difference of zeros needs no data unit.
    """

    new: Parameter
    base: Parameter
    may_be_left_out: bool = True

    def loaded(self) -> Self:
        """Return the difference with the values of both tensors in memory."""
        new = self.new.loaded()
        return replace(self, load=new.load, new=new, base=self.base.loaded())


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatDifference(Difference):
    """A difference that is quantized; float32, whatever the type of both tensors.

    Attributes:
        base_step: the largest step with which a part of the base's tensor was quantized.
        old: the tensor that the base was made of; where the new one equals it, the difference is 0.
        residual: float32, what earlier updates did not carry, which is added to the new tensor; or
            None.
    """

    base_step: QuantizerStep
    old: Parameter | None = None
    residual: Parameter | None = None

    def loaded(self) -> Self:
        """Return the difference with the values of all tensors in memory."""
        new = self.new.loaded()
        old = None if self.old is None else self.old.loaded()
        residual = None if self.residual is None else self.residual.loaded()
        base = self.base.loaded()
        return replace(self, load=new.load, new=new, base=base, old=old, residual=residual)

    def with_known_base(self) -> FloatDifference:
        """Return the difference with the base's tensor in memory, which is decoded once then, and
        not each time that it is read."""
        return replace(self, base=self.base.loaded())

    def read(self) -> npt.NDArray[np.float32]:
        """Return the difference, in the shape of the tensor."""
        known = self.with_known_base()
        target = known.target()
        target -= known.base.read().reshape(-1)
        return target.astype(np.float32, copy=False).reshape(self.shape)

    def target(self) -> Array:
        """Return what the base and the difference are to make, flat: the new tensor, or where that
        equals the old one, the base; and the residual. Float32, or float64 of that type."""
        values = self.new.read().reshape(-1)
        target: Array = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
        if self.old is not None:
            stays = words_of(values) == words_of(self.old.read().reshape(-1))
            target[stays] = self.base.read().reshape(-1)[stays]
        if self.residual is not None:
            target += self.residual.read().reshape(-1)
        return target

    def beyond(self, step: QuantizerStep) -> npt.NDArray[np.float32]:
        """Return what is to be quantized of the difference: 0 where it is no more than what
        quantizing the base, and quantizing with a step, would lose.

        Of a matrix, what so falls away of a row is made up for in sum: see `with_row_sums`.
        """
        difference = self.read()
        bound = min(_usual_error(self.base_step), _usual_error(step))
        both_search = self.base_step.is_dependent and step.is_dependent and self.old is None
        if _is_error_alone(difference, bound, both_search):
            return np.zeros_like(difference)
        small = np.abs(difference) <= bound
        moved = self._moved(difference)
        difference[small] = 0
        if difference.ndim > 1 and bound:
            with_row_sums(difference, np.where(small, moved, 0), 2 * bound)
        return difference

    def _moved(self, difference: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return how values are to move: from the old ones, if these are known, or the base's."""
        if self.old is None:
            return difference.copy()
        new, old = (tensor.read().astype(np.float32) for tensor in (self.new, self.old))
        moved: npt.NDArray[np.float32] = new - old
        return moved if self.residual is None else moved + self.residual.read()

    def decoded(self, difference: npt.NDArray[np.float32]) -> Array:
        """Return what decoders make of a decoded difference, in the shape of the tensor."""
        return summed(self.base.read(), difference)

    def distortion(self, difference: npt.NDArray[np.float32]) -> Distortion:
        """Compare what decoders make of a decoded difference with the new tensor."""
        return weight_error(self.new.read(), self.decoded(difference))


@dataclass(frozen=True, slots=True, kw_only=True)
class WordDifference(Difference):
    """A difference of the bits, with which the new tensor comes back exactly; int32.

    Attributes:
        xor: whether integers say which bits change; else they are differences of numbers.
    """

    xor: bool

    def read(self) -> Integers:
        """Return the integers.

        Raises:
            ValueError: they do not fit 32 bits.
        """
        integers = word_difference(self.new.read(), self.base.read(), self.xor)
        if integers is None:
            raise ValueError(f"{self.name!r}: a difference of more than 32 bits")
        return integers


def word_difference(new: Array, base: Array, xor: bool) -> Integers | None:
    """Return the integers that ``decoding.updates.sums`` adds to `base` to make `new`, in their
    shape; None if they do not fit 32 bits."""
    first, second = (words_of(np.ascontiguousarray(values.reshape(-1))) for values in (new, base))
    words = first ^ second if xor or new.dtype == np.bool_ else first - second
    signed = words.view(f"i{words.itemsize}")
    if signed.itemsize == 8 and signed.size:
        low, high = int(signed.min()), int(signed.max())
        if low < -(2**31) or high >= 2**31:
            return None
    integers: Integers = signed.astype(np.int32).reshape(new.shape)
    return integers


def _is_error_alone(difference: npt.NDArray[np.float32], bound: float, both_search: bool) -> bool:
    """Whether a difference as a whole may be what quantizing the base lost.

    Such errors go neither way: in sum over a row they grow as the root of its length. The search
    of dependent quantization goes beyond its usual bound for some of them.
    """
    if not difference.size:
        return True
    most = _MOST_OF_SEARCH * bound if both_search else bound
    if float(np.abs(difference).max()) > most:
        return False
    if not bound:
        return True
    # Sums of whole numbers are the same in any order, and so on every processor.
    fixed = np.rint(difference.astype(np.float64) * (_PARTS / bound)).astype(np.int64)
    rows = fixed.reshape(difference.shape[0] if difference.ndim > 1 else difference.size, -1)
    sums = sum(value * value for value in rows.sum(1).tolist()) / rows.shape[1]
    return all(
        energy / _PARTS**2 <= count * _MEAN_SQUARE + math.sqrt(count) * _SPREAD
        for energy, count in ((int(np.square(fixed).sum()), fixed.size), (sums, rows.shape[0]))
    )


def with_row_sums(
    kept: npt.NDArray[np.float32], dropped: npt.NDArray[np.float32], quantum: float
) -> None:
    """Let rows of a difference keep about their sums when small values are dropped.

    Small changes of many weights of a row may go the same way, and then move its output further
    than all that are kept. So the sum of what is dropped becomes values of one quantum, where the
    most was dropped.

    Args:
        kept: the difference, 0 where values are dropped; changed in place.
        dropped: those values, 0 elsewhere.
        quantum: the least value that is worth its bits.
    """
    rows, lost = kept.reshape(kept.shape[0], -1), dropped.reshape(kept.shape[0], -1)
    # Of whole numbers the sum is the same in any order.
    sums = np.rint(lost.astype(np.float64) * (_FRACTIONS / quantum)).astype(np.int64).sum(1)
    counts = np.rint(sums / _FRACTIONS).astype(np.int64)
    for row in np.flatnonzero(counts):
        sign = 1 if counts[row] > 0 else -1
        rows[row, _largest(sign * lost[row], abs(int(counts[row])))] = sign * quantum


def _largest(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Return the places of so many values, the largest ones: of equal ones the first, and none that
    are not positive."""
    least = np.partition(values, -min(count, values.size))[-min(count, values.size)]
    above = np.flatnonzero(values > max(least, 0))
    equal = np.flatnonzero(values == least) if least > 0 else above[:0]
    return np.concatenate([above, equal[: count - above.size]])


def _usual_error(step: QuantizerStep) -> float:
    return step.size if step.is_dependent else step.size / 2


def reported(parameter: Parameter) -> Parameter:
    """Return the tensor of the model that is coded: of a difference the new tensor, of a moved
    weight the one that it was."""
    if isinstance(parameter, MovedWeight):
        return parameter.original
    return parameter.new if isinstance(parameter, Difference) else parameter

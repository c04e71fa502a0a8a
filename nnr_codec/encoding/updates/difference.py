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

_MOST_OF_SEARCH, _MEAN_OF_SEARCH, _SPREAD_OF_SEARCH = 2.0, 0.3, 0.75
"""Of the errors of dependent quantization, in steps: their greatest; their mean square, which is
0.23 to 0.26 as a rule; and what that may be more in few values, times the root of their number."""


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

    def read(self) -> npt.NDArray[np.float32]:
        """Return the difference; 0 where the new tensor equals the old one."""
        target = self.target()
        target -= self.base.read().reshape(-1)
        difference = target.astype(np.float32, copy=False)
        if self.old is not None:
            new, old = (words_of(tensor.read().reshape(-1)) for tensor in (self.new, self.old))
            difference[new == old] = 0
        return difference.reshape(self.shape)

    def target(self) -> Array:
        """Return what the base and the difference are to make, flat: float32, or float64 of that
        type."""
        values = self.new.read().reshape(-1)
        target: Array = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
        if self.residual is not None:
            target += self.residual.read().reshape(-1)
        return target

    def beyond(self, step: QuantizerStep) -> npt.NDArray[np.float32]:
        """Return the difference with 0 where it is no more than what quantizing the base, and
        quantizing with a step, would lose.

        That is half of a step, or with dependent quantization all of it: where its search goes
        further for some values, the difference as a whole tells that it is its error.
        """
        difference = self.read()
        bound = min(_usual_error(self.base_step), _usual_error(step))
        magnitudes = np.abs(difference)
        if self.base_step.is_dependent and step.is_dependent and magnitudes.size:
            energy = float(np.square(magnitudes, dtype=np.float64).mean())
            most = (_MEAN_OF_SEARCH + _SPREAD_OF_SEARCH / math.sqrt(difference.size)) * bound**2
            if energy <= most and magnitudes.max() <= _MOST_OF_SEARCH * bound:
                return np.zeros_like(difference)
        difference[magnitudes <= bound] = 0
        return difference

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


def _usual_error(step: QuantizerStep) -> float:
    return step.size if step.is_dependent else step.size / 2


def reported(parameter: Parameter) -> Parameter:
    """Return the tensor of the model that is coded: of a difference the new tensor."""
    return parameter.new if isinstance(parameter, Difference) else parameter

"""Quantizers: each turns the weights of a tensor into integers, by one method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .._core import TensorSyntax, choose_unary_length, quantize, quantize_with_feedback
from ..bitstream.unit_layout import Integers, matrix_shape
from .feedback import ErrorFeedback

Weights = npt.NDArray[np.float32]

_UNIFORM_SLOPE = math.log(2) / 6
"""-dD/dR at high rate of a uniform quantizer of step 1: D = 1/12, and 6 dB per bit."""

_DEPENDENT_SLOPE = 4 * 0.7 * _UNIFORM_SLOPE
"""The quantizers of the trellis have steps of 2, and together lose less than either would."""


@dataclass(frozen=True, slots=True)
class CodingRates:
    """How a tensor's integers will be coded, on which their bits depend.

    Attributes:
        shape: of the tensor.
        unary_length: greater-than flags of an integer; None: not known yet.
        scan_order: 0 row by row; 1 to 4 in blocks.
        second_edition: whether the stream is of profile 1.
        lambda_scale: weight of the bits against the squared error; at 1 a bit costs the slope of
            the distortion at high rate, at 0 nothing.
    """

    shape: tuple[int, ...]
    unary_length: int | None = None
    scan_order: int = 0
    second_edition: bool = False
    lambda_scale: float = 0.0

    def syntax(self, *, dependent: bool, unary_length: int = 1) -> TensorSyntax:
        """Return the core's description of the tensor."""
        rows, cols = matrix_shape(self.shape)
        return TensorSyntax(
            rows,
            cols,
            unary_length=self.unary_length or unary_length,
            dependent_quantization=dependent,
            scan_order=self.scan_order,
            second_edition=self.second_edition,
        )


@dataclass(frozen=True, slots=True)
class InputKnowledge:
    """What is known of the inputs that a tensor's weights are multiplied with.

    Attributes:
        importance: float32, flat: factors of the weights' squared errors; None: nothing is known,
            and all errors count alike.
        feedback: how errors of quantized weights are made up for by later ones, in place of
            `importance`; None: they are not.
    """

    importance: Weights | None = None
    feedback: ErrorFeedback | None = None


class Quantizer(Protocol):
    """What chooses the integers of a tensor."""

    def integers(
        self, weights: Weights, step: float, rates: CodingRates, inputs: InputKnowledge
    ) -> Integers:
        """Return the integers of weights as they are coded; flat.

        Args:
            weights: float32, flat; |weight / step| below 2**31 - 8.
            step: the step size.
            rates: what the integers cost.
            inputs: says which errors matter.
        """


@dataclass(frozen=True, slots=True)
class CoreQuantizer:
    """A quantizer whose search is the core's; the slope is -dD/dR at high rate, for a step of 1."""

    is_dependent: bool
    slope: float

    def integers(
        self, weights: Weights, step: float, rates: CodingRates, inputs: InputKnowledge
    ) -> Integers:
        """See :class:`Quantizer`."""
        bit_cost = rates.lambda_scale * self.slope
        unary_length = 1
        if bit_cost and rates.unary_length is None:
            # There are no integers yet to choose it by: those that rounding makes do. Those of the
            # trellis are of every other multiple.
            rounding = rates.syntax(dependent=False)
            rounded = quantize(rounding, weights, 2 * step if self.is_dependent else step)
            unary_length = choose_unary_length(rounded)
        syntax = rates.syntax(dependent=self.is_dependent, unary_length=unary_length)
        if inputs.feedback is not None:
            return _with_feedback(syntax, weights, step, bit_cost, inputs.feedback)
        return quantize(syntax, weights, step, bit_cost, inputs.importance)


def _with_feedback(
    syntax: TensorSyntax, weights: Weights, step: float, bit_cost: float, feedback: ErrorFeedback
) -> Integers:
    return quantize_with_feedback(
        syntax,
        weights,
        step,
        bit_cost,
        feedback.columns,
        feedback.column_weights,
        feedback.rows,
        feedback.row_weights,
    )


UNIFORM = CoreQuantizer(False, _UNIFORM_SLOPE)
"""The nearest multiples of the step, or with rates the best ones in sight."""

DEPENDENT = CoreQuantizer(True, _DEPENDENT_SLOPE)
"""The best path through the trellis of two quantizers, each of every other multiple."""


def quantizer_of(*, dependent: bool) -> Quantizer:
    """Return the quantizer of an option; `dependent`: the option dq."""
    return DEPENDENT if dependent else UNIFORM

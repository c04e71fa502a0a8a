"""Which feedback of errors a tensor gets, and why it gets none: what is known of it decides.

What cannot be used is as if it were not known: the tensor is quantized as without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..bitstream.unit_layout import matrix_shape
from ..calibration.moments import InputMoments, ResultMoments, TensorKnowledge
from ..quantize.feedback import ErrorFeedback, error_feedback
from ..report import FeedbackSource

NOT_REACHED = "not reached by the calibration, or not felt by the result"
NO_MOMENTS = "of no layer whose inputs are looked at"
EMPTY = "moments are zero, or not finite"
OF_ANOTHER_SHAPE = "moments are of another shape"
TRANSPOSED = "of a transposed convolution, whose rows are inputs"


@dataclass(frozen=True, slots=True)
class FeedbackChoice:
    """The feedback of a tensor's errors.

    Attributes:
        feedback: None: errors are not fed back.
        source: the moments that it is of; None: nothing was to be known of the tensor.
        reason: why there is none, or not that of the result; empty: there is nothing to say.
    """

    feedback: ErrorFeedback | None = None
    source: FeedbackSource | None = None
    reason: str = ""


def chosen_feedback(known: TensorKnowledge | None, shape: tuple[int, ...]) -> FeedbackChoice:
    """Return the feedback of the errors of a tensor of this shape: that of the network's result, or
    else that of its layer's outputs.

    Args:
        known: what the calibration knows; None: there is none.
        shape: of the tensor.
    """
    if known is None or len(shape) < 2:  # rows of vectors have one element
        return FeedbackChoice()
    if known == TensorKnowledge():
        return FeedbackChoice(source="none", reason=NOT_REACHED)
    of_result, reason = _of_result(known.result, shape)
    if of_result is not None:
        return FeedbackChoice(of_result, "result")
    of_inputs, other = _of_inputs(known.inputs, shape)
    if of_inputs is not None:
        return FeedbackChoice(of_inputs, "inputs", reason)
    if not known.sensitivity and not reason and not other:
        return FeedbackChoice(source="none", reason=NOT_REACHED)
    return FeedbackChoice(source="none", reason=reason or other or NO_MOMENTS)


def _of_result(
    moments: ResultMoments | None, shape: tuple[int, ...]
) -> tuple[ErrorFeedback | None, str]:
    """Return the feedback along rows and columns, or why there is none."""
    if moments is None:
        return None, ""
    rows, columns = matrix_shape(shape)
    if not moments.fits(rows, columns):
        return None, OF_ANOTHER_SHAPE
    of_columns = np.ones((1, columns, 1, 1)) if moments.columns is None else moments.columns
    few = None if moments.is_checked else moments.count
    feedback = error_feedback(of_columns, moments.rows, few)
    return feedback, "" if feedback is not None else EMPTY


def _of_inputs(
    moments: InputMoments | None, shape: tuple[int, ...]
) -> tuple[ErrorFeedback | None, str]:
    """Return the feedback along the rows that the coder goes through, or why there is none."""
    if moments is None:
        return None, ""
    if moments.layout.shape != shape:
        return None, OF_ANOTHER_SHAPE
    if moments.layout.transposed:
        return None, TRANSPOSED
    feedback = error_feedback(moments.blocks, few=moments.positions)
    return feedback, "" if feedback is not None else EMPTY

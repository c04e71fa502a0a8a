"""What can be known of one tensor by itself, whatever its qp."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.moments import TensorKnowledge
from ..errors import InvalidModel
from ..model import Float64, Parameter
from ..options import EncodeOptions
from ..quantize.feedback import ErrorFeedback
from ..quantize.grids import exact_step
from ..quantize.integer_rate import sampled
from ..quantize.large_elements import LargeElements, large_elements
from ..quantize.spilled_feedback import SpilledFeedback
from ..report import FeedbackSource
from .exact import holds_short_values, represent, seems_quantized
from .model_mapping import is_quantized, may_need_representation
from .representation import Representation
from .tensor_feedback import chosen_feedback
from .tensor_quantizer import largest_value, nominal_step, why_unquantizable
from .updates.difference import FloatDifference, reported

_SAMPLE = 1 << 11
"""Values of a tensor by which its size is estimated."""

_MANY_STEPS = (1 << 15, 1 << 23)
"""In the mean magnitude of a tensor, with which quantizing takes as many bits as words do: those of
16 bits, in whatever type, and those of 32."""


@dataclass(frozen=True, slots=True)
class TensorSurvey:
    """What is known of one tensor.

    Attributes:
        is_quantized: whether its options quantize it, and steps can say its values.
        exact: how it is coded exactly; None: as the integers it has. Of a quantized one: how it may
            be, as that may take no more bytes; None: quantizing is smaller.
        unquantizable: what no step can say of a tensor that was to be quantized; None: nothing.
        step_qp: of a quantized one, the qp of a step of which all values are multiples; None
            without such a step, or if all values are 0.
        is_constant: whether all values of a quantized vector are the same, and not 0.
        largest, energy: of a quantized one, the largest magnitude, and about the sum of squares.
        feedback: of a quantized one, of its errors, if moments of it are known; perhaps in a file.
        feedback_source: whose moments these are; None: nothing was to be known of it.
        feedback_reason: why it is "none", or not that of the result; empty: nothing is to be said.
        sensitivity: of a quantized one, how much the network's result feels its errors, if known.
        large: its elements that are not near zero, if steps are to follow the sensitivity.
        sample: of a quantized one, some values, float64, flat, if they are needed.
    """

    is_quantized: bool = False
    exact: Representation | None = None
    unquantizable: str | None = None
    step_qp: int | None = None
    is_constant: bool = False
    largest: float = 0.0
    energy: float = 0.0
    feedback: ErrorFeedback | SpilledFeedback | None = None
    feedback_source: FeedbackSource | None = None
    feedback_reason: str = ""
    sensitivity: float | None = None
    large: LargeElements | None = None
    sample: Float64 | None = None

    def read_feedback(self) -> ErrorFeedback | None:
        """Return the feedback, from its file if it is in one."""
        known = self.feedback
        return known.read() if isinstance(known, SpilledFeedback) else known


@dataclass(frozen=True, slots=True)
class TensorQuestion:
    """What is to be learned of one tensor.

    Attributes:
        parameter: the tensor.
        options: those of the tensor.
        is_quantized: whether they quantize it.
        is_exact: whether it is read to find how it is coded exactly.
        must_be_quantized: whether its unit can hold nothing else.
        needs_sample: whether its size is to be estimated, or its qp chosen.
        knowledge: what the calibration knows of it, nothing perhaps; None: there is none.
    """

    parameter: Parameter
    options: EncodeOptions
    is_quantized: bool
    is_exact: bool
    must_be_quantized: bool
    needs_sample: bool
    knowledge: TensorKnowledge | None = None

    @classmethod
    def about(
        cls,
        parameter: Parameter,
        options: EncodeOptions,
        *,
        must_be_quantized: bool,
        knowledge: TensorKnowledge | None = None,
    ) -> TensorQuestion:
        """Ask about a tensor; `options`: of the encoder."""
        quantized = is_quantized(parameter, options)
        exact = not quantized and may_need_representation(parameter)
        allocates = options.allocation is True or (options.allocation and knowledge is not None)
        needs_sample = bool(options.has_target_size or allocates)
        own = options.for_tensor(parameter.name)
        return cls(parameter, own, quantized, exact, must_be_quantized, needs_sample, knowledge)

    @property
    def known_values(self) -> int:
        """How many values what is known of the tensor has."""
        return 0 if self.knowledge is None else self.knowledge.values

    def answered_or_loaded(self) -> TensorQuestion | TensorSurvey:
        """Answer if that is quicker than sending the tensor; else load it for another process."""
        is_quick = not self.is_exact and not self._is_narrow and self.knowledge is None
        return self.answer() if is_quick else replace(self, parameter=self.parameter.loaded())

    def answer(self) -> TensorSurvey:
        """Return the survey.

        Raises:
            InvalidModel: the tensor cannot be read, or must be quantized and cannot be.
        """
        if not self.is_quantized and not self.is_exact:
            return TensorSurvey()
        values = self.parameter.read()
        if self.is_exact:
            return TensorSurvey(exact=self._exact(values))
        largest = largest_value(values)
        if not math.isfinite(largest) or (not largest and values.any()):
            reason = why_unquantizable(values)
            if self.must_be_quantized:
                raise InvalidModel(self.parameter.name, f"holds {reason}")
            return TensorSurvey(exact=self._exact(values), unquantizable=reason)
        is_difference = isinstance(self.parameter, FloatDifference)
        # What a step says exactly of a difference makes no exact sum.
        step = None if is_difference else exact_step(values, self.options.qp_density)
        energy = _energy(reported(self.parameter).read() if is_difference else values)
        choice = chosen_feedback(self.knowledge, self.parameter.shape)
        sample = sampled(values, _SAMPLE).astype(np.float64) if self.needs_sample else None
        follows = self._follows_sensitivity
        return TensorSurvey(
            is_quantized=True,
            exact=self._exact(values) if self._may_pay(values, largest, energy) else None,
            step_qp=step[0] if step is not None and largest else None,
            is_constant=values.ndim < 2 and bool(largest and (values == values.flat[0]).all()),
            largest=largest,
            energy=energy,
            feedback=choice.feedback,
            feedback_source=choice.source,
            feedback_reason=choice.reason,
            sensitivity=self.knowledge.sensitivity if self.knowledge else None,
            large=large_elements(values, largest, choice.feedback) if follows else None,
            sample=sample,
        )

    @property
    def _follows_sensitivity(self) -> bool:
        is_known = self.knowledge is not None and bool(self.knowledge.sensitivity)
        return is_known and bool(self.options.allocation)

    def _exact(self, values: npt.NDArray[Any]) -> Representation | None:
        return represent(values, self.options.qp_density, bool(self.options.codebook))

    def _may_pay(self, values: npt.NDArray[Any], largest: float, energy: float) -> bool:
        """Whether exact coding may take no more bytes than quantizing, as far as a glance tells."""
        if self.must_be_quantized or not largest or isinstance(self.parameter, FloatDifference):
            return False
        step = nominal_step(self.parameter, self.options)
        steps = math.sqrt(energy / values.size) / step
        short, wide = _MANY_STEPS
        return (
            self._is_narrow
            or steps > wide
            or (steps > short and holds_short_values(values))
            or seems_quantized(values, step * (1 + self.options.dq))
        )

    @property
    def _is_narrow(self) -> bool:
        """Whether it is quantized, and its words may take no more bits than its integers."""
        return self.is_quantized and self.parameter.dtype.itemsize <= 2


def _energy(values: npt.NDArray[Any]) -> float:
    """Return about the sum of squares: in binary32, 0 for tiny values and infinite for large."""
    with np.errstate(all="ignore"):
        flat = values.reshape(-1).astype(np.float32, copy=False)
        return float(np.dot(flat, flat))

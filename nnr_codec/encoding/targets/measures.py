"""What targets of quality measure of a stream, and the choice of the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...decoding.series import Series
from ...decoding.stream_decoder import StreamDecoder
from ...decoding.updates.base_model import BaseModel
from ...errors import InvalidOptions
from ...model import Array, Model
from ...options import EncodeOptions
from ...report import EncodeReport
from ..model_mapping import is_quantized
from ..stream_encoder import Draft
from ..survey import ModelSurvey
from ..verification import NO_LIMITS
from ..weight_errors import factoring_errors, merged_reports
from ..work import Work
from .log import SearchLog
from .quality import QualityTarget
from .size import SizeTarget, allowed_bytes
from .size_estimate import SizeEstimate
from .target import Target

Evaluate = Callable[[Mapping[str, Array]], float]
"""Returns a score, or a divergence, of the arrays of a model by name."""

MOST_CALLS = 8
"""Of `evaluate`, for a drop: the one of the model itself included."""

_MOST_STREAMS = 12
"""Of the other targets of quality. Two to six are usual."""


@dataclass(frozen=True)
class Measures:
    """What is measured of the streams of one model.

    Attributes:
        model: what is encoded.
        survey: what is known of it.
        series: the earlier streams.
        evaluate: measures decoded arrays; None: there is no such function.
        work: decodes side by side, and is told when tensors are "measured".
        is_corrected: whether the stream that is kept may be measured once more, corrected.
        base: what streams are updates of, if they are.
    """

    model: Model
    survey: ModelSurvey
    series: Series
    evaluate: Evaluate | None
    work: Work
    is_corrected: bool = False
    base: BaseModel | None = None

    def target(self, options: EncodeOptions, log: SearchLog) -> Target | None:
        """Return the target that the options have, with what it measures; None: they have none.

        Args:
            options: of the encoder, with the qp of the tensors.
            log: has the score of the model itself, or gets it.

        Raises:
            InvalidOptions: `evaluate` is missing, or returns no number.
        """
        name = options.target
        if name is None:
            return None
        quantizes = any(is_quantized(parameter, options) for parameter in self.model.values())
        offsets = options.offset_range() if quantizes else (0, 0)  # else none changes anything
        if options.has_target_size:
            allowed = allowed_bytes(options, self.model)
            estimate = cache(SizeEstimate(self.survey, options).bytes_at)
            return SizeTarget(name, allowed, offsets, quantizes, estimate)
        measure, most = self._loss(name, log)
        per_octave, bound = 1 << options.qp_density, float(getattr(options, name))
        return QualityTarget(name, bound, offsets, per_octave, most, measure)

    def _loss(self, name: str, log: SearchLog) -> tuple[Callable[[Draft], float], int]:
        """Return what measures the loss of a stream, and how often it may be called."""
        if name == "max_nmse":
            return self._nmse, _MOST_STREAMS
        if self.evaluate is None:
            raise InvalidOptions(name, "needs what measures decoded arrays: evaluate")
        if name == "max_kl":
            return self._score, _MOST_STREAMS
        if log.reference is None:
            log.note_reference(number_of(self.evaluate(dict(self.model.arrays()))))
        reference = log.reference or 0.0
        if not math.isfinite(reference):
            raise InvalidOptions("evaluate", f"returns {reference} of the model itself")
        return lambda draft: reference - self._score(draft), MOST_CALLS - 1 - self.is_corrected

    def decoded(self, draft: Draft) -> dict[str, Array]:
        """Return what a stream decodes to, by name."""
        draft.file.seek(0)
        base = self.base or ()
        decoder = StreamDecoder(base=base, limits=NO_LIMITS, executor=self.work.executor)
        decoder.series = self.series
        return {tensor.name: tensor.values for tensor in decoder.tensors(draft.file)}

    def _score(self, draft: Draft) -> float:
        """Return what `evaluate` returns of a stream."""
        tensors = self.decoded(draft)
        score = math.nan if self.evaluate is None else number_of(self.evaluate(tensors))
        self._tell_measured()
        return score

    def _nmse(self, draft: Draft) -> float:
        """Return the error of all tensors together, as the report has it."""
        errors = factoring_errors(self.survey.factored, draft.factors, self.work.executor)
        tensors = tuple(merged_reports(draft.tensors, self.survey.factored, errors))
        self._tell_measured()
        return EncodeReport(tensors, draft.header_bytes, 0.0, draft.profile).nmse

    def _tell_measured(self) -> None:
        self.work.tell("measured", sum(parameter.size for parameter in self.survey.coded))


def number_of(returned: Any) -> float:
    """Return what `evaluate` returned as a float.

    Raises:
        InvalidOptions: it is no number.
    """
    try:
        return float(returned)
    except (TypeError, ValueError, RuntimeError):  # the last of torch, of several numbers
        reason = f"returns {type(returned).__name__}, not one number"
        raise InvalidOptions("evaluate", reason) from None

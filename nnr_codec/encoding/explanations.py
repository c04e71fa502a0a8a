"""Why tensors are quantized as they are: what their steps and the feedback of errors follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ..model import Parameter
from ..options import EncodeOptions
from ..options.globs import escaped
from ..report import StepSource, TensorReport
from .plan import CodingChoice
from .survey import ModelSurvey
from .tensor_quantizer import feeds_nothing_back, fits_step

_QUANTIZED = ("dq", "uniform")


@dataclass(frozen=True)
class Explanations:
    """What is to be said of the quantized tensors of a stream.

    Attributes:
        survey: of the model.
        given: the options that the user gave.
        calibrated: those with steps by sensitivity.
        sized: those with steps by sizes as well, by which the stream is made.
    """

    survey: ModelSurvey
    given: EncodeOptions
    calibrated: EncodeOptions
    sized: EncodeOptions

    def explainer(
        self, options: EncodeOptions, choices: Mapping[str, CodingChoice]
    ) -> Callable[[TensorReport], TensorReport]:
        """Return what adds to a coded tensor's report what its step and its feedback follow.

        Args:
            options: of the stream.
            choices: of the tensors that are coded otherwise than these say, by name.
        """
        usual = CodingChoice()
        return lambda report: self._of(report, options, choices.get(report.name, usual))

    def _of(
        self, report: TensorReport, options: EncodeOptions, choice: CodingChoice
    ) -> TensorReport:
        if report.kind not in _QUANTIZED:
            return report
        parameter, known = self._parameters[report.name], self.survey.tensors[report.name]
        own = options.for_tensor(report.name)
        source, reason = known.feedback_source, known.feedback_reason
        if known.feedback is not None and (
            why := feeds_nothing_back(parameter, own, known.largest)
        ):
            source, reason = "none", why
        step_by = self._chosen_step(report.name, own, choice) or self._nominal_step(report.name)
        return replace(report, step_by=step_by, feedback=source, feedback_reason=reason)

    def _chosen_step(
        self, name: str, own: EncodeOptions, choice: CodingChoice
    ) -> StepSource | None:
        """Return why the qp is not that of the tensor's options; None: it is."""
        if choice.qp is None:
            return None
        is_in_range = fits_step(self._parameters[name], own, self.survey.tensors[name].largest)
        return "protection" if is_in_range else "range"

    def _nominal_step(self, name: str) -> StepSource:
        """Return what the qp of a tensor's options follows."""
        if self.given.sets_qp(name):
            return "given"
        if escaped(name) in self._by_sensitivity:
            return "sensitivity"
        if escaped(name) in self._by_size:
            return "size"
        is_vector = self._parameters[name].role != "weight"
        is_moved = self.calibrated.nonweight_qp != self.given.nonweight_qp
        return "centre" if is_vector and is_moved else "options"

    @cached_property
    def _parameters(self) -> Mapping[str, Parameter]:
        return {parameter.name: parameter for parameter in self.survey.coded}

    @cached_property
    def _by_sensitivity(self) -> frozenset[str]:
        return _added(self.given, self.calibrated)

    @cached_property
    def _by_size(self) -> frozenset[str]:
        return _added(self.calibrated, self.sized)


def _added(before: EncodeOptions, after: EncodeOptions) -> frozenset[str]:
    """Return the globs of the overrides that options have more of, which set a qp."""
    count = len(after.overrides) - len(before.overrides)
    return frozenset(glob for glob, values in after.overrides[:count] if "qp" in values)

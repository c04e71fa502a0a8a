"""Which tensors are coded otherwise than their options say: at a finer qp, or exactly.

A tensor is coded exactly where that takes no more bytes, and where its integers would not fit.
One that would lose more than it may gets a finer qp, or is coded exactly if that is no larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..bitstream import Context
from ..bitstream.qp import qp_of_step
from ..factorization.model_map import ModelMap
from ..factorization.tensor_rules import TensorRule
from ..model import Parameter
from ..options import EncodeOptions
from ..quantize.codebook import promises_codebook
from ..quantize.integer_rate import estimated_bits
from ..support.shared_function import call_portably
from .arrangement.grouping import alone_by_name
from .exact import represent
from .model_mapping import rule_of
from .plan import CodingChoice, TensorPlan, UnitPlan
from .representation import Representation
from .survey import ModelSurvey
from .tensor_encoder import encode_unit
from .tensor_quantizer import (
    LARGEST_ERROR,
    QuantizedTensor,
    fits_step,
    nominal_qp,
    nominal_step,
    quantize_tensor,
    with_qp,
)
from .tensor_survey import TensorSurvey
from .tensor_work import results_of
from .updates.difference import FloatDifference
from .work import Work

_CLEAR = 1.12
"""Ratio of two estimates of bytes beyond which the smaller one is believed."""

_FEW = 32
"""Elements, up to which headers and contexts that learned nothing outweigh the integers."""

_MOST_TRIES = 32
"""Finer quantization parameters that are tried in turn."""


def choose_codings(
    survey: ModelSurvey,
    options: EncodeOptions,
    context: Context,
    work: Work,
) -> dict[str, CodingChoice]:
    """Return how tensors are coded that are coded otherwise than their options say, by name.

    Args:
        survey: of the model.
        options: of the encoder, with the qp of this stream.
        context: profile and parameter sets of the stream.
        work: looks at tensors side by side, and is told when they are "chosen": at once of those
            that there is no choice for.

    Raises:
        InvalidModel: a tensor cannot be read.
    """
    candidates = list(_candidates(survey, options, context))
    total = sum(parameter.size for parameter in survey.coded)
    work.tell("chosen", total - sum(candidate.elements for candidate in candidates))
    choices = {}
    results = results_of(work.executor, _choice, candidates)
    for candidate, choice in zip(candidates, results, strict=True):
        work.tell("chosen", candidate.elements)
        if choice != CodingChoice():
            choices[candidate.parameter.name] = choice
    return choices


def _candidates(
    survey: ModelSurvey, options: EncodeOptions, context: Context
) -> Iterator[_Candidate]:
    in_blocks = {
        factor.name
        for weight in survey.factored.values()
        if weight.is_block
        for factor in weight.new_factors
    }
    # Also where nothing is grouped, so that grouping does not change what is decoded.
    is_alone = alone_by_name(survey.tensors.keys())
    for parameter in survey.coded:
        known = survey.tensors[parameter.name]
        if not known.is_quantized or not known.largest:
            continue
        own, bound = options.for_tensor(parameter.name), options.allowed_error(parameter.name)
        if TensorPlan(parameter, own, known).without_error().is_exact_in_a_block:
            continue
        is_difference = isinstance(parameter, FloatDifference)
        candidate = _Candidate(
            *(parameter, own, known, context, bound),
            may_be_exact=parameter.name not in in_blocks and not is_difference,
            is_tiny=parameter.size <= _FEW and is_alone(parameter),
        )
        if candidate.may_be_otherwise:
            yield candidate


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A tensor that may be coded otherwise than its options say.

    Attributes:
        parameter: the tensor.
        options: those of the tensor.
        survey: what is known of it.
        context: profile and parameter sets of the stream.
        bound: the most that its squared error may be of its energy; None: any.
        may_be_exact: whether its unit can hold what is not quantized.
        is_tiny: whether its unit is mostly header, and holds no other tensor.
    """

    parameter: Parameter
    options: EncodeOptions
    survey: TensorSurvey
    context: Context
    bound: float | None
    may_be_exact: bool
    is_tiny: bool

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return self.parameter.size

    def loaded(self) -> _Candidate:
        """Return the candidate with the values of its tensor in memory."""
        return replace(self, parameter=self.parameter.loaded())

    @property
    def may_be_otherwise(self) -> bool:
        """Whether it is worth a look."""
        if self._may_pay or not self._fits(self.options):
            return True
        if self.bound is None:
            return False
        if self.survey.feedback is not None:  # of which errors of the tensor may become large
            return True
        step = nominal_step(self.parameter, self.options)
        # Rates pull values towards zero, by how much nobody knows beforehand.
        has_rates = self.options.lambda_scale or isinstance(self.parameter, FloatDifference)
        most = 1.0 if has_rates else LARGEST_ERROR
        return most * self.parameter.size * step**2 > self.bound * self.survey.energy

    @property
    def _may_pay(self) -> bool:
        """Whether exact coding may take no more bytes."""
        return self.may_be_exact and self._is_worth_trying

    @property
    def _is_worth_trying(self) -> bool:
        return (self.survey.exact is not None or self.is_tiny) and not self._is_update

    @property
    def _is_update(self) -> bool:
        """Whether earlier streams make integers cheaper than can be told here."""
        return bool(self.context.mps and self.context.mps.mps_parent_signalling_enabled_flag)

    def _fits(self, options: EncodeOptions) -> bool:
        return fits_step(self.parameter, options, self.survey.largest)

    def choice(self) -> CodingChoice:
        """Return how it is coded."""
        if not self._fits(self.options):
            return CodingChoice(self._exact()) if self.may_be_exact else self._coarser()
        quantized = self._quantized(self.options)
        error = quantized.distortion
        is_protected = self.bound is not None and error.squared_error > self.bound * error.energy
        finer = self._finer(quantized) if is_protected else quantized
        if not self.may_be_exact or not (self._is_worth_trying or is_protected):
            if not is_protected:
                return CodingChoice()
            return CodingChoice(qp=self._finest() if finer is None else finer.qp, is_protected=True)
        exact = self._exact()
        if finer is None or self._is_no_larger(exact, finer):
            return CodingChoice(exact, is_protected=is_protected)
        return CodingChoice(qp=finer.qp, is_protected=True) if is_protected else CodingChoice()

    def _coarser(self) -> CodingChoice:
        """Return the least greater qp at which the integers fit 32 bits."""
        qps = range(nominal_qp(self.parameter, self.options), self.options.qp_range[1] + 1)
        return CodingChoice(qp=next(self._fitting(qps)))

    def _finest(self) -> int:
        """Return the least qp at which the integers fit 32 bits."""
        nominal = nominal_qp(self.parameter, self.options)
        return next(self._fitting(range(self.options.qp_range[0], nominal)), nominal)

    def _fitting(self, qps: Iterable[int]) -> Iterator[int]:
        """Yield those at which the integers fit 32 bits."""
        for qp in qps:
            if self._fits(with_qp(self.parameter, self.options, qp)):
                yield qp

    def _exact(self) -> Representation | None:
        if self.survey.exact is not None:
            return self.survey.exact
        codebook = bool(self.options.codebook)
        return represent(self.parameter.read(), self.options.qp_density, codebook)

    def _quantized(self, options: EncodeOptions) -> QuantizedTensor:
        known = self.survey
        return quantize_tensor(
            self.parameter, options, known.largest, self.context.profile, known.read_feedback()
        )

    def _finer(self, coarse: QuantizedTensor) -> QuantizedTensor | None:
        """Return the coarsest quantization found that loses no more than it may; None without."""
        allowed = (self.bound or 0.0) * coarse.distortion.energy
        # Uniform rounding loses a twelfth of the square of the step, a trellis a little more.
        step = math.sqrt(12 * allowed / self.parameter.size)
        density = self.options.qp_density
        qp = min(coarse.qp - 1, qp_of_step(step, density) + (1 << density) // 2)
        lowest = self.options.qp_range[0]
        for finer in range(qp, max(qp - _MOST_TRIES, lowest - 1), -1):
            options = with_qp(self.parameter, self.options, finer)
            if not self._fits(options):
                return None
            quantized = self._quantized(options)
            if quantized.distortion.squared_error <= allowed:
                return quantized
        return None

    def _is_no_larger(self, exact: Representation | None, quantized: QuantizedTensor) -> bool:
        """Whether exact coding takes no more bytes; where estimates are close, both are coded."""
        if exact is None:
            return False
        bits, _ = estimated_bits(quantized.levels)
        is_clear = max(bits, exact.bits) > _CLEAR * min(bits, exact.bits) and not self.is_tiny
        if is_clear and not promises_codebook(quantized.levels):
            return exact.bits <= bits
        options = quantized.options
        return self._bytes(options, exact) <= self._bytes(options, None)

    def _bytes(self, options: EncodeOptions, exact: Representation | None) -> int:
        name = self.parameter.name
        if exact is not None:
            exact = exact.with_part(name + (exact.part_suffix or ""))
        rules = {name: rule} if (rule := rule_of(self.parameter, exact)) != TensorRule() else {}
        tensor = TensorPlan(self.parameter, options, self.survey, exact)
        data = encode_unit(self.context, UnitPlan({"weight": tensor})).data
        return len(data) + len(ModelMap(rules).to_text())


def _choice(candidate: _Candidate) -> CodingChoice:
    loaded = call_portably(candidate.parameter.name, candidate.loaded)
    return loaded.choice()

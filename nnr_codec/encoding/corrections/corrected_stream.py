"""A stream that is encoded once more with other values, by which the outputs diverge less.

First weights are moved by what quantization did to the layers before them; then vectors are
corrected. Where vectors alone are, what the integers of weights say stays as it is, since their
values, and what they are quantized by, do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Protocol

from ...errors import QuantizationOverflow
from ...model import Array, Model, Parameter
from ...options import EncodeOptions
from ...report import CorrectionReport, Evaluation
from ..stream_encoder import Draft
from ..survey import ModelSurvey, with_values
from ..targets.profiles import profile_of
from .weight_movement import MovableWeights

_OCTAVES_PER_BIT = 2.0
"""By which the divergence falls with a bit more for each weight: steps are half as large."""


@dataclass(frozen=True)
class Proposal:
    """Vectors that may make the network's outputs diverge less.

    Attributes:
        vectors: by name.
        methods: what they were made by: "channels", "tuned", or both.
        before: the divergence without them, on samples that are held back.
    """

    vectors: Mapping[str, Array]
    methods: tuple[str, ...]
    before: float


class Corrector(Protocol):
    """Corrects weights and vectors by samples, some of which it holds back.

    Attributes:
        notes: what could not be done so far, and why.
    """

    notes: list[str]

    def divergence(self, tensors: Mapping[str, Array], *, perturbed: bool = False) -> float:
        """Return the divergence with these tensors, on samples that are held back; `perturbed`:
        with changes."""

    def move(
        self,
        decode: Callable[[], Mapping[str, Array]],
        names: Collection[str],
        quantize: Callable[[str, Array], Array],
    ) -> Mapping[str, Array]:
        """Return what weights should be before they are quantized, by name, given what a stream
        decodes to; `names`: which may be moved; `quantize`: what becomes of one of them."""

    def propose(self, tensors: Mapping[str, Array], names: Collection[str]) -> Proposal | None:
        """Return corrections of what a stream decodes to; `names`: what may be corrected."""


@dataclass(frozen=True)
class CorrectedStream:
    """A stream with moved weights, corrected vectors, or both.

    Attributes:
        draft: the stream.
        model: that it is of, with corrected vectors.
        report: what was corrected.
        seen: the stream, as the target measures it.
    """

    draft: Draft
    model: Model
    report: CorrectionReport
    seen: Evaluation


@dataclass(frozen=True)
class _Candidate:
    """A stream, and what it is made of.

    Attributes:
        draft, survey, model: the stream, and what it is of.
        report: what is corrected in it; None: nothing.
        perturbed: whether the report is by perturbed samples.
    """

    draft: Draft
    survey: ModelSurvey
    model: Model
    report: CorrectionReport | None = None
    perturbed: bool = False


@dataclass(frozen=True)
class StreamCorrection:
    """Corrects the streams of a model.

    Attributes:
        model, survey: what they are made of.
        corrector: corrects weights and vectors.
        emptied: vectors that say nothing, and stay so.
        encode: makes a stream.
        decode: returns a stream's tensors by name.
        judge: returns whether a stream is within the target, and what is measured of it.
        most_judged: streams that may be judged at one offset.
    """

    model: Model
    survey: ModelSurvey
    corrector: Corrector
    emptied: Collection[str]
    encode: Callable[[ModelSurvey, EncodeOptions], Draft]
    decode: Callable[[Draft], dict[str, Array]]
    judge: Callable[[Draft], tuple[bool, Evaluation]]
    most_judged: int = 3

    def coarsest(
        self, kept: Draft, options: EncodeOptions, offsets: Iterable[int]
    ) -> CorrectedStream | None:
        """Return a corrected stream; None if none is better, or allowed.

        Args:
            kept: the stream without; it stays open.
            options: of the encoder, without its offset.
            offsets: greater ones to go on to, as long as what they give, corrected, is allowed.
        """
        best = self._corrected(kept, self._options(kept, options, kept.qp_offset))
        for offset in offsets:
            if best is None:
                break
            coarser = self._options(kept, options, offset)
            try:
                draft = self.encode(self.survey, coarser)
            except QuantizationOverflow:
                break
            draft.qp_offset = offset
            found = self._corrected(draft, coarser)
            draft.file.close()
            if found is None:
                break
            best.draft.file.close()
            best = found
        return best

    @staticmethod
    def _options(kept: Draft, options: EncodeOptions, offset: int) -> EncodeOptions:
        return replace(options.with_offset(offset), profile=profile_of(kept))

    def _corrected(self, kept: Draft, options: EncodeOptions) -> CorrectedStream | None:
        """Return the first of the candidates that is allowed, if any is."""
        found = None
        candidates: list[_Candidate] = []
        for candidate in islice(self._candidates(kept, options), self.most_judged):
            candidates.append(candidate)
            is_allowed, seen = self.judge(candidate.draft)
            if is_allowed and candidate.report is not None:
                seen = replace(seen, is_corrected=True)
                found = CorrectedStream(candidate.draft, candidate.model, candidate.report, seen)
                break
        for candidate in candidates:
            if found is None or candidate.draft is not found.draft:
                candidate.draft.file.close()
        return found

    def _candidates(self, kept: Draft, options: EncodeOptions) -> Iterator[_Candidate]:
        """Yield corrected streams, the best one first: each is better than that without, even with
        its own additional bytes as finer steps."""
        start = _Candidate(kept, self.survey, self.model)
        moved = self._with_moved_weights(start, options)
        for first in filter(None, (moved, start)):
            second = self._with_vectors(first, options)
            if second is not None:
                yield second
            if first is moved:
                yield first

    def _with_moved_weights(self, start: _Candidate, options: EncodeOptions) -> _Candidate | None:
        """Return a stream with moved weights; None if it is not better by held-back samples, either
        as they are or perturbed: often a few of them tell most of a divergence."""
        weights = MovableWeights.of(start.draft, start.survey, options)
        if not weights.parameters:
            return None
        decoded = self.decode(start.draft)
        before = {p: self.corrector.divergence(decoded, perturbed=p) for p in (False, True)}
        del decoded  # as large as the model, as are the targets
        before = {p: value for p, value in before.items() if 0 < value < math.inf}
        if not before:
            return None
        try:
            decode = partial(self.decode, start.draft)
            targets = self.corrector.move(decode, weights.parameters.keys(), weights.quantized)
        except QuantizationOverflow:
            return None
        if not targets:
            return None
        report = CorrectionReport(("moved",), (), 0.0, 0.0, tuple(targets))
        survey = weights.moved(targets)
        del targets
        return self._better(start, survey, self.model, report, before, options)

    def _with_vectors(self, start: _Candidate, options: EncodeOptions) -> _Candidate | None:
        """Return a stream with corrected vectors; None if it is not better."""
        vectors = {p.name for p in start.survey.coded if len(p.shape) == 1 and p.name in self.model}
        names = {name for name in vectors if start.survey.tensors[name].is_quantized}
        names -= {parameter.tied_to for parameter in self.model.values()} | set(self.emptied)
        proposal = self.corrector.propose(self.decode(start.draft), names) if names else None
        if proposal is None:
            return None
        changed = {n: Parameter.from_array(n, values) for n, values in proposal.vectors.items()}
        model = start.model.with_parameters(changed.get(p.name, p) for p in start.model.values())
        report = CorrectionReport(proposal.methods, tuple(changed), 0.0, 0.0)
        survey = with_values(start.survey, changed, options)
        before = {False: proposal.before}
        return self._better(start, survey, model, report, before, options)

    def _better(
        self,
        start: _Candidate,
        survey: ModelSurvey,
        model: Model,
        report: CorrectionReport,
        before: Mapping[bool, float],
        options: EncodeOptions,
    ) -> _Candidate | None:
        """Return the stream of a survey; None if it is no better than what its own additional bytes
        would bring as finer steps.

        Args:
            start: what it is to be better than.
            survey, model: what it is of.
            report: what is corrected in it, without divergences.
            before: those of the stream at the start, by whether samples are perturbed.
            options: of the encoder.
        """
        try:
            draft = self.encode(survey, options)
        except QuantizationOverflow:
            return None
        draft.qp_offset = start.draft.qp_offset
        draft.notes += [note for note in start.draft.notes if note not in draft.notes]
        decoded = self.decode(draft)
        after = {p: self.corrector.divergence(decoded, perturbed=p) for p in before}
        weights = sum(parameter.size for parameter in survey.coded)
        bits = 8 * (draft.bytes - start.draft.bytes) / weights
        judged = min(before, key=lambda p: after[p] / before[p])
        if not after[judged] * 2.0 ** (_OCTAVES_PER_BIT * max(bits, 0.0)) < before[judged]:
            draft.file.close()
            return None
        report = replace(report, before=before[judged], after=after[judged])
        if start.report is not None:
            judged, first = start.perturbed, start.report
            report = replace(
                report,
                methods=(*first.methods, *report.methods),
                before=first.before,
                after=self.corrector.divergence(decoded, perturbed=judged),
                weights=first.weights,
            )
        return _Candidate(draft, survey, model, report, judged)

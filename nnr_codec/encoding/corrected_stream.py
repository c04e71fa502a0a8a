"""A stream whose vectors are corrected after quantization: it is encoded once more with others.

What the integers of weights say stays as it is, since their values, and what they are quantized by,
do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from ..errors import QuantizationOverflow
from ..model import Array, Model, Parameter
from ..options import EncodeOptions
from ..report import CorrectionReport, Evaluation
from .stream_encoder import Draft
from .survey import ModelSurvey, with_values
from .targets.profiles import profile_of

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
    """Corrects vectors by samples, some of which it holds back."""

    def divergence(self, tensors: Mapping[str, Array]) -> float:
        """Return the divergence with these tensors, on samples that are held back."""

    def propose(self, tensors: Mapping[str, Array], names: Collection[str]) -> Proposal | None:
        """Return corrections of what a stream decodes to; `names`: what may be corrected."""


@dataclass(frozen=True)
class CorrectedStream:
    """A stream with corrected vectors.

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
class VectorCorrection:
    """Corrects vectors of the streams of a model.

    Attributes:
        model, survey: what they are made of.
        corrector: corrects vectors.
        emptied: those that say nothing, and stay so.
        encode: makes a stream.
        decode: returns a stream's tensors by name.
        judge: returns whether a stream is within the target, and what is measured of it.
    """

    model: Model
    survey: ModelSurvey
    corrector: Corrector
    emptied: Collection[str]
    encode: Callable[[ModelSurvey, EncodeOptions], Draft]
    decode: Callable[[Draft], dict[str, Array]]
    judge: Callable[[Draft], tuple[bool, Evaluation]]

    def coarsest(
        self, kept: Draft, options: EncodeOptions, offsets: Iterable[int]
    ) -> CorrectedStream | None:
        """Return a stream with corrected vectors; None if none is better, or allowed.

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
        """Return a stream with corrected vectors; None if it is not better, or not allowed.

        It has to be better than what its own additional bytes would bring as finer steps.
        """
        survey, corrector = self.survey, self.corrector
        vectors = {p.name for p in survey.coded if len(p.shape) == 1 and p.name in self.model}
        names = {name for name in vectors if survey.tensors[name].is_quantized}
        names -= {parameter.tied_to for parameter in self.model.values()} | set(self.emptied)
        proposal = corrector.propose(self.decode(kept), names) if names else None
        if proposal is None:
            return None
        changed = {n: Parameter.from_array(n, values) for n, values in proposal.vectors.items()}
        try:
            draft = self.encode(with_values(survey, changed, options), options)
        except QuantizationOverflow:
            return None
        draft.qp_offset = kept.qp_offset
        draft.notes += [note for note in kept.notes if note not in draft.notes]
        after = corrector.divergence(self.decode(draft))
        weights = sum(parameter.size for parameter in survey.coded)
        bits = 8 * (draft.bytes - kept.bytes) / weights
        is_better = after * 2.0 ** (_OCTAVES_PER_BIT * max(bits, 0.0)) < proposal.before
        is_allowed = False
        if is_better and math.isfinite(after):
            is_allowed, seen = self.judge(draft)
        if not is_allowed:
            draft.file.close()
            return None
        report = CorrectionReport(proposal.methods, tuple(changed), proposal.before, after)
        model = self.model.with_parameters(changed.get(p.name, p) for p in self.model.values())
        return CorrectedStream(draft, model, report, replace(seen, is_corrected=True))

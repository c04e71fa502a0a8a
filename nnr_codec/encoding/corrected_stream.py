"""A stream whose vectors are corrected after quantization: it is encoded once more with others.

What the integers of weights say stays as it is, since their values, and what they are quantized by,
do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..errors import QuantizationOverflow
from ..model import Array, Model, Parameter
from ..options import EncodeOptions
from ..report import CorrectionReport
from .stream_encoder import Draft
from .survey import ModelSurvey, with_values

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
    """

    draft: Draft
    model: Model
    report: CorrectionReport


def corrected_stream(
    kept: Draft,
    model: Model,
    survey: ModelSurvey,
    options: EncodeOptions,
    corrector: Corrector,
    *,
    emptied: Collection[str] = (),
    encode: Callable[[ModelSurvey, EncodeOptions], Draft],
    decode: Callable[[Draft], dict[str, Array]],
    is_allowed: Callable[[Draft], bool],
) -> CorrectedStream | None:
    """Return the stream with corrected vectors; None if it is not better, or not allowed.

    It has to be better than what its own additional bytes would bring as finer steps.

    Args:
        kept: the stream; it stays open.
        model, survey, options: what it was made of, its profile and offset included.
        corrector: corrects vectors.
        emptied: those that say nothing, and stay so.
        encode: makes a stream.
        decode: returns a stream's tensors by name.
        is_allowed: whether a stream is within the target.
    """
    vectors = {p.name for p in survey.coded if len(p.shape) == 1 and p.name in model}
    names = {name for name in vectors if survey.tensors[name].is_quantized}
    names -= {parameter.tied_to for parameter in model.values()} | set(emptied)
    proposal = corrector.propose(decode(kept), names) if names else None
    if proposal is None:
        return None
    corrected = {n: Parameter.from_array(n, values) for n, values in proposal.vectors.items()}
    try:
        draft = encode(with_values(survey, corrected, options), options)
    except QuantizationOverflow:
        return None
    draft.qp_offset = kept.qp_offset
    draft.notes += [note for note in kept.notes if note not in draft.notes]
    after = corrector.divergence(decode(draft))
    weights = sum(parameter.size for parameter in survey.coded)
    bits = 8 * (draft.bytes - kept.bytes) / weights
    is_better = after * 2.0 ** (_OCTAVES_PER_BIT * max(bits, 0.0)) < proposal.before
    if not is_better or not math.isfinite(after) or not is_allowed(draft):
        draft.file.close()
        return None
    report = CorrectionReport(proposal.methods, tuple(corrected), proposal.before, after)
    changed = model.with_parameters(corrected.get(p.name, p) for p in model.values())
    return CorrectedStream(draft, changed, report)

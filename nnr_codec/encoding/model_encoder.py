"""Encoding of a model whose decompositions are known: survey, plan, code, measure.

The model is surveyed once; a stream is planned and coded as often as a target size or a profile
wants; errors are measured of the stream that is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO

from ..calibration.foldable_norms import FoldableNorm, fold_norms
from ..calibration.moments import Calibration
from ..calibration.spilled_moments import spill_file_for
from ..decoding.series import Series
from ..errors import QuantizationOverflow, TargetNotReached
from ..factorization.forms import FactoredWeight
from ..model import Model, Parameter, dtype_name
from ..options import EncodeOptions
from ..report import (
    CorrectionReport,
    EncodeReport,
    Evaluation,
    ExtraReport,
    SearchReport,
)
from .corrections.corrected_stream import StreamCorrection
from .explanations import Explanations
from .known import UNKNOWN, Known
from .model_mapping import is_quantized
from .notes import damage_notes
from .step_sizes.by_sensitivity import allocated
from .step_sizes.by_size import allocated_by_size
from .stream_encoder import Draft
from .survey import ModelSurvey, survey_model
from .targets.drafts import DraftMaker
from .targets.log import SearchLog
from .targets.measures import Measures
from .targets.profiles import DraftEncoder, smaller_profile
from .targets.search import search
from .targets.target import Target
from .updates.residual import write_residual
from .updates.update_source import UpdateSource
from .verification import verify_stream
from .weight_errors import FactoringErrors, factoring_errors, merged_reports
from .work import UNWATCHED, Work


def encode_model(
    model: Model,
    factorizations: Mapping[str, FactoredWeight],
    options: EncodeOptions,
    output: BinaryIO,
    *,
    series: Series | None = None,
    known: Known = UNKNOWN,
    update: UpdateSource | None = None,
    log: SearchLog | None = None,
    work: Work = UNWATCHED,
    verify: bool = False,
    low_memory: bool = False,
) -> EncodeReport:
    """Encode a model in the profile that is the smaller, within the target if any.

    Args:
        model, options, verify, low_memory: as of :func:`nnr_codec.encode`.
        factorizations: the weights that travel as factors, by name.
        output: where the stream goes.
        series: the earlier streams.
        known: of the network.
        update: the base, of which `series` are the streams; None: there is none.
        log: what a search for a target has seen, and sees.
        work: how it is done, and who is told.

    Returns:
        The report, without seconds.

    Raises: as :func:`nnr_codec.encode`.
    """
    earlier = series or Series()
    reference = model
    calibration, corrector = known.calibration, known.corrector
    folded: tuple[FoldableNorm, ...] = ()
    if calibration is not None and not earlier.depth:
        model, calibration, folded = _folded(model, calibration, options)
    spill = spill_file_for(calibration, low_memory=low_memory)
    survey = survey_model(model, factorizations, options, work, calibration, spill, update)
    stepped, explanations = _with_steps(options, survey, is_update=earlier.depth > 0)
    log = log or SearchLog()
    with DraftMaker(earlier, explanations, work) as drafts:
        is_corrected = corrector is not None and options.max_nmse is None and not earlier.depth
        base = None if update is None else update.base
        measures = Measures(reference, survey, earlier, known.evaluate, work, is_corrected, base)
        target = measures.target(stepped, log)
        kept = _kept(partial(drafts.encode, survey), model, stepped, target, log)
        if corrector is not None and is_corrected:
            correcting = StreamCorrection(
                *(model, survey, corrector),
                emptied={name for norm in folded for name in norm.emptied},
                encode=drafts.encode,
                decode=measures.decoded,
                judge=partial(_judged, target),
                most_judged=1 if options.max_drop is not None else 3,
            )
            kept = _corrected(kept, correcting, stepped)
        kept.draft.notes += () if calibration is None else calibration.notes
        with _overflow_beyond_target(options.target, kept.draft.qp_offset):
            errors = factoring_errors(survey.factored, kept.draft.factors, work.executor)
        report = replace(
            _report(kept, survey, options, errors),
            encodings=drafts.count,
            folded=tuple(norm.scale for norm in folded),
        )
        stream = kept.draft.file
        if verify:
            stream.seek(0)
            verify_stream(stream, kept.model, report.tensors, series=earlier, base=base, work=work)
        _hand_over(stream, output, survey, update)
    return report


@dataclass(frozen=True)
class _Kept:
    """The stream that is kept.

    Attributes:
        draft: the stream.
        model: that it is of.
        search: what the search for a target saw; None: there is no target.
        correction: what was corrected in it; None: nothing.
    """

    draft: Draft
    model: Model
    search: SearchReport | None
    correction: CorrectionReport | None = None


def _with_steps(
    options: EncodeOptions, survey: ModelSurvey, *, is_update: bool
) -> tuple[EncodeOptions, Explanations]:
    """Return the options with each tensor's step, and what explains them."""
    by_sensitivity = allocated(options, survey) if options.allocation else options
    # Differences are of other sizes than the network.
    stepped = by_sensitivity if is_update else allocated_by_size(by_sensitivity, survey)
    return stepped, Explanations(survey, options, by_sensitivity, stepped)


def _corrected(kept: _Kept, correcting: StreamCorrection, options: EncodeOptions) -> _Kept:
    """Return the corrected stream, if there is one that is better, with the corrector's notes."""
    offsets = _coarser_offsets(options, kept.draft.qp_offset)
    if (better := correcting.coarsest(kept.draft, options, offsets)) is not None:
        search = kept.search and kept.search.with_corrected(better.seen)
        kept = _Kept(better.draft, better.model, search, better.report)
    kept.draft.notes += correcting.corrector.notes
    return kept


def _hand_over(
    stream: BinaryIO, output: BinaryIO, survey: ModelSurvey, update: UpdateSource | None
) -> None:
    """Write the stream, and what of an update it does not carry."""
    if update is not None and update.residual_file is not None:
        stream.seek(0)
        write_residual(update.residual_file, survey.coded, update.base.with_update(stream))
    stream.seek(0)
    shutil.copyfileobj(stream, output)


def _folded(
    model: Model, known: Calibration, options: EncodeOptions
) -> tuple[Model, Calibration, tuple[FoldableNorm, ...]]:
    """Return the model with batch norms folded, what is known of it then, and those norms; not
    where tensors have to be near those that are given."""
    if not options.fold_norms or options.max_nmse is not None:
        return model, known, ()

    def may_change(vector: Parameter) -> bool:
        is_bounded = isinstance(options.for_tensor(vector.name).max_tensor_error, float)
        return is_quantized(vector, options) and not is_bounded

    model, folded = fold_norms(model, known.norms, may_change)
    return model, known.with_folded(folded), folded


def _kept(
    encode: DraftEncoder,
    model: Model,
    options: EncodeOptions,
    target: Target | None,
    log: SearchLog,
) -> _Kept:
    """Return the stream that is kept, before it is corrected."""
    if target is None:
        return _Kept(smaller_profile(encode, options), model, None)
    draft, found = search(target, encode, options, log)
    return _Kept(draft, model, found)


def _judged(target: Target | None, draft: Draft) -> tuple[bool, Evaluation]:
    """Return whether a stream meets the target, if there is one, and what is measured of it."""
    loss = None if target is None else target.loss(draft)
    seen = Evaluation(draft.qp_offset, draft.bytes, draft.nmse, loss, draft.profile)
    return target is None or target.best({draft.qp_offset: seen}) is not None, seen


def _coarser_offsets(options: EncodeOptions, offset: int) -> range:
    """Return the offsets at which streams may be within a target when their vectors are corrected,
    though without they are not; those of a target that may measure any number of streams."""
    if options.max_kl is None:
        return range(0)
    return range(offset + 1, options.offset_range()[1] + 1)


@contextmanager
def _overflow_beyond_target(target: str | None, offset: int) -> Iterator[None]:
    """Say of quantization that overflows at an offset that a target is not reached."""
    try:
        yield
    except QuantizationOverflow as error:
        if target is None:
            raise
        reason = f"not reached: with a qp offset of {offset}, tensor {error}"
        raise TargetNotReached(target, reason) from None


def _report(
    kept: _Kept,
    survey: ModelSurvey,
    options: EncodeOptions,
    errors: Mapping[str, FactoringErrors],
) -> EncodeReport:
    """Return the report on the stream that is kept.

    `options`: as they were given; `errors`: of the weights in factors.
    """
    draft = kept.draft
    order = {parameter.name: index for index, parameter in enumerate(survey.coded)}
    tensors = sorted(draft.tensors, key=lambda report: order[report.name])
    merged = tuple(merged_reports(tensors, survey.factored, errors))
    coded = {*order, *survey.factored}
    return EncodeReport(
        merged,
        draft.header_bytes,
        seconds=0.0,
        profile=draft.profile,
        unmatched=tuple(options.unmatched_globs([*kept.model.names(), *order])),
        qp_offset=draft.qp_offset,
        extras=tuple(
            ExtraReport(p.name, p.shape, dtype_name(p.dtype), p.tied_to)
            for p in kept.model.values()
            if p.name not in coded
        ),
        notes=(*survey.notes, *draft.notes, *damage_notes(merged, options)),
        search=kept.search,
        correction=kept.correction,
    )

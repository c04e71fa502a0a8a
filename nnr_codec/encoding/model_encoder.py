"""Encoding of a model whose decompositions are known: survey, plan, code, measure.

The model is surveyed once; a stream is planned and coded as often as a target size or a profile
wants; errors are measured of the stream that is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

from ..calibration.moments import Calibration
from ..decoding.series import Series
from ..errors import QuantizationOverflow, TargetNotReached
from ..factorization.forms import FactoredWeight
from ..model import Model, dtype_name
from ..options import EncodeOptions
from ..report import EncodeReport, ExtraReport, OnStage, SearchReport, TensorReport
from ..support.spilled import SpillFile
from .allocation import allocated
from .coding_choice import choose_codings
from .explanations import Explanations
from .notes import calibration_notes, choice_notes, damage_notes
from .plan import plan_stream, stream_context
from .step_sizes.by_size import allocated_by_size
from .stream_encoder import Draft, encode_stream
from .survey import ModelSurvey, survey_model
from .targets.log import SearchLog
from .targets.measures import Evaluate, Measures
from .targets.profiles import DraftEncoder, smaller_profile
from .targets.search import search
from .verification import verify_stream
from .weight_errors import FactoringErrors, factoring_errors, merged_reports

_IN_MEMORY = 1 << 20
"""Bytes of a stream beyond which it waits in a temporary file."""


def encode_model(
    model: Model,
    factorizations: Mapping[str, FactoredWeight],
    options: EncodeOptions,
    output: BinaryIO,
    *,
    series: Series | None = None,
    calibration: Calibration | None = None,
    evaluate: Evaluate | None = None,
    log: SearchLog | None = None,
    executor: Executor | None = None,
    progress: Callable[[TensorReport], object] | None = None,
    on_stage: OnStage | None = None,
    verify: bool = False,
    low_memory: bool = False,
) -> EncodeReport:
    """Encode a model in the profile that is the smaller, within the target if any.

    Args:
        model, options, calibration, executor, progress, on_stage, verify, low_memory: as of
            :func:`nnr_codec.encode`.
        factorizations: the weights that travel as factors, by name.
        output: where the stream goes.
        series: the earlier streams.
        evaluate: of decoded arrays by name, for the targets of divergence and drop.
        log: what a search for a target has seen, and sees.

    Returns:
        The report, without seconds.

    Raises: as :func:`nnr_codec.encode`.
    """
    earlier = series or Series()
    spill = SpillFile() if low_memory and calibration is not None else None
    survey = survey_model(model, factorizations, options, executor, calibration, on_stage, spill)
    given = options
    calibrated = options = allocated(options, survey) if options.allocation else options
    if not earlier.depth:  # differences are of other sizes than the network
        options = allocated_by_size(options, survey)
    explanations = Explanations(survey, given, calibrated, options)
    encodings = 0
    with ExitStack() as files:

        def draft(chosen: EncodeOptions) -> Draft:
            nonlocal encodings
            encodings += 1
            context = stream_context(chosen, earlier)
            choices = choose_codings(survey, chosen, context, executor, on_stage)
            plan = plan_stream(survey, chosen, earlier, choices)
            file: Any = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
            files.enter_context(file)
            try:
                made = encode_stream(plan, file, executor, progress, on_stage)
                made.tensors = explanations.explained(made.tensors, chosen, choices)
                made.notes = [*calibration_notes(survey), *choice_notes(survey, choices, chosen)]
                return made
            except BaseException:
                file.close()
                raise

        measures = Measures(model, survey, earlier, evaluate, executor, on_stage)
        kept, found = _kept(draft, options, measures, log or SearchLog())
        with _overflow_beyond_target(options.target, kept.qp_offset):
            errors = factoring_errors(survey.factored, kept.factors, executor)
        report = _report(model, survey, given, kept, errors)
        report = replace(report, encodings=encodings, search=found)
        kept.file.seek(0)
        if verify:
            tensors = report.tensors
            verify_stream(
                kept.file, model, tensors, series=earlier, executor=executor, on_stage=on_stage
            )
            kept.file.seek(0)
        shutil.copyfileobj(kept.file, output)
    return report


def _kept(
    encode: DraftEncoder, options: EncodeOptions, measures: Measures, log: SearchLog
) -> tuple[Draft, SearchReport | None]:
    """Return the stream that is kept, and what the search for it saw if there is a target."""
    target = measures.target(options, log)
    if target is None:
        return smaller_profile(encode, options), None
    return search(target, encode, options, log)


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
    model: Model,
    survey: ModelSurvey,
    options: EncodeOptions,
    kept: Draft,
    errors: Mapping[str, FactoringErrors],
) -> EncodeReport:
    """Return the report on the stream that is kept.

    `options`: as they were given; `errors`: of the weights in factors.
    """
    order = {parameter.name: index for index, parameter in enumerate(survey.coded)}
    tensors = sorted(kept.tensors, key=lambda report: order[report.name])
    merged = tuple(merged_reports(tensors, survey.factored, errors))
    extras = {extra.name for extra in survey.model_map.extras}
    return EncodeReport(
        merged,
        kept.header_bytes,
        seconds=0.0,
        profile=kept.profile,
        unmatched=tuple(options.unmatched_globs([*model.names(), *order])),
        qp_offset=kept.qp_offset,
        extras=tuple(
            ExtraReport(p.name, p.shape, dtype_name(p.dtype), p.tied_to)
            for p in model.values()
            if p.name in extras
        ),
        notes=(*survey.notes, *kept.notes, *damage_notes(merged, options)),
    )

"""Encoding of a model whose decompositions are known: survey, plan, code, measure.

The model is surveyed once; a stream is planned and coded as often as a target size or a profile
wants; errors are measured of the stream that is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, BinaryIO

from ..decoding.series import Series
from ..factorization.forms import FactoredWeight
from ..model import Model
from ..options import EncodeOptions
from ..report import EncodeReport, TensorReport
from .plan import plan_stream
from .size_estimate import SizeEstimate
from .stream_encoder import Draft, encode_stream
from .survey import survey_model
from .target_size import WithinTarget, overflow_beyond_target, smaller_profile, within_target
from .weight_errors import factoring_errors, merged_reports

_IN_MEMORY = 1 << 20
"""Bytes of a stream beyond which it waits in a temporary file."""


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A stream, and what there is to say of it.

    Attributes:
        file: the stream, from its beginning.
        report: sizes and errors; without seconds.
    """

    file: BinaryIO
    report: EncodeReport


def encode_model(
    model: Model,
    factorizations: Mapping[str, FactoredWeight],
    options: EncodeOptions,
    files: ExitStack,
    *,
    series: Series | None = None,
    executor: Executor | None = None,
    progress: Callable[[TensorReport], object] | None = None,
) -> EncodedModel:
    """Encode a model in the profile that is the smaller, within the target size if any.

    Args:
        model, options, executor, progress: as of :func:`nnr_codec.encode`.
        factorizations: the weights that travel as factors, by name.
        files: closes the stream's file.
        series: the earlier streams.

    Raises: as :func:`nnr_codec.encode`.
    """
    earlier = series or Series()
    survey = survey_model(model, factorizations, options, executor)

    def draft(chosen: EncodeOptions) -> Draft:
        plan = plan_stream(survey, chosen, earlier)
        file: Any = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        files.enter_context(file)
        try:
            return encode_stream(plan, file, executor, progress)
        except BaseException:
            file.close()
            raise

    encode = partial(smaller_profile, draft)
    if options.target_size is None:
        kept = WithinTarget(encode(options), qp_offset=0, encodings=1)
    else:
        estimate = cache(SizeEstimate(survey, options).bytes_at)
        kept = within_target(encode, options, model, estimate)
    has_target = options.target_size is not None
    with overflow_beyond_target(kept.qp_offset) if has_target else nullcontext():
        errors = factoring_errors(survey.factored, kept.draft.factors, executor)
    kept.draft.file.seek(0)
    order = {parameter.name: index for index, parameter in enumerate(survey.coded)}
    tensors = sorted(kept.draft.tensors, key=lambda report: order[report.name])
    report = EncodeReport(
        tuple(merged_reports(tensors, survey.factored, errors)),
        kept.draft.header_bytes,
        seconds=0.0,
        profile=kept.draft.profile,
        unmatched=tuple(options.unmatched_globs([*survey.names, *survey.coded_names])),
        qp_offset=kept.qp_offset,
        encodings=kept.encodings,
        notes=survey.notes,
    )
    return EncodedModel(kept.draft.file, report)

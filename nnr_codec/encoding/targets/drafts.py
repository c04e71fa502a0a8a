"""Making whole streams of one model, each of which may be the one that is kept."""

from __future__ import annotations

import tempfile
from collections import Counter
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, BinaryIO

from ...bitstream.indexing import write_indexed
from ...decoding.series import Series
from ...options import EncodeOptions
from ..coding_choice import choose_codings
from ..explanations import Explanations
from ..notes import calibration_notes, choice_notes
from ..plan import plan_stream, stream_context
from ..stream_encoder import Draft, encode_stream
from ..survey import ModelSurvey
from ..updates.quality_layers import split_into_layers
from ..work import Work

_IN_MEMORY = 1 << 20
"""Bytes of a stream beyond which it waits in a temporary file."""


class DraftMaker:
    """Makes streams, whose files go with the end of the block that it is used in.

    Attributes:
        count: streams that were begun.
    """

    def __init__(
        self,
        series: Series,
        explanations: Explanations,
        work: Work,
    ) -> None:
        """Take what all streams share: as of :func:`~.model_encoder.encode_model`."""
        self.count = 0
        self._series = series
        self._explanations = explanations
        self._work = work
        self._files = ExitStack()

    def __enter__(self) -> DraftMaker:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def encode(self, survey: ModelSurvey, options: EncodeOptions) -> Draft:
        """Choose codings, plan and encode; `survey`: of the model."""
        self.count += 1
        context = stream_context(options, self._series)
        choices = choose_codings(survey, options, context, self._work)
        plan = plan_stream(survey, options, self._series, choices)
        with ExitStack() as files:
            explain = self._explanations.explainer(options, choices)
            made = encode_stream(plan, files.enter_context(_temporary_file()), explain, self._work)
            if options.quality_layers > 1:
                plain, made.file = made.file, files.enter_context(_temporary_file())
                _write_layers(plain, made, options, self._work.executor)
                plain.close()
            elif options.index:
                plain, made.file = made.file, files.enter_context(_temporary_file())
                made.header_bytes = write_indexed(plain, made.file)
                plain.close()
            made.notes = [*calibration_notes(survey), *choice_notes(survey, choices, options)]
            self._files.push(files.pop_all())
        return made


def _write_layers(
    plain: BinaryIO, draft: Draft, options: EncodeOptions, executor: Executor | None
) -> None:
    """Write a draft's stream `plain` in quality layers to its file."""
    plain.seek(0)
    layers = split_into_layers(plain.read(), options, executor)
    sizes: Counter[str] = Counter()
    for layer in layers:
        draft.file.write(layer.data)
        for unit in layer.units:
            sizes[unit.name] += len(unit.data)
    draft.header_bytes = sum(layer.head_bytes for layer in layers)
    draft.tensors = [replace(report, bytes=sizes[report.name]) for report in draft.tensors]
    draft.skippable_bytes = 0.0


def _temporary_file() -> Any:
    return tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)

"""Comparison of what decoders make of a stream with the model that was encoded."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import zip_longest
from typing import BinaryIO

import numpy as np

from ..decoding.decoded_model import DecodedModel
from ..decoding.series import Series
from ..decoding.stream_decoder import StreamDecoder
from ..decoding.updates.base_model import BaseModel
from ..errors import BitstreamError, InvalidModel, VerificationMismatch
from ..factorization.forms import FORMS
from ..factorization.metadata import carried_metadata
from ..factorization.words import words_of
from ..model import Array, Model, Parameter
from ..options import DecodeLimits
from ..quantize.distortion import weight_error
from ..report import TensorReport
from ..support.blas_threads import on_one_blas_thread
from ..support.rereadable_file import RereadableFile
from .work import UNWATCHED, Work

_QUANTIZED = ("dq", "uniform")
_ROUNDING = 1e-9
"""Of a squared error, by the order in which it is summed."""

_PRODUCT_ROUNDING, _PRODUCT_NOISE = 1e-6, 1e-12
"""Of the squared error of a product of factors, and of its energy: its last bits may be others."""

NO_LIMITS = DecodeLimits(**{limit.name: sys.maxsize for limit in fields(DecodeLimits)})
"""Users give greater ones for large models; the encoder keeps within those of a tensor."""


@on_one_blas_thread
def verify_stream(
    stream: BinaryIO,
    model: Model,
    reports: Iterable[TensorReport],
    *,
    series: Series | None = None,
    base: BaseModel | None = None,
    work: Work = UNWATCHED,
) -> None:
    """Decode a stream tensor by tensor, and compare it with its model and its report.

    What is coded exactly has to come back bit by bit. All else has to have the squared error of
    the report: within 1e-9 of it, weights in factors within 1e-6 (and 1e-12 of their energy).
    One tensor at a time is in memory, and those that later ones are tied to.

    Args:
        stream: read from where it is.
        model: what was encoded.
        reports: of the model's tensors.
        series: the earlier streams.
        base: what the stream is an update of; None: nothing.
        work: decodes side by side, and is told when tensors are "verified".

    Raises:
        VerificationMismatch: the stream is damaged, or its tensors are others.
        InvalidModel: a tensor of the model cannot be read.
    """
    decoder = StreamDecoder(base=base or (), limits=NO_LIMITS, executor=work.executor)
    decoder.series = series or decoder.series
    source = RereadableFile(stream, None)
    source.name = "the bitstream"
    with _decoding():
        decoded = DecodedModel(decoder, source)
    expected = list(_expected(model))
    for one, other in zip_longest(expected, decoded.parameters):
        if one != other:  # values aside
            raise VerificationMismatch(f"there is {other} in the stream in place of {one}")
    if decoder.metadata != carried_metadata(model.metadata)[0]:
        raise VerificationMismatch("the metadata come back otherwise")
    by_name = {report.name: report for report in reports}
    for parameter, coded in zip(expected, decoded.parameters, strict=True):
        with _decoding():
            values = coded.read()
        if parameter.size:
            _compare(parameter, values, by_name[parameter.tied_to or parameter.name])
        work.tell("verified", parameter.size)
        del values  # so that it is free while the next one is decoded
    with _decoding():
        decoded.finish()


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except (BitstreamError, InvalidModel) as error:
        raise VerificationMismatch(f"cannot be decoded: {error}") from error


def _expected(model: Model) -> Iterator[Parameter]:
    """Yield the parameters as decoders have them: tied to what is not tied itself."""
    roots: dict[str, str] = {}
    for name, parameter in model.items():
        if parameter.tied_to is not None and parameter.size:
            roots[name] = roots.get(parameter.tied_to, parameter.tied_to)
        yield replace(parameter, tied_to=roots.get(name))


def _compare(parameter: Parameter, values: Array, report: TensorReport) -> None:
    """Compare the decoded values of a tensor with those that it had, as its report says."""
    original, name = parameter.read(), parameter.name
    if report.kind not in _QUANTIZED and report.kind not in FORMS:
        if not np.array_equal(words_of(original), words_of(values)):
            raise VerificationMismatch(f"{name!r} does not come back bit by bit")
        return
    found, expected = weight_error(original, values).squared_error, report.squared_error
    tolerance = _ROUNDING * expected
    if report.kind in FORMS:
        tolerance = _PRODUCT_ROUNDING * expected + _PRODUCT_NOISE * report.energy
    if math.isfinite(expected):
        is_same = abs(found - expected) <= tolerance
    else:
        is_same = not math.isfinite(found)
    if not is_same:
        reason = f"comes back with the squared error {found:g}, and not {expected:g} as reported"
        raise VerificationMismatch(f"{name!r} {reason}")

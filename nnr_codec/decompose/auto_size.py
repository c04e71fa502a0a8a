"""The form and ranks with which a weight takes the fewest bytes, at the error that it has without.

Dense weight and factors are quantized, coded and decoded. A weight is decomposed only if the stream
is smaller so, and its error is not larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np

from ..decoding.stream_decoder import StreamDecoder
from ..encoding.grouping import SAVED_BYTES
from ..encoding.model_encoder import encode_model
from ..errors import InvalidModel
from ..factorization.forms import FactoredWeight
from ..model import Array, Float64, Model
from ..options import DecompositionOptions, EncodeOptions
from .algorithms.kernel import squared_error
from .fitting import decompose_within, values_of
from .forms import forms_of_layer
from .layer_kinds import LayerWeight
from .ranks.error_curve import error_curve

LARGER = "would take more bytes"

_SHARES = (0.2, 0.5, 0.8)
"""Parts of the error that the decomposition may make; quantizing the factors makes the rest."""

_WORTH_TRYING = 0.95
"""Of the dense parameters: with more, factors have never been smaller."""

_FINER, _COARSER = 6, 3
"""How many times the step of the factors may be half, or double, the dense weight's."""

_SURELY_SMALLER = 3 * SAVED_BYTES
"""Bytes that factors must save: a dense weight shares its unit with the layer's vectors."""


@dataclass(frozen=True)
class SizeTask:
    """A weight to be decomposed if that takes fewer bytes.

    Attributes:
        weight: which.
        options: of the encoder.
        moment: of the layer's unfolded input; without one the error is the weight's.
    """

    weight: LayerWeight
    options: EncodeOptions
    moment: Float64 | None = None


def smallest(task: SizeTask) -> tuple[FactoredWeight | str, int | None]:
    """Return the factors that take the fewest bytes and their qp; or why there are none."""
    values = values_of(task.weight)
    if not np.isfinite(values).all():
        return "holds NaN or infinities", None
    best: tuple[FactoredWeight | str, int | None] = (LARGER, None)
    try:
        dense_size, allowed = _coded(task, values, _alone(task.options), None)
        least: float = dense_size - _SURELY_SMALLER
        for made in _candidates(task, values, allowed):
            size, qp = _at_equal_error(task, values, made, allowed)
            if size < least:
                least, best = size, (made, qp)
    except InvalidModel as error:
        return error.reason, None
    return best


def _alone(options: EncodeOptions) -> EncodeOptions:
    """Return the options with which a weight is coded in a stream without others."""
    carriage = options.decomposition.carriage
    plain = options.without_target()
    return replace(plain, decomposition=DecompositionOptions(carriage=carriage))


def _candidates(task: SizeTask, values: Array, allowed: float) -> Iterator[FactoredWeight]:
    """Yield decompositions that leave some of the allowed error to quantization."""
    weight, moment = task.weight, task.moment
    energy = squared_error(values, np.zeros_like(values), moment)
    if not 0 < allowed < energy:
        return
    tried: set[tuple[str, tuple[int, ...]]] = set()
    for form in forms_of_layer(weight):
        curve = error_curve(form, values, moment, weight.name)
        for share in _SHARES:
            error = share * allowed / energy
            made = decompose_within(curve, error, values, moment, weight.name)
            if made is None or (made.form, made.ranks) in tried:
                continue
            tried.add((made.form, made.ranks))
            if made.parameter_count <= _WORTH_TRYING * values.size:
                yield made


def _at_equal_error(
    task: SizeTask, values: Array, made: FactoredWeight, allowed: float
) -> tuple[float, int]:
    """Return size and qp of factors quantized as coarsely as the allowed error lets them.

    Where no step is fine enough, the size is infinite.
    """
    options = _alone(task.options)
    qp = options.for_tensor(task.weight.name).qp
    finest, coarsest = options.qp_range
    low = max(qp - (_FINER << options.qp_density), finest)
    high = min(qp + (_COARSER << options.qp_density), coarsest)
    best = math.inf, low
    while low <= high:
        middle = (low + high) // 2
        overrides = (*options.overrides, ("*", {"qp": middle}))
        size, error = _coded(task, values, replace(options, overrides=overrides), made)
        if error <= allowed:
            best, low = (size, middle), middle + 1
        else:
            high = middle - 1
    return best


def _coded(
    task: SizeTask, values: Array, options: EncodeOptions, made: FactoredWeight | None
) -> tuple[int, float]:
    """Return the bytes of a stream of the weight alone, dense or as factors, and its error."""
    name, stream = task.weight.name, BytesIO()
    factorizations = {} if made is None else {name: made}
    report = encode_model(Model.from_arrays({name: values}), factorizations, options, stream)
    decoded = next(t for t in StreamDecoder().tensors(stream.getbuffer()) if t.name == name)
    return report.bytes, squared_error(values, decoded.values, task.moment)

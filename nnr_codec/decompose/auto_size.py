"""The form and ranks with which a weight takes the fewest bytes, at the error that it has without.

Dense weight and factors are quantized, coded and decoded. A weight is decomposed only if the stream
is smaller so, and its error is not larger: that of the network's result, if a calibration knows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np

from ..calibration.moments import Calibration
from ..calibration.spilled_moments import spill_file_for
from ..decoding.stream_decoder import StreamDecoder
from ..encoding.arrangement.grouping import SAVED_BYTES
from ..encoding.known import Known
from ..encoding.model_encoder import encode_model
from ..encoding.step_sizes.by_sensitivity import allocated_qps
from ..encoding.survey import survey_model
from ..encoding.tensor_feedback import chosen_feedback
from ..encoding.work import Work
from ..errors import InvalidModel
from ..factorization.forms import FactoredWeight
from ..model import Array, Float64, Model, Parameter
from ..options import DecompositionOptions, EncodeOptions
from ..quantize.feedback import ErrorFeedback
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

_QP_OPTIONS = ("qp", "nonweight_qp")

_SURELY_SMALLER = 3 * SAVED_BYTES
"""Bytes that factors must save: a dense weight shares its unit with the layer's vectors."""


@dataclass(frozen=True)
class SizeTask:
    """A weight to be decomposed if that takes fewer bytes.

    Attributes:
        weight: which.
        options: of the encoder.
        qp: of the dense weight; None: that of the options.
        moment: of the layer's unfolded input, for which factors are fitted.
        calibration: what is known of the weight; None: nothing. Errors are those of the network's
            result, if it knows them, else of the layer's output by `moment`, else of the weight.
    """

    weight: LayerWeight
    options: EncodeOptions
    qp: int | None = None
    moment: Float64 | None = None
    calibration: Calibration | None = None

    @property
    def dense_options(self) -> EncodeOptions:
        """The options with which the dense weight is coded, in a stream without others."""
        carriage = self.options.decomposition.carriage
        qp = {} if self.qp is None else {self.weight.name: {"qp": self.qp}}
        plain = self.options.without_target().with_own(qp)
        return replace(plain, decomposition=DecompositionOptions(carriage=carriage))

    def factor_options(self, qp: int) -> EncodeOptions:
        """The options with which its factors are coded, in the mean at this qp."""
        plain = self.dense_options
        others = (
            (glob, {name: value for name, value in values.items() if name not in _QP_OPTIONS})
            for glob, values in plain.overrides
        )
        overrides = tuple((glob, values) for glob, values in others if values)
        return replace(plain, qp=qp, max_tensor_error=None, overrides=overrides)


def dense_qps(
    model: Mapping[str, Parameter],
    options: EncodeOptions,
    calibration: Calibration,
    executor: Executor | None = None,
) -> dict[str, int]:
    """Return the qp that tensors get by the calibration if all of them are dense, by name."""
    if not options.allocation:
        return {}
    untied = Model(parameter for parameter in model.values() if parameter.tied_to is None)
    spill = spill_file_for(calibration, low_memory=False)
    survey = survey_model(untied, {}, options, Work(executor), calibration, spill)
    return allocated_qps(survey, options)


def smallest(task: SizeTask) -> tuple[FactoredWeight | str, tuple[int, ...]]:
    """Return the factors that take the fewest bytes and the qp of each; or why there are none."""
    values = values_of(task.weight)
    if not np.isfinite(values).all():
        return "holds NaN or infinities", ()
    best: tuple[FactoredWeight | str, tuple[int, ...]] = (LARGER, ())
    try:
        trials = _Trials(task, values, _result_feedback(task))
        dense = trials.coded(task.dense_options)
        least: float = dense.size - _SURELY_SMALLER
        for made in trials.candidates(dense.output_error):
            coded = trials.coarsest(made, dense.error)
            if coded is not None and coded.size < least:
                least, best = coded.size, (made, coded.qps)
    except InvalidModel as error:
        return error.reason, ()
    return best


def _result_feedback(task: SizeTask) -> ErrorFeedback | None:
    """Return what errors of the network's result a weight's errors make, if that is known."""
    known = task.calibration.tensor(task.weight.name) if task.calibration else None
    return chosen_feedback(known, task.weight.shape).feedback if known and known.result else None


@dataclass(frozen=True)
class _Coded:
    """A weight as a stream has it.

    Attributes:
        size: bytes of the stream.
        error: of the network's result if it is known, else `output_error`.
        output_error: squared, of the layer's output if its moment is known, else of the weight.
        qps: of the factors.
    """

    size: int
    error: float
    output_error: float
    qps: tuple[int, ...]


@dataclass(frozen=True)
class _Trials:
    """Streams of a weight alone, dense and as factors.

    Attributes:
        task: the weight.
        values: of it.
        feedback: what errors of the network's result its errors make; None: not known.
    """

    task: SizeTask
    values: Array
    feedback: ErrorFeedback | None

    def candidates(self, allowed: float) -> Iterator[FactoredWeight]:
        """Yield decompositions that leave some of the allowed error to quantization."""
        weight, moment, values = self.task.weight, self.task.moment, self.values
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

    def coarsest(self, made: FactoredWeight, allowed: float) -> _Coded | None:
        """Return factors quantized as coarsely as the allowed error lets them; None if no step is
        fine enough."""
        options = self.task.dense_options
        qp = options.for_tensor(self.task.weight.name).qp
        finest, coarsest = options.qp_range
        low = max(qp - (_FINER << options.qp_density), finest)
        high = min(qp + (_COARSER << options.qp_density), coarsest)
        best = None
        while low <= high:
            middle = (low + high) // 2
            coded = self.coded(self.task.factor_options(middle), made)
            if coded.error <= allowed:
                best, low = coded, middle + 1
            else:
                high = middle - 1
        return best

    def coded(self, options: EncodeOptions, made: FactoredWeight | None = None) -> _Coded:
        """Return the weight in a stream without others, dense or as factors."""
        name, stream = self.task.weight.name, BytesIO()
        model = Model.from_arrays({name: self.values})
        factorizations = {} if made is None else {name: made}
        calibration = self.task.calibration
        report = encode_model(model, factorizations, options, stream, known=Known(calibration))
        decoded = next(t for t in StreamDecoder().tensors(stream.getbuffer()) if t.name == name)
        output_error = squared_error(self.values, decoded.values, self.task.moment)
        error = output_error
        if self.feedback is not None:
            error = self.feedback.loss(self._difference(decoded.values))
        (tensor,) = report.tensors
        qps = tuple(options.qp if f.qp is None else f.qp for f in tensor.factors)
        return _Coded(report.bytes, error, output_error, qps)

    def _difference(self, decoded: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.subtract(self.values, decoded, dtype=np.float64).reshape(-1)

"""Weights of a stream that make up for what quantization did to the layers before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ...model import Array, Parameter
from ...options import EncodeOptions
from ...support.spilled import SpilledArray, SpillFile
from ..stream_encoder import Draft
from ..survey import ModelSurvey
from ..tensor_quantizer import largest_value, quantize_tensor, with_qp
from ..tensor_survey import TensorSurvey
from ..updates.difference import Difference
from .moved_weight import MovedWeight

_QUANTIZED = ("dq", "uniform")
_FEW = 256
"""Elements, up to which a weight stays as it is: it may be coded exactly in as many bytes."""

_CLUSTERS = 256
_CLUSTERED = 0.5
"""Different values, and their part of the elements, up to which a weight is clustered."""

_HALF_BYTES = 2
"""Of floats that are so few that all of a weight may be multiples of a step."""

_MOST_ZEROS = 0.1
"""Of a weight's elements: one that was pruned is small as it is, and would not stay so."""


@dataclass(frozen=True)
class MovableWeights:
    """The weights of a stream that may be moved, and how they are quantized in it.

    Attributes:
        parameters: by name.
        survey: of the model.
        options: those of each weight, with the qp that it has.
        profile: of the stream.
    """

    parameters: Mapping[str, Parameter]
    survey: ModelSurvey
    options: Mapping[str, EncodeOptions]
    profile: int

    @classmethod
    def of(cls, draft: Draft, survey: ModelSurvey, options: EncodeOptions) -> MovableWeights:
        """Return those that are quantized by themselves, however large their errors become; not
        those that are pruned, clustered, or on a grid other than that of floats of two bytes."""
        factors = {name for weight in survey.factored.values() for name in weight.entry.factors}
        qps = {r.name: r.qp for r in draft.tensors if r.kind in _QUANTIZED and r.qp is not None}
        found: dict[str, Parameter] = {}
        for parameter in survey.coded:
            name = parameter.name
            known = survey.tensors[name]
            is_own = name in qps and name not in factors and not isinstance(parameter, Difference)
            is_free = options.allowed_error(name) is None
            is_weight = parameter.role == "weight" and parameter.size > _FEW
            if is_weight and is_own and is_free and _is_free_to_move(parameter, known):
                found[name] = parameter
        own = {n: with_qp(p, options.for_tensor(n), qps[n]) for n, p in found.items()}
        return cls(found, survey, own, draft.profile)

    def quantized(self, name: str, values: Array) -> Array:
        """Return what decoders have of a weight that has these values.

        Raises what :func:`~..tensor_quantizer.quantize_tensor` raises.
        """
        feedback = self.survey.tensors[name].read_feedback()
        parameter = Parameter.from_array(name, values)
        largest = largest_value(values)
        quantized = quantize_tensor(parameter, self.options[name], largest, self.profile, feedback)
        return quantized.decoded().reshape(values.shape).astype(values.dtype)

    def moved(self, targets: Mapping[str, Array]) -> ModelSurvey:
        """Return the survey of a model whose weights are to have these values before they are
        quantized: they wait in a temporary file, as they may be as large as the model."""
        file = SpillFile()
        changed, tensors = {}, dict(self.survey.tensors)
        for name, values in targets.items():
            original = self.parameters[name]
            changed[name] = MovedWeight(
                name,
                original.shape,
                original.dtype,
                partial(_read, file.put(values), file),
                original=original,
            )
            largest = largest_value(values)
            tensors[name] = replace(tensors[name], largest=largest, exact=None, step_qp=None)
        coded = [changed.get(parameter.name, parameter) for parameter in self.survey.coded]
        return replace(self.survey, coded=coded, tensors=tensors)


def _read(spilled: SpilledArray, file: SpillFile) -> Array:
    """Return an array; the file lasts as long as it may be read."""
    return spilled.read()


def _is_clustered(values: Array) -> bool:
    """Whether there are few different values, of two bytes each, in an array."""
    counts = np.bincount(np.ascontiguousarray(values).view(np.uint16).reshape(-1))
    return int(np.count_nonzero(counts)) <= min(_CLUSTERS, _CLUSTERED * values.size)


def _is_free_to_move(parameter: Parameter, known: TensorSurvey) -> bool:
    """Whether a weight is on no grid that it would leave, but for that of its floats, and neither
    clustered nor pruned."""
    is_on_step = known.exact is not None or known.step_qp is not None
    if is_on_step and parameter.dtype.itemsize != _HALF_BYTES:
        return False
    values = parameter.read()
    if is_on_step and _is_clustered(values):
        return False
    return int(np.count_nonzero(values == 0)) <= _MOST_ZEROS * parameter.size

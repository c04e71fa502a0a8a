"""Steps of tensors by what is known without data: their sizes, and what vectors are for.

A network's layers hurt its result about alike by equal relative errors. Bits are spent best where
the next one gains everywhere as much, so that the errors of a tensor in all, not of an element,
are to be equal: a large layer bears a coarser step than a small one. Measured on single layers of
six networks, the step that costs least grows as the number of elements to the power 0.35 to 0.56,
and does not depend on how large the weights are. Vectors have so few elements that they bear
little; but steps as fine as those of the default are a waste.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...bitstream.qp import qp_of_step, step_size
from ...model import Float64, Parameter
from ...options import EncodeOptions
from ...options.encode_options import DEFAULT_QP
from ..survey import ModelSurvey
from ..tensor_quantizer import LARGEST_ERROR, nominal_qp, nominal_step, with_qp
from ..tensor_survey import TensorSurvey
from .vector_reach import coarsest_qps, vector_reaches

_POWER = 0.45
"""Of the number of elements, to which a step is proportional."""

_MOST_OCTAVES = 2.5
"""By which a weight's step is moved."""

_LEAST_PROMISE = 0.1
"""Bits per element that steps of their own have to promise weights, by the rule that they follow:
about a third of it came true, and of layers alike in size the rule knows nothing."""

_VECTORS_FINER = 0.5
"""Octaves by which vectors' steps are finer than their reach says: it is not known exactly."""

_LEAST_VALUES = 64
"""Other than 0, by which one sees that weights are clustered."""

_MOST_CLUSTERS = 256
"""Values that came from bfloat16 are several times as many."""

_PRUNED = 0.3
"""Of a weight's elements that are zeros, from which on most bits say where the others are."""

_RATE_SCALE_OF_PRUNED = 0.5
"""Weight of the rate in the search of such a weight. Of others it loses more than it saves."""

_COARSEST = (1.0, 0.5)
"""Steps of weights and of vectors, in the tensor's root mean square, beyond which none is made
coarser: rates and errors follow other laws there."""


def allocated_by_size(options: EncodeOptions, survey: ModelSurvey) -> EncodeOptions:
    """Return options by which each tensor has a qp of its own, around that of the options.

    The mean over the weights' elements is that qp; `nonweight_qp`, if it was given, stays that of
    the vectors. What calibration allocated is left as it is, and so is what decoders combine, what
    is on a step, and what would lose more than it may. In weights that were pruned the rate counts
    a little, unless it does already. Overrides win.
    """
    if options.allocation is not True or _is_calibrated(survey):
        return options
    made: dict[str, dict[str, Any]] = {name: {"qp": qp} for name, qp in _qps(options, survey)}
    if not options.lambda_scale:
        for parameter in survey.coded:
            if parameter.role == "weight" and _is_pruned(survey.tensors[parameter.name]):
                made.setdefault(parameter.name, {})["lambda_scale"] = _RATE_SCALE_OF_PRUNED
    return options.with_own(made)


def effective_size(parameter: Parameter, sample: Float64, step: float) -> float:
    """Return how large a tensor counts: between its elements and those that take bits at a step.

    Elements near zero have hardly any errors. But they hardly take bits either, so that a network
    full of zeros tells by neither number alone: it is the geometric mean.

    Args:
        parameter: the tensor.
        sample: some of its values.
        step: the step size.
    """
    with np.errstate(over="ignore"):
        counted = np.minimum((sample / step) ** 2, 1.0)
    return max(math.sqrt(float(counted.mean())) * parameter.size, 1.0)


def is_clustered(sample: Float64) -> bool:
    """Whether values of a sample are few already, most of them there several times.

    The weights of a network that was clustered share what they lost with others. By steps of their
    own it takes more bytes at an equal result.
    """
    values = sample[sample != 0]
    count = len(np.unique(values))
    return len(values) >= _LEAST_VALUES and count <= min(len(values) / 2, _MOST_CLUSTERS)


def _is_pruned(tensor: TensorSurvey) -> bool:
    return tensor.sample is not None and float(np.mean(tensor.sample == 0)) >= _PRUNED


def _is_calibrated(survey: ModelSurvey) -> bool:
    return any(tensor.feedback is not None for tensor in survey.tensors.values())


def _qps(options: EncodeOptions, survey: ModelSurvey) -> Iterator[tuple[str, int]]:
    """Yield the names of tensors that get another qp, and what it is."""
    octaves, reach = _weights_octaves(options, survey)
    if reach is None:
        return
    if options.nonweight_qp == DEFAULT_QP["nonweight_qp"]:
        for name, own in vector_reaches(survey).items():
            octaves[name] = math.log2(own) - reach - _VECTORS_FINER
    coarsest = coarsest_qps(survey, options.qp_density)
    for parameter in survey.coded:
        name = parameter.name
        if name in octaves and survey.tensors[name].step_qp is None:
            own_options = options.for_tensor(name)
            qp = own_options.qp + round(octaves[name] * (1 << options.qp_density))
            qp = min(qp, coarsest.get(name, qp))
            qp = _bounded(qp, parameter, own_options, survey.tensors[name])
            if not _loses_too_much(qp, parameter, options, survey):
                yield name, qp


def _weights_octaves(
    options: EncodeOptions, survey: ModelSurvey
) -> tuple[dict[str, float], float | None]:
    """Return by how many octaves the weights' steps differ from their mean, by name, and the mean
    of the logarithm of their reach, which is their norm; None: there are no weights."""
    factors = {p.name for weight in survey.factored.values() for p in weight.new_factors}
    step = step_size(options.qp, options.qp_density)
    counts: dict[str, float] = {}
    clustered: dict[str, float] = {}
    for parameter in survey.coded:
        known = survey.tensors[parameter.name]
        is_usual = parameter.role == "weight" and parameter.name not in factors
        if not is_usual or known.sample is None or not 0 < known.energy < math.inf:
            continue
        counted = clustered if is_clustered(known.sample) else counts
        counted[parameter.name] = effective_size(parameter, known.sample, step)
    if not counts:
        return {}, _mean_reach(clustered, survey) if clustered else None
    total = sum(counts.values())
    mean = sum(count * math.log2(count) for count in counts.values()) / total
    octaves = {name: _POWER * (math.log2(count) - mean) for name, count in counts.items()}
    octaves = {n: min(max(o, -_MOST_OCTAVES), _MOST_OCTAVES) for n, o in octaves.items()}
    if _promise(octaves, counts) < _LEAST_PROMISE:
        octaves = dict.fromkeys(octaves, 0.0)
    return octaves, _mean_reach(counts, survey)


def _mean_reach(counts: Mapping[str, float], survey: ModelSurvey) -> float:
    """Return the mean logarithm of norms, in which each tensor counts so often."""
    reach = sum(n * math.log2(survey.tensors[name].energy) / 2 for name, n in counts.items())
    return reach / sum(counts.values())


def _promise(octaves: Mapping[str, float], counts: Mapping[str, float]) -> float:
    """Return the bits per element that equal steps lose against these: by as much the arithmetic
    mean of errors exceeds the geometric one."""
    total = sum(counts.values())
    errors = sum(count * 4.0 ** -octaves[name] for name, count in counts.items()) / total
    mean = sum(count * octaves[name] for name, count in counts.items()) / total
    return math.log2(errors) / 2 + mean


def _bounded(qp: int, parameter: Parameter, options: EncodeOptions, known: TensorSurvey) -> int:
    """Return a qp that is in range, and no coarser than is good for a tensor."""
    low, high = options.qp_range
    is_weight = parameter.role == "weight"
    coarsest = _COARSEST[not is_weight] * math.sqrt(known.energy / parameter.size)
    most = qp_of_step(coarsest, options.qp_density) if coarsest > 0 else low
    return min(max(min(qp, max(most, nominal_qp(parameter, options))), low), high)


def _loses_too_much(
    qp: int, parameter: Parameter, options: EncodeOptions, survey: ModelSurvey
) -> bool:
    """Whether a tensor may lose more than it is allowed to: then its options protect it."""
    allowed = options.allowed_error(parameter.name)
    if allowed is None:
        return False
    step: Any = nominal_step(parameter, with_qp(parameter, options, qp))
    lost = LARGEST_ERROR * parameter.size * step**2
    return bool(lost > allowed * survey.tensors[parameter.name].energy)

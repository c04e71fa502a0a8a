"""Steps of tensors by how much the network's result feels their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...bitstream.qp import qp_of_step
from ...model import Parameter
from ...options import EncodeOptions
from ...options.encode_options import DEFAULT_QP
from ..survey import ModelSurvey
from ..tensor_quantizer import nominal_qp
from ..tensor_survey import TensorSurvey
from .vector_reach import coarsest_qps

_POWER = 0.75
"""Of the sensitivity's root, by which a weight's step is finer. It would be 1 if sensitivities were
known exactly and errors small; that is better on some networks, and worse on others."""

_MOST_OCTAVES = 2.5
"""By which a step of weights is moved."""

_COARSEST = 3.0
"""The coarsest step that a weight gets by its sensitivity, unless that of the options is coarser:
in deviations of its elements that hold the energy, of which then hardly any is left."""

_VECTOR_OCTAVES = (-12.0, -2.0)
"""By which a step of vectors is coarser than the centre of the weights' steps. They have few
elements, and their errors are not made up for: those that are felt little are fine as well."""

_UNKNOWN_VECTOR_OCTAVES = -5
"""The same, of vectors of which nothing is known."""

_RATE_SCALE = 0.4
"""Weight of the rate in a search that feeds errors back: more costs more than it saves."""

_PROTECTION = 0.02
"""Of the energy of a tensor of which nothing is known, that it may lose."""


def allocated(options: EncodeOptions, survey: ModelSurvey) -> EncodeOptions:
    """Return options by which the qp of tensors follows their sensitivity, as far as it is known.

    That of vectors takes part, unless it is given, and the rate counts a little where errors are
    fed back, unless it does already. What the calibration does not know is quantized as without
    it, but protected. Overrides win.
    """
    qps = allocated_qps(survey, options)
    if not qps:
        return options
    made: dict[str, dict[str, Any]] = {name: {"qp": qp} for name, qp in qps.items()}
    for name, values in made.items():
        bound = options.for_tensor(name).max_tensor_error
        if isinstance(bound, float) and not options.sets_qp(name):
            values["max_tensor_error"] = bound  # which holds beside a qp if it is given with that
    if not options.lambda_scale:
        for name, tensor in survey.tensors.items():
            if tensor.feedback is not None:
                made.setdefault(name, {})["lambda_scale"] = _RATE_SCALE
    changes: dict[str, Any] = {}
    if _moves_vectors(options):
        coarsest = options.qp + (_UNKNOWN_VECTOR_OCTAVES << options.qp_density)
        changes["nonweight_qp"] = max(coarsest, options.qp_range[0])
    if options.max_tensor_error == "auto":
        changes["max_tensor_error"] = _PROTECTION
    return replace(options.with_own(made), **changes)


def allocated_qps(survey: ModelSurvey, options: EncodeOptions) -> dict[str, int]:
    """Return the qp of tensors whose sensitivity is known, by name.

    The mean over the weights' elements is about that of the options, where elements near zero
    count less; of factors, as far as all of a weight together are finer or coarser. Of weights that
    would get steps larger than their elements, which stay at the qp of the options or below, the
    others do not make up for that.
    """
    levels = {}
    for parameter in survey.coded:
        level = _level(survey.tensors[parameter.name])
        if level is not None:
            levels[parameter.name] = level
    wholes = levels | _levels_of_wholes(survey, levels)
    mean = _mean_level(wholes, survey)
    if mean is None:
        return {}
    coarsest, qps = coarsest_qps(survey, options.qp_density), {}
    low, high = options.qp_range
    for parameter in survey.coded:
        if parameter.name in levels and (parameter.role == "weight" or _moves_vectors(options)):
            level, whole = levels[parameter.name], wholes[parameter.name]
            # The scales of factors are arbitrary: between them, steps follow the root itself.
            octaves = _octaves(parameter, whole - mean) - (level - whole) / 2
            centre = nominal_qp(parameter, options) if parameter.role == "weight" else options.qp
            qp = centre + round(octaves * (1 << options.qp_density))
            qp = min(qp, coarsest.get(parameter.name, qp))
            if parameter.role == "weight":
                qp = min(qp, max(centre, _coarsest(survey.tensors[parameter.name], options)))
            qps[parameter.name] = min(max(qp, low), high)
    return qps


def _mean_level(levels: Mapping[str, float], survey: ModelSurvey) -> float | None:
    """Return the mean of the weights' levels; None: there are none."""
    counts: dict[str, float] = {}
    for parameter in survey.coded:
        if parameter.name in levels and parameter.role == "weight":
            counts[parameter.name] = _count(parameter, survey.tensors[parameter.name])
    if not counts:
        return None
    return sum(n * levels[name] for name, n in counts.items()) / sum(counts.values())


def _count(parameter: Parameter, tensor: TensorSurvey) -> float:
    """Return how much a weight counts in the mean."""
    count = parameter.size if tensor.large is None else tensor.large.count
    return math.sqrt(count * parameter.size)  # as steps by sizes count it


def _coarsest(tensor: TensorSurvey, options: EncodeOptions) -> int:
    """Return the qp beyond which a weight's step is not made coarser."""
    if tensor.large is None:
        return options.qp_range[1]
    return qp_of_step(_COARSEST * tensor.large.deviation, options.qp_density)


def _level(tensor: TensorSurvey) -> float | None:
    """Return the logarithm of what squared errors of a tensor cost, after feedback, where its
    elements are not near zero; None: it is not known."""
    if not tensor.sensitivity:
        return None
    left = tensor.feedback.left if tensor.feedback is not None else 1.0
    felt = tensor.large.felt if tensor.large is not None else 1.0
    return math.log2(tensor.sensitivity * left * felt)


def _levels_of_wholes(survey: ModelSurvey, levels: Mapping[str, float]) -> dict[str, float]:
    """Return, by the name of each factor, the mean level of the factors of its weight, which does
    not change if one of them is scaled up and another one down."""
    wholes: dict[str, float] = {}
    for transport in survey.factored.values():
        known = [levels[name] for name in transport.entry.factors if name in levels]
        for factor in transport.new_factors:
            if factor.name in levels:
                wholes[factor.name] = sum(known) / len(known)
    return wholes


def _octaves(parameter: Parameter, level: float) -> float:
    """Return by how much the step of a tensor is coarser than the centre, of a level above the
    mean."""
    if parameter.role == "weight":
        return min(max(-_POWER / 2 * level, -_MOST_OCTAVES), _MOST_OCTAVES)
    finest, coarsest = _VECTOR_OCTAVES
    return min(max(-level / 2, finest), coarsest)


def _moves_vectors(options: EncodeOptions) -> bool:
    return options.nonweight_qp == DEFAULT_QP["nonweight_qp"]

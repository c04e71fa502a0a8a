"""How far errors of vectors reach: what an error of a bias or of a batch norm does to the outputs.

It is said as a length, the reach: the square root of the number of a tensor's elements over what
the square of an error of 1 in one of them adds to the relative error of the layer's outputs, in the
mean over the channels. A weight's is about its norm, if its inputs have a variance of 1. Tensors of
equal importance lose the fewest bits where their steps are proportional to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ...bitstream.qp import qp_of_step
from ...model import Float64, Parameter
from ..arrangement.grouping import layers_of, norms_of, weights_of_bias
from ..survey import ModelSurvey

_LEAST_VARIANCE = 1e-5
"""What batch norms add to variances, as a rule."""

_QUIET = 0.03
"""Of the mean variance: channels below it hardly matter, as what reads them has small weights."""

_TRIED = 0.5 ** (np.arange(64)[::-1] / 2)
"""Errors of variances, of the largest one: the smallest are far below all that matter."""

_MOST_EXCESS = 2.0
"""Of the change that an error makes, over what its slope says."""


def vector_reaches(survey: ModelSurvey) -> dict[str, float]:
    """Return the reach of each quantized tensor of one dimension or none that has any, by name."""
    known = {p.name: p for p in survey.coded if survey.tensors[p.name].sample is not None}
    reaches = _reaches_in_norms(known, survey)
    for parameter in known.values():
        if parameter.role == "weight" or parameter.name in reaches:
            continue
        reach = _norm(survey, parameter.name)
        for weight in weights_of_bias(parameter.name):
            if weight in known:  # whose norm is that of the outputs
                reach = max(reach, _norm(survey, weight))
        if reach > 0:
            reaches[parameter.name] = reach
    return reaches


def variance_ranges(survey: ModelSurvey) -> dict[str, float]:
    """Return the largest step of each batch norm's variances, by name, where one is known.

    An error may turn a small variance to 0, and then its channel is many times as loud, though by
    the slopes alone it would hardly matter.
    """
    known = {p.name: p for p in survey.coded if survey.tensors[p.name].sample is not None}
    ranges = {}
    for _, norm in norms_of(known):
        gamma, variance = (_sample(survey, norm[role].name) for role in ("gamma", "var"))
        if gamma.shape == variance.shape:
            ranges[norm["var"].name] = _linear_range(gamma**2, np.maximum(variance, 0))
    return {name: step for name, step in ranges.items() if 0 < step < math.inf}


def coarsest_qps(survey: ModelSurvey, density: int) -> dict[str, int]:
    """Return the greatest qp of the tensors of :func:`variance_ranges`, by name."""
    return {name: qp_of_step(step, density) for name, step in variance_ranges(survey).items()}


def _linear_range(energies: Float64, variances: Float64) -> float:
    """Return the largest error of variances up to which what all smaller ones change the outputs by
    is about what its slope says; `energies`: of the channels' outputs."""
    errors = float(variances.max(initial=0)) * _TRIED[:, np.newaxis]
    total = variances + _LEAST_VARIANCE
    with np.errstate(all="ignore"):
        louder = np.sqrt(total / (np.maximum(variances - errors, 0) + _LEAST_VARIANCE)) - 1
        changes = (energies * louder**2).sum(1)
        by_slopes = (energies * (errors / (2 * total)) ** 2).sum(1)
    is_told = changes <= _MOST_EXCESS * by_slopes
    told = len(is_told) if is_told.all() else int(np.argmin(is_told))
    return float(errors[told - 1, 0]) if told else 0.0


def _norm(survey: ModelSurvey, name: str) -> float:
    return math.sqrt(survey.tensors[name].energy)


def _reaches_in_norms(known: Mapping[str, Parameter], survey: ModelSurvey) -> dict[str, float]:
    """Return the reaches of the vectors of batch norms, and of biases in front of them."""
    biases = {
        layer["mean"].name: layer["bias"].name
        for layer in layers_of(list(known.values()), lambda weight, vector: True)
        if "mean" in layer and "bias" in layer
    }
    reaches: dict[str, float] = {}
    for _, norm in norms_of(known):
        names = {role: vector.name for role, vector in norm.items()}
        gamma, variance = (_sample(survey, names[role]) for role in ("gamma", "var"))
        size = norm["gamma"].size
        for role, reach in _channel_reaches(gamma, variance, size).items():
            reaches[names[role]] = reach
        if names["mean"] in biases and names["mean"] in reaches:
            reaches[biases[names["mean"]]] = reaches[names["mean"]]
    return {name: reach for name, reach in reaches.items() if 0 < reach < math.inf}


def _sample(survey: ModelSurvey, name: str) -> Float64:
    sample = survey.tensors[name].sample
    return np.zeros(1) if sample is None else sample


def _channel_reaches(gamma: Float64, variance: Float64, size: int) -> dict[str, float]:
    """Return the reaches of a batch norm's vectors: y = gamma (x - mean) / sqrt(var) + beta.

    Args:
        gamma, variance: of some channels, or of all.
        size: the number of all channels.
    """
    scales = gamma**2
    energy = float(scales.mean())
    variance = np.maximum(variance, 0)
    variance = variance + max(_LEAST_VARIANCE, _QUIET * float(variance.mean()))
    of_mean = float((scales / variance).mean())
    of_variance = float((scales / (4 * variance**2)).mean())
    if not energy or not of_mean or not of_variance:
        return {}
    return {
        "gamma": math.sqrt(size * energy),
        "beta": math.sqrt(size * energy),
        "mean": math.sqrt(size * energy / of_mean),
        "var": math.sqrt(size * energy / of_variance),
    }

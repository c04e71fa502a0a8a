"""Steps of tensors by how much the network's result feels their errors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..options import EncodeOptions
from ..options.encode_options import DEFAULT_QP
from ..options.globs import escaped
from .survey import ModelSurvey
from .tensor_quantizer import nominal_qp

_POWER = 0.5
"""Of the sensitivity's root, by which a tensor's step is finer. At high rates it would be 1; what a
step costs in bits, and errors that are not small, speak for less."""

_MOST_OCTAVES = 2.5
"""By which a step is moved."""

_VECTORS_FINER = 5
"""Octaves by which the step of vectors is finer than the centre of the weights' steps."""

_RATE_SCALE = 0.3
"""Weight of the rate in a search that feeds errors back: more costs more than it saves."""

_PROTECTION = 0.02
"""Of the energy of a tensor of which nothing is known, that it may lose."""


def allocated(options: EncodeOptions, survey: ModelSurvey) -> EncodeOptions:
    """Return options by which the qp of weights follows their sensitivity, as far as it is known.

    That of vectors follows the weights', unless it is given, and the rate counts a little, unless
    it does already. What the calibration does not know is protected. Overrides win.
    """
    offsets = qp_offsets(survey, options)
    if not offsets:
        return options
    low, high = options.qp_range
    overrides = []
    for parameter in survey.coded:
        if parameter.name in offsets:
            qp = nominal_qp(parameter, options) + offsets[parameter.name]
            overrides.append((escaped(parameter.name), {"qp": min(max(qp, low), high)}))
    changes: dict[str, Any] = {"overrides": (*overrides, *options.overrides)}
    if options.nonweight_qp == DEFAULT_QP["nonweight_qp"]:
        changes["nonweight_qp"] = max(options.qp - (_VECTORS_FINER << options.qp_density), low)
    if not options.lambda_scale:
        changes["lambda_scale"] = _RATE_SCALE
    if options.max_tensor_error == "auto":
        changes["max_tensor_error"] = _PROTECTION
    return replace(options, **changes)


def qp_offsets(survey: ModelSurvey, options: EncodeOptions) -> dict[str, int]:
    """Return what is added to the qp of tensors whose sensitivity is known, by name.

    The mean over their elements is about 0: the qp of the options is the centre.
    """
    known = {}
    for parameter in survey.coded:
        feedback = survey.tensors[parameter.name].feedback
        if feedback is not None and feedback.rows is not None and feedback.sensitivity > 0:
            known[parameter.name] = (math.log2(feedback.sensitivity), parameter.size)
    if not known:
        return {}
    total = sum(size for _, size in known.values())
    mean = sum(size * level for level, size in known.values()) / total
    offsets = {}
    for name, (level, _) in known.items():
        octaves = -_POWER / 2 * (level - mean)
        octaves = min(max(octaves, -_MOST_OCTAVES), _MOST_OCTAVES)
        offsets[name] = round(octaves * (1 << options.qp_density))
    return offsets

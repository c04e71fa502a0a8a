"""Steps of tensors by how much the network's result feels their errors."""

from __future__ import annotations

import math
from dataclasses import replace

from ..options import EncodeOptions
from ..options.globs import escaped
from .survey import ModelSurvey
from .tensor_quantizer import nominal_qp

_POWER = 0.5
"""Of the sensitivity's root, by which a tensor's step is finer. At high rates it would be 1; what a
step costs in bits, and errors that are not small, speak for less."""

_MOST_OCTAVES = 2.5
"""By which a step is moved."""


def allocated(options: EncodeOptions, survey: ModelSurvey) -> EncodeOptions:
    """Return options in which tensors have the qp that suit their sensitivity; overrides win."""
    overrides = []
    parameters = {parameter.name: parameter for parameter in survey.coded}
    for name, offset in qp_offsets(survey, options).items():
        low, high = options.qp_range
        qp = min(max(nominal_qp(parameters[name], options) + offset, low), high)
        overrides.append((escaped(name), {"qp": qp}))
    return replace(options, overrides=(*overrides, *options.overrides))


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

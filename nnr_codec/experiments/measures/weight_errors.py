"""Relative squared errors of a network's decoded weights, dense: what any method did to them.

Weights are the floating-point tensors of two or more dimensions. Errors and energies are sums over
elements, so that layers count by their energy, and so that methods which leave different layers
alone can be compared:

* ``weight_error``: Σ (ŵ - w)² / Σ w² over all weights, whatever became of them.
* ``kernel_error``: the same over those of three or more dimensions, the kernels of convolutions.
* ``decomposed_error``: of the weights that came as factors, the mean of each one's own relative
  error; each counts alike, since the norm behind a layer takes its scale away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ...model import is_float
from ...quantize.distortion import Distortion, weight_error
from ...stream import NnrStream
from ..methods.base import Arrays, Decoded

ERRORS = ("weight_error", "kernel_error", "decomposed_error")
"""Columns of the results."""


def weight_errors(before: Arrays, decoded: Decoded) -> dict[str, float | None]:
    """Return the relative errors of a decoded network that apply, by name.

    None stands where an error is not finite, which JSON cannot say. Weights are of the same shapes.
    """
    weights = [name for name, v in before.items() if v.ndim > 1 and is_float(v.dtype)]
    distortions = {name: weight_error(before[name], decoded.tensors[name]) for name in weights}
    kernels = [distortions[name] for name in weights if before[name].ndim > 2]
    errors = {}
    if weights:
        errors["weight_error"] = _relative(distortions.values())
    if kernels:
        errors["kernel_error"] = _relative(kernels)
    if decoded.factored_stream is not None:
        with NnrStream(decoded.factored_stream) as stream:
            each = [_relative([distortions[name]]) for name in stream.factorizations]
        known = [error for error in each if error is not None]
        errors["decomposed_error"] = float(np.mean(known)) if len(known) == len(each) else None
    return errors


def _relative(distortions: Iterable[Distortion]) -> float | None:
    errors = list(distortions)
    squared_error = math.fsum(error.squared_error for error in errors)
    energy = math.fsum(error.energy for error in errors)
    if not squared_error:
        return 0.0
    return squared_error / energy if energy and math.isfinite(squared_error) else None

"""The weight of the rate in the quantizers' searches."""

from __future__ import annotations

import math

_UNIFORM_SLOPE = math.log(2) / 6
"""-dD/dR at high rate of a uniform quantizer of step 1: D = 1/12, and 6 dB per bit."""

_DEPENDENT_SLOPE = 4 * 0.7 * _UNIFORM_SLOPE
"""The quantizers of the trellis have steps of 2, and together lose less than either would."""


def lambda_of(scale: float, dq: bool) -> float:
    """Return the cost of a bit against squared errors in steps, for a scale of 1 the slope of
    the distortion at high rate (spec/bitstream.md, "Encoder notes")."""
    return scale * (_DEPENDENT_SLOPE if dq else _UNIFORM_SLOPE)

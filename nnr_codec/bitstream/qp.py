"""Quantization parameters and step sizes (spec/bitstream.md, "Reconstruction")."""

from __future__ import annotations

import math

_LEAST_EXPONENT, _GREATEST_EXPONENT = -126, 127  # of normal binary32 numbers


def step_size(qp: int, density: int) -> float:
    """Return the quantization step of `qp`, a binary32 number; it doubles every 2**density.

    Raises:
        ValueError: the step is not a normal binary32 number.
    """
    fraction = (1 << density) + (qp % (1 << density))  # in units of 2**-density
    exponent = (qp >> density) - density
    if not _LEAST_EXPONENT <= exponent + density <= _GREATEST_EXPONENT:
        raise ValueError(f"qp {qp} at density {density} gives no binary32 step size")
    return math.ldexp(fraction, exponent)


def qp_of_step(step: float, density: int) -> int:
    """Return the greatest qp whose step is no greater than `step`, a number above 0."""
    mantissa, exponent = math.frexp(step)
    return ((exponent - 1) << density) + int((2 * mantissa - 1) * (1 << density))


def qp_delta_bits(density: int) -> int:
    """Return the bits of a coded qp_delta, a two's complement number."""
    return 6 + density

"""Conjugate gradients for equations that are too large to be written down."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...model import Float64

Operator = Callable[[Float64], Float64]


def conjugate_gradients(
    applied: Operator, target: Float64, start: Float64, precondition: Operator, steps: int
) -> Float64:
    """Return an x nearer to applied(x) = target than `start`; each step lowers the quadratic form.

    Args:
        applied: linear, symmetric, positive semidefinite; of arrays of any one shape.
        target: of that shape.
        start: likewise.
        precondition: roughly the inverse of `applied`, symmetric, positive definite.
        steps: at most; it ends early where the equations hold to float64's precision.
    """
    x = start.copy()
    residual = target - applied(x)
    direction = preconditioned = precondition(residual)
    energy = first = float(np.vdot(residual, preconditioned))
    for _ in range(steps):
        image = applied(direction)
        curvature = float(np.vdot(direction, image))
        if curvature <= 0 or energy <= np.finfo(float).eps ** 2 * first:
            break
        x += energy / curvature * direction
        residual -= energy / curvature * image
        preconditioned = precondition(residual)
        before, energy = energy, float(np.vdot(residual, preconditioned))
        direction = preconditioned + energy / before * direction
    return x

"""Conjugate gradients, by scipy, for equations that are too large to be written down."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

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

    def flat(operator: Operator) -> LinearOperator:
        return LinearOperator(
            (target.size, target.size),
            matvec=lambda x: operator(x.reshape(target.shape)).ravel(),
            dtype=np.float64,
        )

    x, _ = cg(
        flat(applied),
        target.ravel(),
        start.ravel(),
        rtol=np.finfo(float).eps,
        maxiter=steps,
        M=flat(precondition),
    )
    return np.asarray(x, np.float64).reshape(target.shape)

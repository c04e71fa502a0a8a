"""A kernel in the norm of its layer's output, the moment of its inputs factored by modes.

With Σ = E[x xᵀ] of the unfolded input, the squared error of the output is ‖(W - Ŵ)·Σ^½‖². If Σ is
a Kronecker product of one matrix for the channels and one for each direction of taps, W·Σ^½ is W
with each mode transformed by itself, and forms whose factors belong to modes (CP, Tucker-2, HT-2)
keep their ranks. Σ is none, but near enough to tell ranks by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...model import Float64
from .kernel import damped, triangular_root
from .tensors import projected


@dataclass(frozen=True)
class SeparableNorm:
    """The transformation of a kernel's input modes into the norm of the output.

    Attributes:
        roots: of channels, and of each direction of taps: n_k x n_k, lower triangular; the moment
            is about the Kronecker product of all root·rootᵀ.
    """

    roots: tuple[Float64, ...]

    @classmethod
    def of(cls, moment: Float64, shape: tuple[int, ...]) -> SeparableNorm:
        """Return the norm of a second moment, damped.

        Each mode's matrix is the moment's partial trace over all other modes.

        Args:
            moment: n x n, n the product of shape[1:].
            shape: of the kernel: (T, S), (T, S, d) or (T, S, d1, d2).

        Raises:
            InvalidOptions: the moment is not positive definite.
        """
        folded = damped(moment).reshape(*shape[1:], *shape[1:])
        traces = [_partial_trace(folded, mode) for mode in range(len(shape) - 1)]
        # The trace of a Kronecker product is that of all its factors: all but one have trace 1.
        scales = [1.0] + [1 / float(np.trace(trace)) for trace in traces[1:]]
        scaled = (trace * scale for trace, scale in zip(traces, scales, strict=True))
        return cls(tuple(map(triangular_root, scaled)))

    def applied(self, kernel: Float64) -> Float64:
        """Return the kernel (T, S, …), its squared norm being about that of the layer's output."""
        return projected(kernel, self.roots, range(1, len(self.roots) + 1))

    def undone(self, factor: Float64, mode: int) -> Float64:
        """Return a factor of the transformed kernel (n_k x …) as one of the kernel itself.

        Args:
            factor: its first dimension is that of the mode.
            mode: 1 for channels, 2 and 3 for taps.
        """
        flat = factor.reshape(len(factor), -1)
        return np.asarray(np.linalg.solve(self.roots[mode - 1].T, flat)).reshape(factor.shape)


def in_separable_norm(kernel: Float64, moment: Float64) -> Float64:
    """Return a kernel whose squared norm is about the output's, each mode transformed by itself."""
    return SeparableNorm.of(moment, kernel.shape).applied(kernel)


def _partial_trace(folded: Float64, kept: int) -> Float64:
    """Return the trace over all modes but one of a matrix folded to (n_1, …, n_1, …)."""
    for mode in reversed(range(folded.ndim // 2)):
        if mode != kept:
            folded = np.asarray(np.trace(folded, axis1=mode, axis2=mode + folded.ndim // 2))
    return folded

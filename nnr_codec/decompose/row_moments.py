"""The moment of a weight's unfolded input, as the algorithms take it."""

from __future__ import annotations

from ..calibration.moments import Calibration
from ..model import Float64
from .layer_kinds import LayerWeight


def moment_of(weight: LayerWeight, calibration: Calibration | None) -> Float64 | None:
    """Return E[x xᵀ] for x in the order of `weight`'s unfolding, or None if it is not known.

    Of groups it is the mean: they share the first factor. A transposed convolution's weight is
    unfolded otherwise than its inputs are met, so there is none.
    """
    layer_moment = calibration.moments.get(weight.name) if calibration else None
    if layer_moment is None or layer_moment.layout.transposed:
        return None
    matrices = layer_moment.matrices()
    moment: Float64 = matrices[0] if len(matrices) == 1 else matrices.mean(axis=0)
    return moment

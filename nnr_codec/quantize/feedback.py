"""Error feedback: how the error of a quantized weight is made up for by later ones.

For a layer's weight W of the shape outputs x inputs and the moments H = E[x xᵀ] of its inputs, the
error of the outputs is tr(D H Dᵀ) of the weight's error D. With the metric G = E[g gᵀ] of the
gradients g at its outputs, the error of the network's result is about tr(G D H Dᵀ). Weights are
quantized column after column: with C, the upper Cholesky factor of H⁻¹, an error e of column j is
best made up for by -e C_ji / C_jj at the columns i behind it, and what then is left of it counts
e² / C_jj² (OPTQ, arXiv 2210.17323). Rows likewise with G (YAQA, arXiv 2505.22988).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import Float64
from ..support.blas_threads import on_one_blas_thread

_DAMPING = 0.01
"""Of the mean diagonal, added to the diagonal: errors elsewhere than on the samples count, too."""

_DAMPING_OF_FEW = 0.1
"""The same, more, where there are as many samples as inputs: their moments are uncertain."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ErrorFeedback:
    """Where errors go, and how they count.

    Attributes:
        columns: (groups, inputs, inputs), above the diagonals: by how much of an error of a column
            each later one is lowered.
        column_weights: (groups, inputs), of squared errors; about 1 in the mean.
        rows: (outputs, outputs), the same of rows; None: rows know nothing of each other.
        row_weights: (outputs,); None: all 1.
        sensitivity: the squared error of the result that a unit of squared error of all weights
            causes, in the mean: in units that the layers of a network share.
    """

    columns: Float32
    column_weights: Float32
    rows: Float32 | None = None
    row_weights: Float32 | None = None
    sensitivity: float = 1.0


@on_one_blas_thread
def error_feedback(
    moments: Float64,
    gradients: Float64 | None = None,
    positions: float = 1.0,
    samples: int = 1 << 40,
) -> ErrorFeedback | None:
    """Return the feedback for moments of inputs, and of gradients if they are known.

    Args:
        moments: (groups, inputs, inputs), symmetric, positive semidefinite.
        gradients: (outputs, outputs) likewise, or None.
        positions: of the output, for each sample.
        samples: positions that moments are the mean of.

    Returns:
        None if moments are all 0, or not finite: then nothing is known.
    """
    parts = [_factors(moment, samples) for moment in moments]
    rows = None if gradients is None else _factors(gradients, samples)
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    columns, weights = (np.stack(several) for several in zip(*found, strict=True))
    scale = float(
        np.mean([np.trace(m) / len(m) * w.mean() for m, w in zip(moments, weights, strict=True)])
    )
    if rows is None or gradients is None:
        return ErrorFeedback(columns, weights, sensitivity=positions * scale)
    scale *= float(np.trace(gradients) / len(gradients) * rows[1].mean())
    row_weights = rows[1] / rows[1].mean()
    return ErrorFeedback(columns, weights, rows[0], row_weights, positions * scale)


def _factors(moment: Float64, samples: int) -> tuple[Float32, Float32] | None:
    """Return the feedback between the indices of a moment, and the weights of what is left."""
    scale = np.trace(moment) / len(moment)
    if not np.isfinite(scale) or scale <= 0:
        return None
    damped = moment / scale
    damped[np.diag_indices_from(damped)] += _DAMPING + _DAMPING_OF_FEW * len(moment) / samples
    try:
        # The upper factor of the inverse, by the lower one of the moment in reversed order.
        lower = np.linalg.cholesky(damped[::-1, ::-1])
    except np.linalg.LinAlgError:
        return None
    upper = np.linalg.inv(lower[::-1, ::-1])
    diagonal = np.diag(upper)
    feedback = np.triu(upper / diagonal[:, None], 1)
    return feedback.astype(np.float32), (1 / diagonal**2).astype(np.float32)

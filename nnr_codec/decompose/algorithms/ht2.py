"""Hierarchical Tucker-2 (Gabor and Zdunek, Applied Soft Computing 132, 109856, 2023).

Plain, and data-aware by the norm of the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...factorization.forms import HT2
from ...model import Array, Float64
from .kernel import checked_ranks, checked_weight, closest, evenly_scaled
from .separable import SeparableNorm
from .svd import mostly_negative, truncated_svd
from .tensors import leading_vectors, projected, unfolded


def ht2(
    weight: Array,
    ranks: Sequence[int],
    *,
    moment: Float64 | None = None,
    name: str = "weight",
) -> HT2:
    """Approximate a kernel by bases of inputs and outputs and two cores, one for each tap mode.

    With the kernel as X (S x d1 x T x d2), the bases are the leading singular vectors of its modes
    S and T. X projected on both, reshaped to (R1·d1) x (R3·d2), is split by a truncated SVD.

    Args:
        weight: (T, S, d1, d2), any float type.
        ranks: R1, R13, R3. R13 is cut to what the two others and the taps can fill.
        moment: second moment of the unfolded input, n x n, n = S·d1·d2: then X is taken in the
            norm of the output (see `SeparableNorm`), if its error is smaller so.

    Returns:
        Factors in float32, scaled evenly.

    Raises:
        InvalidModel, InvalidOptions: as `checked_weight` and `checked_ranks` say.
    """
    values = checked_weight(weight, HT2, name, moment)
    checked = checked_ranks(HT2, weight.shape, ranks, name)
    plain = _split(values, checked, None)
    if moment is None:
        return plain
    aware = _split(values, checked, SeparableNorm.of(moment, weight.shape))
    return closest(values, [plain, aware], moment)


def _split(kernel: Float64, ranks: Sequence[int], norm: SeparableNorm | None) -> HT2:
    rank_in, middle, rank_out = ranks
    ordered = in_order(kernel if norm is None else norm.applied(kernel))
    rows, columns = ordered.shape[1], ordered.shape[3]
    inputs, outputs = leading_vectors(ordered, 0, rank_in), leading_vectors(ordered, 2, rank_out)
    core = projected(ordered, [inputs, outputs], [0, 2])
    matrix = core.reshape(rank_in * rows, rank_out * columns)
    left, singular, right = truncated_svd(matrix, min(middle, *matrix.shape))
    left, right = mostly_negative(left, right)
    root = np.sqrt(singular)
    cores = (left * root).reshape(rank_in, rows, -1), right * root[:, None]
    factors = [inputs, cores[0], cores[1].reshape(-1, rank_out, columns), outputs]
    effects = _effects(singular, rank_in, rank_out)
    if norm is not None:
        factors[0] = norm.undone(inputs, 1)
        factors[1] = np.swapaxes(norm.undone(np.swapaxes(factors[1], 0, 1), 2), 0, 1)
        factors[2] = np.moveaxis(norm.undone(np.moveaxis(factors[2], 2, 0), 3), 0, 2)
        # An error of an element is transformed as the mode is, by its root.
        means = [float(np.sum(root**2)) / len(root) for root in norm.roots]
        effects = [e * mean for e, mean in zip(effects, [*means, 1.0], strict=True)]
    return HT2(tuple(kernel.shape), evenly_scaled(factors, effects))


def in_order(kernel: Float64) -> Float64:
    """Return X of the method, (S, d1, T, d2), of a kernel (T, S, d1, d2)."""
    return kernel.transpose(1, 2, 0, 3)


def mode_matrices(kernel: Float64) -> tuple[Float64, Float64, Float64]:
    """Return the matrices whose ranks are R1, R13, R3: mode S, (S·d1) x (T·d2), and mode T."""
    ordered = in_order(kernel)
    channels, rows, total, columns = ordered.shape
    return (
        unfolded(ordered),
        ordered.reshape(channels * rows, total * columns),
        unfolded(kernel),
    )


def _effects(singular: Float64, rank_in: int, rank_out: int) -> list[float]:
    """Return what an error of an element of each factor does to the product, on average.

    The rows of one core have the squared norms `singular`, which an element of the other meets.
    """
    tiny = np.finfo(float).tiny
    energy, mean = max(float(np.sum(singular**2)), tiny), max(float(np.mean(singular)), tiny)
    return [energy / rank_in, mean, mean, energy / rank_out]

"""The fitting of hierarchical Tucker-2, and the layers that its published scheme gives it to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...model import Float64
from ..algorithms.ht2 import ht2, in_order, mode_matrices
from ..algorithms.separable import in_separable_norm
from ..algorithms.svd import squared_singular_values
from ..algorithms.tensors import leading_vectors, projected
from ..layer_kinds import LayerWeight
from .fitting import OPERATIONS, Fitting, RankErrors, errors_of_energies, spread_sizes

_MOST_SIZES, _FEWEST_SIZES = 12, 4
"""Of each basis for which the third rank's errors are told, about."""


def form_of_layer(
    shape: Sequence[int], *, first: bool = False, downsampling: bool = False
) -> str | None:
    """Return the word of the form that the published scheme gives a layer; None leaves it dense.

    HT-2 is for kernels that have taps in two dimensions. The first convolution, 1x1 and
    downsampling convolutions get the SVD of the output mode, and fully connected layers a truncated
    SVD: both are our low-rank form. Depthwise convolutions, of one input channel, stay dense.

    Args:
        shape: (T, S), (T, S, d) or (T, S, d1, d2); all others stay dense.
        first: whether it is the model's first convolution.
        downsampling: whether it reduces the resolution beside a block (a projection shortcut); a
            shape does not tell.
    """
    if not 2 <= len(shape) <= 4:
        return None
    _, channels, *taps = shape
    if channels == 1 and taps and not first:
        return None
    separable = len(taps) == 2 and max(taps) > 1
    return "ht2" if separable and not first and not downsampling else "lr"


def _suits(weight: LayerWeight) -> bool:
    return weight.kind == "convolution" and len(weight.shape) == 4


def _is_assigned(weight: LayerWeight) -> bool:
    return _suits(weight) and form_of_layer(weight.shape, first=weight.is_first) == "ht2"


def _errors(kernel: Float64) -> RankErrors:
    """Return the errors of all R13, for some pairs of R1 and R3, at leading singular vectors."""
    ordered = in_order(kernel)  # S x d1 x T x d2
    rows, columns = kernel.shape[2:]
    inputs, outputs = leading_vectors(ordered, 0), leading_vectors(ordered, 2)
    core = projected(ordered, [inputs, outputs], [0, 2])
    cost = 100 * min(core.shape[0] * rows, core.shape[2] * columns) ** 3
    count = min(max(int((OPERATIONS / cost) ** 0.5), _FEWEST_SIZES), _MOST_SIZES)
    ranks, kept = [], []
    for rank_in in spread_sizes(core.shape[0], count):
        for rank_out in spread_sizes(core.shape[2], count):
            corner = core[:rank_in, :, :rank_out].reshape(rank_in * rows, rank_out * columns)
            energies = np.cumsum(squared_singular_values(corner))
            middles = np.arange(1, len(energies) + 1)
            ranks.append(np.stack(np.broadcast_arrays(rank_in, middles, rank_out), axis=1))
            kept.append(energies)
    energy = float(np.vdot(kernel, kernel))
    return np.concatenate(ranks), errors_of_energies(np.concatenate(kept), energy)


FITTING = Fitting(
    fit=lambda weight, ranks, moment, name: ht2(weight, ranks, moment=moment, name=name),
    errors=_errors,
    spectra=lambda kernel: tuple(map(squared_singular_values, mode_matrices(kernel))),
    suits=_suits,
    assigned=_is_assigned,
    has_first_layer=True,
    in_norm=in_separable_norm,
)

"""The fitting of hierarchical Tucker-2, and the layers that its published scheme gives it to."""

from __future__ import annotations

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


def _suits(weight: LayerWeight) -> bool:
    return weight.kind == "convolution" and len(weight.shape) == 4


def _is_assigned(weight: LayerWeight) -> bool:
    """Whether the published scheme gives a layer HT-2: a kernel with taps and several inputs.

    The first convolution, and 1x1 ones, get the SVD of the output mode, and fully connected layers
    a truncated SVD: both are our low-rank form.
    """
    return _suits(weight) and weight.shape[1] > 1 and not weight.is_first


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

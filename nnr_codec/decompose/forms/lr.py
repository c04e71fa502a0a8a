"""The fitting of low rank: truncated SVDs, in the exact norm of the output."""

from __future__ import annotations

import numpy as np

from ...model import Float64
from ..algorithms.kernel import damped, triangular_root
from ..algorithms.svd import low_rank, squared_singular_values
from ..algorithms.tensors import unfolded
from .fitting import Fitting, RankErrors, errors_of_energies


def _errors(kernel: Float64) -> RankErrors:
    """Return the errors of all ranks, from the singular values."""
    kept = np.cumsum(squared_singular_values(unfolded(kernel)))
    return np.arange(1, len(kept) + 1)[:, None], errors_of_energies(kept, kept[-1])


def _in_norm(kernel: Float64, moment: Float64) -> Float64:
    return (unfolded(kernel) @ triangular_root(damped(moment))).reshape(kernel.shape)


FITTING = Fitting(
    fit=lambda weight, ranks, moment, name: low_rank(weight, *ranks, moment=moment, name=name),
    errors=_errors,
    spectra=lambda kernel: (squared_singular_values(unfolded(kernel)),),
    suits=lambda weight: True,
    in_norm=_in_norm,
    vbmf_matrices=lambda kernel: (unfolded(kernel),),
)

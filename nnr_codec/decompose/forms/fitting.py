"""The record of what decomposition knows of a form, and what the records share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...factorization.factored_weight import FactoredWeight
from ...model import Array, Float64
from ..layer_kinds import LayerWeight

RankErrors = tuple[npt.NDArray[np.int64], Float64]
"""Ranks, (count, ranks of the form), and the relative squared error at each, (count,), 0 to 1."""

OPERATIONS = 1e11
"""About what a kernel's errors by ranks may cost, some seconds: of large ones, less is tried."""

Fit = Callable[[Array, Sequence[int], Float64 | None, str], FactoredWeight]


def errors_of_energies(kept: Float64, energy: float) -> Float64:
    """Return the relative squared errors at which these squared norms are kept of `energy`."""
    return np.clip(1 - kept / energy, 0.0, 1.0)


def spread_sizes(most: int, count: int) -> list[int]:
    """Return `count` numbers up to `most`, evenly spaced, and the halves of the least down to 1.

    Or all numbers, if there are no more. The halves hardly count where large sizes cost the most.
    """
    count = min(count, most)
    sizes = {max(round(most * step / count), 1) for step in range(1, count + 1)}
    least = min(sizes)
    sizes |= {least >> half for half in range(1, least.bit_length())}
    return sorted(sizes)


def suits_kernels(weight: LayerWeight) -> bool:
    """Whether a layer is a convolution of several taps, without groups and not transposed."""
    return weight.kind == "convolution"


@dataclass(frozen=True)
class Fitting:
    """How weights get a form, and what error to expect of it.

    Kernels are weights in float64, of a shape that the form has, and not all zeros.

    Attributes:
        fit: returns the factors of a weight (any float type) at ranks; with the second moment of
            the layer's unfolded input, n x n, those of the least error of its output; the name is
            for errors. Raises InvalidModel and InvalidOptions, as `checked_weight` and
            `checked_ranks` say.
        errors: returns ranks of a kernel, all or many, and the error to expect at each.
        spectra: returns for each rank the squared singular values, falling, that it cuts off.
        in_norm: returns a kernel whose squared norm is that of the output, or about, in its shape,
            from the kernel and the moment.
        suits: whether a layer can run on the form.
        assigned: whether the method of the form's word gives a layer this form, and not low rank;
            None: what `suits` says.
        has_first_layer: whether the published scheme, by one energy, has a rule for first layers.
        vbmf_matrices: returns the matrix whose rank by VBMF is each rank; None: the form has none.
    """

    fit: Fit
    errors: Callable[[Float64], RankErrors]
    spectra: Callable[[Float64], tuple[Float64, ...]]
    in_norm: Callable[[Float64, Float64], Float64]
    suits: Callable[[LayerWeight], bool] = suits_kernels
    assigned: Callable[[LayerWeight], bool] | None = None
    has_first_layer: bool = False
    vbmf_matrices: Callable[[Float64], tuple[Float64, ...]] | None = None

"""Ranks from what users ask for: a number, a fraction of parameters, an energy, or VBMF."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...errors import InvalidOptions
from ...factorization.factored_weight import FactoredWeight, Ranks
from ...model import Array, Float64
from ..algorithms.kernel import checked_ranks, checked_weight
from ..algorithms.vbmf import vbmf_rank
from ..forms import fitting_of
from .error_curve import ErrorCurve, error_curve

_ROUNDING = 1e-12  # what shares of energy and of parameters may miss


def resolved_ranks(
    form: type[FactoredWeight],
    weight: Array,
    rank: int | float,
    moment: Float64 | None = None,
    name: str = "weight",
) -> Ranks:
    """Return the ranks that a `rank` option means for a weight.

    Args:
        form: of one layer; groups of layers have `joint_rank`.
        weight: dense, any float type, of a shape that the form has.
        rank: an int, every rank of the form; or a float above 0 and up to 1, the fraction of the
            dense parameters that is kept, or less. One rank is then that of `rank_of_fraction`;
            several are those of the least error to expect (`error_curve`), each at least 1, even
            if that keeps more parameters.
        moment: of the layer's unfolded input, n x n: then it is the output's error.

    Raises:
        InvalidModel: the weight cannot be decomposed.
        InvalidOptions: no such ranks are possible, or the moment does not fit.
    """
    checked_weight(weight, form, name)
    count = len(form.max_ranks(weight.shape))
    if isinstance(rank, int):
        return checked_ranks(form, weight.shape, (rank,) * count, name)
    if count == 1:
        return (rank_of_fraction(form, weight.shape, rank, name),)
    curve = error_curve(form, weight, moment, name)
    return ranks_of_fraction(curve, form, weight.shape, rank, name)


def ranks_of_fraction(
    curve: ErrorCurve,
    form: type[FactoredWeight],
    shape: Sequence[int],
    fraction: float,
    name: str = "weight",
) -> Ranks:
    """Return the ranks of least error to expect that keep at most a fraction of parameters."""
    choice = curve.best(_allowed(shape, fraction, name))
    return (1,) * len(form.max_ranks(shape)) if choice is None else choice.ranks


def rank_of_fraction(
    form: type[FactoredWeight], shape: Sequence[int], fraction: float, name: str = "weight"
) -> int:
    """Return the highest rank, of a form with one, that keeps at most a fraction of parameters.

    That is r = ⌊m·n / (c·(m + n))⌋ of a compression ratio c = 1/fraction for low rank, and
    R = ⌊T·S·d1·d2 / (c·(T + S + d1 + d2))⌋ for CP; at least 1, and not above the highest rank.

    Raises:
        InvalidOptions: the fraction is not above 0, or above 1.
    """
    (most,) = form.max_ranks(shape)
    rank = int(_allowed(shape, fraction, name) / form.parameters(shape, (1,)))
    return min(max(rank, 1), most)


def _allowed(shape: Sequence[int], fraction: float, name: str) -> float:
    """Return the parameters that a fraction allows."""
    if not 0 < fraction <= 1:
        raise InvalidOptions("rank", f"{name!r}: {fraction}, a fraction, is not from 0 to 1")
    return fraction * math.prod(shape) * (1 + _ROUNDING)  # times 1/c may fall short by rounding


def energy_ranks(
    form: type[FactoredWeight],
    weight: Array,
    energy: float,
    moment: Float64 | None = None,
    name: str = "weight",
) -> Ranks:
    """Return the least ranks that each keep a fraction of the squared singular values.

    Those of the unfolding (low rank), of the unfoldings by outputs and by inputs (Tucker-2), of
    the three matrices of HT-2, and for CP of the orthogonal terms that its fit starts from.

    Args:
        energy: above 0, up to 1.
        moment: of the layer's unfolded input, n x n: then the values are those of the weight in
            the norm of the output.

    Raises:
        InvalidModel: the weight cannot be decomposed.
        InvalidOptions: the energy is out of range, the form is joint, or the moment does not fit.
    """
    if not 0 < energy <= 1:
        raise InvalidOptions("energy", f"{name!r}: {energy} is not from 0 to 1")
    fitting = fitting_of(form, name)
    values = checked_weight(weight, form, name, moment)
    spectra = fitting.spectra(values if moment is None else fitting.in_norm(values, moment))
    return tuple(_energy_rank(spectrum, energy) for spectrum in spectra)


def vbmf_ranks(form: type[FactoredWeight], weight: Array, name: str = "weight") -> Ranks:
    """Return the ranks by variational Bayes, at least 1 (Kim et al., 2016).

    Raises:
        InvalidModel: the weight cannot be decomposed.
        InvalidOptions: the form has no such ranks; low rank and Tucker-2 have.
    """
    values = checked_weight(weight, form, name)
    matrices = None if form.shared else fitting_of(form).vbmf_matrices
    if matrices is None:
        raise InvalidOptions("rank", f"{name!r}: VBMF has no ranks of {form.form}")
    return tuple(max(vbmf_rank(matrix), 1) for matrix in matrices(values))


def _energy_rank(spectrum: Float64, energy: float) -> int:
    kept = np.cumsum(spectrum)
    return int(np.argmax(kept >= energy * kept[-1] * (1 - _ROUNDING))) + 1

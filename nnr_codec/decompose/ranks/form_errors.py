"""The relative squared errors that a kernel would have in each form, at all ranks or many."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ...errors import InvalidOptions
from ...factorization.forms import CP, HT2, FactoredWeight, LowRank, Tucker2
from ...model import Float64
from ..algorithms.cp import fit, sliced_start
from ..algorithms.ht2 import in_order
from ..algorithms.kernel import damped, triangular_root
from ..algorithms.separable import SeparableNorm
from ..algorithms.svd import leading_eigenvectors, squared_singular_values

Table = tuple[npt.NDArray[np.int64], Float64]
"""Ranks, (count, ranks of the form), and the error at each, (count,)."""

_FITTED_SHARES = (0.06, 0.25, 0.5, 1.0)
"""Of the highest rank of CP that saves parameters: where it is fitted."""

_MOST_SWEEPS, _FEWEST_SWEEPS = 40, 4
"""Of such a fit, which only has to tell how much better than its start it gets."""

_MOST_RANKS = 128
"""Of each side of Tucker-2 for which errors are told, about."""

_MOST_SIZES, _FEWEST_SIZES = 12, 4
"""Of each basis of HT-2 for which the third rank's errors are found, about."""

_OPERATIONS = 1e11
"""About what a kernel's errors may take: of large ones, less is tried. Some seconds."""


def in_norm_of(form: type[FactoredWeight], kernel: Float64, moment: Float64 | None) -> Float64:
    """Return a kernel whose squared norm is that of the output, in the shape of the kernel.

    For low rank it is exact, for all other forms that of `SeparableNorm`. Without a moment it is
    the kernel itself.

    Raises:
        InvalidOptions: the moment is not positive definite.
    """
    if moment is None:
        return kernel
    if form is LowRank:
        unfolded = kernel.reshape(len(kernel), -1)
        return (unfolded @ triangular_root(damped(moment))).reshape(kernel.shape)
    return SeparableNorm.of(moment, kernel.shape).applied(kernel)


def errors_of_ranks(form: type[FactoredWeight], kernel: Float64, name: str) -> Table:
    """Return ranks of a form and the relative squared error at each, 0 to 1.

    Args:
        form: of a single weight.
        kernel: of a shape that the form has; not all zeros.
        name: the weight's name, for errors.

    Raises:
        InvalidOptions: the form is joint.
    """
    if form is LowRank:
        return _of_low_rank(kernel)
    if form is Tucker2:
        return _of_tucker2(kernel)
    if form is HT2:
        return _of_ht2(kernel)
    if form is CP:
        return _of_cp(kernel)
    raise InvalidOptions("decompose", f"{name!r}: {form.form} has ranks of groups, not of a layer")


def _of_low_rank(kernel: Float64) -> Table:
    """Return the errors of all ranks, from the singular values."""
    kept = np.cumsum(squared_singular_values(kernel.reshape(len(kernel), -1)))
    return np.arange(1, len(kept) + 1)[:, None], _errors(kept, kept[-1])


def _of_tucker2(kernel: Float64) -> Table:
    """Return the errors of all pairs of ranks, or of many.

    With all singular vectors of both unfoldings, the core of any two ranks is a corner of one core.
    """
    outputs, inputs = _singular_vectors(kernel), _singular_vectors(np.swapaxes(kernel, 0, 1))
    core = np.tensordot(outputs, np.tensordot(inputs, kernel, (0, 1)), (0, 1))
    squares = (core**2).reshape(*core.shape[:2], -1).sum(axis=2)
    kept = squares.cumsum(axis=0).cumsum(axis=1)
    taps = math.prod(kernel.shape[2:])
    sides = np.meshgrid(*(_sizes(most, _MOST_RANKS) for most in kept.shape), indexing="ij")
    ranks = np.stack(sides, axis=-1).reshape(-1, 2)
    ranks = ranks[(ranks[:, 0] <= ranks[:, 1] * taps) & (ranks[:, 1] <= ranks[:, 0] * taps)]
    return ranks, _errors(kept[ranks[:, 0] - 1, ranks[:, 1] - 1], kept[-1, -1])


def _of_ht2(kernel: Float64) -> Table:
    """Return the errors of all R13, for some pairs of R1 and R3."""
    ordered = in_order(kernel)  # S x d1 x T x d2
    rows, columns = kernel.shape[2:]
    inputs = _singular_vectors(ordered)
    outputs = _singular_vectors(ordered.transpose(2, 0, 1, 3))
    core = np.tensordot(np.tensordot(inputs, ordered, (0, 0)), outputs, (2, 0))
    core = core.transpose(0, 1, 3, 2)
    cost = 100 * min(core.shape[0] * rows, core.shape[2] * columns) ** 3
    count = min(max(int((_OPERATIONS / cost) ** 0.5), _FEWEST_SIZES), _MOST_SIZES)
    ranks, kept = [], []
    for rank_in in _sizes(core.shape[0], count):
        for rank_out in _sizes(core.shape[2], count):
            corner = core[:rank_in, :, :rank_out].reshape(rank_in * rows, rank_out * columns)
            energies = np.cumsum(squared_singular_values(corner))
            middles = np.arange(1, len(energies) + 1)
            ranks.append(np.stack(np.broadcast_arrays(rank_in, middles, rank_out), axis=1))
            kept.append(energies)
    return np.concatenate(ranks), _errors(np.concatenate(kept), float(np.vdot(kernel, kernel)))


def _of_cp(kernel: Float64) -> Table:
    """Return the errors of all ranks that save parameters.

    Those of the orthogonal terms that a fit starts from are known; how much a fit gains is found
    at a few ranks.
    """
    (most,) = CP.max_ranks(kernel.shape)
    most = max(min(most, kernel.size // sum(kernel.shape)), 1)
    start = sliced_start(kernel, most)
    energy = float(np.vdot(kernel, kernel))
    squares = np.prod([np.sum(factor**2, axis=0) for factor in start], axis=0)
    before = _errors(np.cumsum(squares), energy)
    fitted = sorted({max(int(share * most), 1) for share in _FITTED_SHARES})
    tiny = np.finfo(float).tiny
    gains = []
    for rank in fitted:
        sweeps = min(max(int(_OPERATIONS / (4 * kernel.size * rank)), _FEWEST_SWEEPS), _MOST_SWEEPS)
        _, error = fit(kernel, [factor[:, :rank] for factor in start], sweeps)
        gains.append(math.log((error / energy + tiny) / (before[rank - 1] + tiny)))
    ranks = np.arange(1, most + 1)
    errors = before * np.exp(np.interp(ranks, fitted, np.minimum(gains, 0.0)))
    return ranks[:, None], np.minimum.accumulate(errors)


def _errors(kept: Float64, energy: float) -> Float64:
    return np.clip(1 - kept / energy, 0.0, 1.0)


def _singular_vectors(tensor: Float64) -> Float64:
    """Return all left singular vectors of a tensor unfolded to its first mode, falling."""
    unfolded = tensor.reshape(len(tensor), -1)
    count = min(unfolded.shape)
    return leading_eigenvectors(unfolded @ unfolded.T, count)


def _sizes(most: int, count: int) -> list[int]:
    """Return `count` numbers up to `most`, evenly spaced, and the halves of the least down to 1.

    Or all numbers, if there are no more. The halves hardly count where large sizes cost the most.
    """
    count = min(count, most)
    sizes = {max(round(most * step / count), 1) for step in range(1, count + 1)}
    least = min(sizes)
    sizes |= {least >> half for half in range(1, least.bit_length())}
    return sorted(sizes)

"""The rank of a noisy matrix by variational Bayes, in closed form.

Source: Nakajima, Sugiyama, Babacan, Tomioka: Global analytic solution of fully-observed
variational Bayesian matrix factorization, JMLR 14, 2013; and Nakajima et al., Perfect
dimensionality recovery by variational Bayesian PCA, NIPS 2012: the empirical Bayes solution, the
noise variance estimated.
"""

from __future__ import annotations

import math

import numpy as np

from ...model import Float64
from .svd import squared_singular_values

_GRID = 200  # trial variances in one pass
_PASSES = 3  # each about the best of the last
_BISECTIONS = 100


def vbmf_rank(matrix: Float64) -> int:
    """Return the number of components that stand out of the noise; 0 in pure noise.

    Args:
        matrix: float64, any shape, finite.
    """
    short, long = sorted(matrix.shape)
    energies = squared_singular_values(matrix)
    if energies[0] == 0:
        return 0
    energies = np.maximum(energies, energies[0] * np.finfo(float).eps)  # where it has no noise
    ratio = short / long
    threshold = _threshold(ratio)
    variance = _noise_variance(energies, long, ratio, threshold)
    return int(np.count_nonzero(energies > threshold * long * variance))


def _threshold(ratio: float) -> float:
    """Return x̲, the energy over long side times noise variance from which a component counts.

    It is (1 + τ)(1 + ratio/τ), τ the zero of Φ(τ) + Φ(τ/ratio), Φ(z) = log(z + 1)/z - 1/2.
    """

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    low, high = 1e-6 * ratio, 10.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if phi(middle) + phi(middle / ratio) > 0 else (low, middle)
    return (1 + low) * (1 + ratio / low)


def _noise_variance(energies: Float64, long: int, ratio: float, threshold: float) -> float:
    """Return the noise variance of the least free energy (JMLR 2013, theorem on its bounds)."""
    short = len(energies)
    most = min(math.ceil(short / (1 + ratio)) - 1, short - 1)  # components that may stand out
    rest = energies[most:]
    low = max(float(energies[most]) / (long * threshold), float(rest.mean()) / long)
    high = float(energies.mean()) / long
    if low >= high:
        return high
    for _ in range(_PASSES):
        trials = np.geomspace(low, high, _GRID)
        best = int(np.argmin(_free_energy(energies / long, trials, ratio, threshold)))
        low, high = trials[max(best - 1, 0)], trials[min(best + 1, _GRID - 1)]
    return float(trials[best])


def _free_energy(energies: Float64, variances: Float64, ratio: float, threshold: float) -> Float64:
    """Return the free energy at each noise variance, but for constants."""
    x = energies[None] / variances[:, None]
    counts = x > threshold
    centred = np.where(counts, x, threshold) - (1 + ratio)
    tau = (centred + np.sqrt(np.maximum(centred**2 - 4 * ratio, 0.0))) / 2
    gain = np.log1p(tau) + ratio * np.log1p(tau / ratio) - tau
    total: Float64 = np.sum(x - np.log(x) + np.where(counts, gain, 0.0), axis=1)
    return total

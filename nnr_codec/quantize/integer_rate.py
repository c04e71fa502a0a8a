"""An estimate of the bits that integers take, without coding them.

It serves choices that have to be made before anything is coded: what the model map says stands
before all data units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

UNARY_LENGTHS = (1, 2, 4, 11, 24, 48, 96, 192)
"""Numbers of greater-than flags that are tried."""

_BITS_OF_CONTEXT = 6.0  # for its initialization index, and until it has adapted
_SAMPLE = 2**15


def sampled(values: npt.NDArray[Any], count: int = _SAMPLE) -> npt.NDArray[Any]:
    """Return at most `count` of the values, spread evenly over the flat array."""
    flat = values.reshape(-1)
    if flat.size <= count:
        return flat
    sample: npt.NDArray[Any] = flat[np.arange(count) * flat.size // count]
    return sample


def estimated_bits(
    integers: npt.NDArray[Any], unary_lengths: tuple[int, ...] = UNARY_LENGTHS
) -> tuple[float, int]:
    """Return about how many bits integers take, and the unary length that takes the fewest.

    Sign, greater-than flags and remainder prefix adapt to the integers and count as their entropy
    (of zero order); the remainder's suffix is plain bits.
    """
    sample = sampled(integers).astype(np.int64)
    magnitudes = np.abs(sample)
    costs = []
    for length in unary_lengths:
        beyond = np.maximum(magnitudes - length, 1)
        suffix = np.where(magnitudes > length, np.frexp(beyond.astype(np.float64))[1] - 1, 0)
        symbols = np.minimum(magnitudes, length + 1) + suffix  # one for each prefix
        counts = np.bincount(2 * symbols + (sample < 0))
        counts = counts[counts > 0]
        entropy = float(-(counts * np.log2(counts / sample.size)).sum())
        contexts = min(counts.size, 2 * length + 32)
        coded = (entropy + float(suffix.sum())) * integers.size / sample.size
        costs.append((coded + _BITS_OF_CONTEXT * contexts, length))
    return min(costs)

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
_LOSS_OF_BIN = 0.007  # of bits, as measured: probabilities waver around what they estimate
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

    Significance, sign and greater-than flags adapt to the integers together, the remainder's prefix
    adapts to magnitudes alone; both count as their entropy (of zero order), and a little for each
    bin. The remainder's suffix is plain bits.
    """
    sample = sampled(integers).astype(np.int64)
    magnitudes, is_negative = np.abs(sample), sample < 0
    scale = integers.size / max(sample.size, 1)
    costs = []
    for length in unary_lengths:
        flags = np.minimum(magnitudes, length + 1)
        beyond = magnitudes[magnitudes > length] - length
        suffix = np.frexp(beyond.astype(np.float64))[1] - 1
        first, first_contexts = _entropy(2 * flags + is_negative)
        second, second_contexts = _entropy(suffix)
        bins = 2 * sample.size + int(flags.sum()) + int(suffix.sum())
        coded = first + second + float(suffix.sum()) + _LOSS_OF_BIN * bins
        costs.append(
            (scale * coded + _BITS_OF_CONTEXT * (first_contexts + second_contexts), length)
        )
    return min(costs)


def _entropy(symbols: npt.NDArray[Any]) -> tuple[float, int]:
    """Return the entropy of all symbols together in bits, and how many of them differ."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / max(symbols.size, 1))).sum()), counts.size

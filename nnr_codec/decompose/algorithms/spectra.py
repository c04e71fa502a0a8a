"""The errors of what ranks cut off, and the ranks at which they are told."""

from __future__ import annotations

import numpy as np

from ...model import Float64

OPERATIONS = 1e11
"""About what a kernel's errors by ranks may take: of large ones, less is tried. Some seconds."""


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

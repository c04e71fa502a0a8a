"""Square matrices of which the blocks along the diagonal are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def block_diagonal(blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the matrices with these blocks, and zeros elsewhere.

    Args:
        blocks: (..., count, size, size); the result is (..., count * size, count * size).
    """
    *others, count, size, _ = blocks.shape
    if count == 1:
        return blocks[..., 0, :, :]
    full = np.zeros((*others, count, size, count, size), blocks.dtype)
    for index in range(count):
        full[..., index, :, index, :] = blocks[..., index, :, :]
    return full.reshape(*others, count * size, count * size)

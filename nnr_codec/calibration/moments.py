"""Second moments of the inputs of a weight, which tell the error of the layer's output.

A layer multiplies vectors x, one for each position of its output, by the rows of its weight. If the
weight changes by D, the squared error of the output at a position is, in the mean,
tr(D E[x xᵀ] Dᵀ). :mod:`.calibrate` collects the moments E[x xᵀ]; data-aware
decomposition and quantization minimize that error instead of the one of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidOptions
from ..model import Array, Float64


@dataclass(frozen=True)
class RowLayout:
    """How a layer's weight is a matrix for each group, whose rows are multiplied by x.

    x is the group's unfolded input: channel after channel, and of each channel its taps in the
    kernel's order, as in `torch.nn.functional.unfold`.

    Attributes:
        shape: of the weight: (T, S) of linear layers, (T, S / groups, taps ...) of convolutions,
            (S, T / groups, taps ...) of transposed ones; T outputs, S inputs.
        groups: of the convolution; 1 otherwise.
        transposed: whether it is a transposed convolution.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def channels(self) -> int:
        """Input channels of a group."""
        return self.shape[0] // self.groups if self.transposed else self.shape[1]

    @property
    def taps(self) -> int:
        """Taps of the kernel; 1 of linear layers."""
        return math.prod(self.shape[2:])

    @property
    def width(self) -> int:
        """Values in x."""
        return self.channels * self.taps

    def rows(self, weight: Array) -> Array:
        """Return `weight`, of `shape`, as (groups, T / groups, width)."""
        if not self.transposed:
            return weight.reshape(self.groups, -1, self.width)
        apart = weight.reshape(self.groups, self.channels, -1, self.taps)
        return apart.swapaxes(1, 2).reshape(self.groups, -1, self.width)

    def weight(self, rows: Array) -> Array:
        """Return the weight of `shape` whose rows are `rows`, (groups, T / groups, width)."""
        if not self.transposed:
            return rows.reshape(self.shape)
        apart = rows.reshape(self.groups, -1, self.channels, self.taps)
        return apart.swapaxes(1, 2).reshape(self.shape)


@dataclass(frozen=True)
class InputMoments:
    """E[x xᵀ] of one weight: for each group a square matrix, or the blocks along its diagonal.

    Attributes:
        layout: of the weight.
        blocks: float64, (groups, count, size, size), symmetric. Block i is of the values from
            i * size on; count * size is `layout.width`. Between blocks nothing is known.
        positions: vectors x that the mean is over, for each group.
    """

    layout: RowLayout
    blocks: Float64
    positions: int

    @property
    def is_reduced(self) -> bool:
        """Whether there are several blocks, because a single one would have taken too much."""
        return bool(self.blocks.shape[1] > 1)

    def matrices(self) -> Float64:
        """Return E[x xᵀ] as (groups, width, width), with zeros where nothing is known."""
        groups, count, size, _ = self.blocks.shape
        full = np.zeros((groups, count, size, count, size))
        for index in range(count):
            full[:, index, :, index] = self.blocks[:, index]
        return full.reshape(groups, count * size, count * size)


@dataclass(frozen=True)
class Calibration:
    """The moments of the layers of a network, from one pass over samples.

    Attributes:
        moments: by the weight's name in the state dict. Of tied weights it is the first name, and
            the moments are of all their layers' inputs together.
        samples: in all batches.
        unused: names of weights whose layers never ran, in the state dict's order.
    """

    moments: Mapping[str, InputMoments]
    samples: int
    unused: tuple[str, ...] = ()

    @property
    def reduced(self) -> tuple[str, ...]:
        """Names of the weights that have blocks in place of a full matrix, to save memory."""
        return tuple(name for name, moments in self.moments.items() if moments.is_reduced)


def block_sizes(layouts: Mapping[str, RowLayout], max_bytes: int) -> dict[str, int]:
    """Return the size of the blocks of each weight, so that all moments fit in `max_bytes`.

    All have one full block, if that fits. Otherwise the weight that takes most gets smaller blocks,
    again and again: of fewer channels, of a single channel, and then of fewer taps, down to the
    diagonal alone. Sizes divide the width.

    Raises:
        InvalidOptions: not even the diagonals fit.
    """
    choices = {name: _divisions(layout) for name, layout in layouts.items()}

    def size_of(name: str) -> int:
        layout = layouts[name]
        return layout.groups * layout.width * choices[name][0] * np.dtype(np.float64).itemsize

    total = sum(map(size_of, layouts))
    while total > max_bytes:
        divisible = [name for name in layouts if len(choices[name]) > 1]
        if not divisible:
            reason = f"{max_bytes} bytes are too few: the diagonals alone take {total}"
            raise InvalidOptions("max_bytes", reason)
        largest = max(divisible, key=size_of)
        before = size_of(largest)
        choices[largest].pop(0)
        total -= before - size_of(largest)
    return {name: sizes[0] for name, sizes in choices.items()}


def _divisions(layout: RowLayout) -> list[int]:
    """Return the sizes that blocks can have, largest first."""
    channels = [channels * layout.taps for channels in _divisors(layout.channels)]
    return channels + _divisors(layout.taps)[1:]


def _divisors(number: int) -> list[int]:
    """Return the divisors of `number`, largest first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)}, reverse=True)

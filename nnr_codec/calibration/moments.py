"""Second moments of the inputs of a weight, which tell the error of the layer's output.

A layer multiplies vectors x, one for each position of its output, by the rows of its weight. If the
weight changes by D, the squared error of the output at a position is, in the mean,
tr(D E[x xᵀ] Dᵀ). :mod:`.calibrate` collects the moments E[x xᵀ]; data-aware
decomposition and quantization minimize that error instead of the one of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import InvalidOptions
from ..model import Float64


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
    def outputs(self) -> int:
        """Output channels of all groups."""
        return self.shape[1] * self.groups if self.transposed else self.shape[0]

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

    def matrices(self) -> Float64:
        """Return E[x xᵀ] as (groups, width, width), with zeros where nothing is known."""
        groups, count, size, _ = self.blocks.shape
        full = np.zeros((groups, count, size, count, size))
        for index in range(count):
            full[:, index, :, index] = self.blocks[:, index]
        return full.reshape(groups, count * size, count * size)


@dataclass(frozen=True)
class LayerMoments:
    """What is known of one layer.

    Attributes:
        inputs: E[x xᵀ] of its inputs.
        gradients: E[g gᵀ] of the gradients at its outputs, (outputs, outputs); None: not known.
        positions: of its output, for each sample.
    """

    inputs: InputMoments
    gradients: Float64 | None
    positions: float


@dataclass(frozen=True)
class Calibration:
    """The moments of the layers of a network, from one pass over samples.

    Attributes:
        moments: by the weight's name in the state dict. Of tied weights it is the first name, and
            the moments are of all their layers' inputs together.
        samples: in all batches.
        unused: names of weights whose layers never ran, in the state dict's order.
        gradients: E[g gᵀ] of the gradients at the outputs of layers, float64, (outputs, outputs),
            by the weight's name; what is not there is not known.
    """

    moments: Mapping[str, InputMoments]
    samples: int
    unused: tuple[str, ...] = ()
    gradients: Mapping[str, Float64] = field(default_factory=dict)

    def layer(self, name: str) -> LayerMoments | None:
        """Return what is known of the layer of weight `name`; None: nothing."""
        moments = self.moments.get(name)
        if moments is None:
            return None
        return LayerMoments(moments, self.gradients.get(name), moments.positions / self.samples)

    @property
    def reduced(self) -> tuple[str, ...]:
        """Names of the weights that have several blocks instead of one full matrix."""
        return tuple(name for name, m in self.moments.items() if m.blocks.shape[1] > 1)


def block_sizes(layouts: Mapping[str, RowLayout], max_bytes: int) -> dict[str, int]:
    """Return the size of the blocks of each weight, so that all moments fit in `max_bytes`.

    All have one full block, if that fits. Otherwise the weight of most bytes gets smaller blocks,
    again and again: of fewer channels, of a single channel, and then of fewer taps, down to the
    diagonal alone. Sizes divide the width.

    Raises:
        InvalidOptions: not even the diagonals fit.
    """
    choices = {}
    for name, layout in layouts.items():
        by_channels = [channels * layout.taps for channels in _divisors(layout.channels)]
        choices[name] = by_channels + _divisors(layout.taps)[1:]  # largest first

    def size_of(name: str) -> int:
        layout = layouts[name]
        return layout.groups * layout.width * choices[name][0] * np.dtype(np.float64).itemsize

    total = sum(map(size_of, layouts))
    while total > max_bytes:
        divisible = [name for name in layouts if len(choices[name]) > 1]
        if not divisible:
            reason = f"{max_bytes} bytes are too few: the diagonals alone take {total}"
            raise InvalidOptions("max_bytes", reason)
        choices[max(divisible, key=size_of)].pop(0)
        total = sum(map(size_of, layouts))
    return {name: sizes[0] for name, sizes in choices.items()}


def _divisors(number: int) -> list[int]:
    """Return the divisors of `number`, largest first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)}, reverse=True)

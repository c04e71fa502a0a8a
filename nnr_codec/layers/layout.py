"""How the elements of a factor are arranged in the weight of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """A factor, split into more dimensions, whose order changes.

    Attributes:
        factor_shape: of the factor.
        split: as many elements, in the dimensions that the factor's consist of.
        permutation: of the dimensions of `split`.
        weight_shape: of the layer's weight, which has the dimensions in their new order, joined or
            with sizes of 1 between them.
    """

    factor_shape: tuple[int, ...]
    split: tuple[int, ...]
    permutation: tuple[int, ...]
    weight_shape: tuple[int, ...]

    def to_weight(self, factor: torch.Tensor) -> torch.Tensor:
        """Return the layer's weight, contiguous."""
        permuted = factor.reshape(self.split).permute(self.permutation)
        return permuted.reshape(self.weight_shape).contiguous()

    def to_factor(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the factor of a layer's weight."""
        permuted = weight.reshape([self.split[axis] for axis in self.permutation])
        inverse = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        return permuted.permute(inverse).reshape(self.factor_shape)


def rows_first(rows: int, columns: int, taps: int = 0, *, swapped: bool = False) -> Layout:
    """Return the layout of a matrix as a 1x…x1 convolution with `taps` spatial dimensions.

    Args:
        rows, columns: of the factor.
        taps: spatial dimensions; 0 for a linear layer.
        swapped: the columns are the outputs, else the rows are.
    """
    ones = (1,) * taps
    permutation, sizes = ((1, 0), (columns, rows)) if swapped else ((0, 1), (rows, columns))
    return Layout((rows, columns), (rows, columns), permutation, (*sizes, *ones))


def unchanged(factor_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> Layout:
    """Return the layout of a factor whose elements stay in their order."""
    size = math.prod(factor_shape)
    return Layout(factor_shape, (size,), (0,), weight_shape)

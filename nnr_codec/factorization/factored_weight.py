"""What all factored forms of a weight have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..model import Float64

Shape = tuple[int, ...]
Ranks = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class FactoredWeight(ABC):
    """A weight as factors whose product it is.

    Groups: the weight of a convolution with groups has S / groups instead of S input channels, and
    its shape does not tell. Forms describe the array as it is. Executed as layers, they then need
    their first steps once for each group, which `macs` does not count.

    Attributes:
        shape: dimensions of the dense weight as in the model: (T, S) of a linear layer, (T, S, d)
            or (T, S, d1, d2) of a convolution with T outputs and S inputs; transposed convolutions
            have the order (S, T, d1, d2).
        factors: float arrays, in the order in which a stream names them.

    Raises:
        ValueError: the factors do not fit together or not the shape, or no form has that shape.
    """

    form: ClassVar[str]
    """The word of the model map."""

    shared: ClassVar[tuple[int, ...]] = ()
    """Indices of the factors that several layers may share."""

    axes: ClassVar[tuple[tuple[str, str], ...]]
    """What the rows and the columns of each factor are, as the matrix that is coded, the slowest
    axis first: t, s, i and j are those of the weight (`kernel_shape`), a, b and c those of the
    ranks, in the form's order. The weight is the product of the factors, summed over ranks."""

    terms: ClassVar[tuple[tuple[int, ...], ...]] = ()
    """Of a form that is a sum of such products, the factors of each; empty: of all, one."""

    _dimensions: ClassVar[range]
    """How many dimensions the dense weight may have."""

    _rank_axes: ClassVar[tuple[tuple[int, int], ...]]
    """Where each rank is read: (factor, axis)."""

    shape: Shape
    factors: tuple[npt.NDArray[Any], ...]

    def __post_init__(self) -> None:
        self.ranks_of(self.shape, [factor.shape for factor in self.factors])

    @property
    def ranks(self) -> Ranks:
        """The ranks, in the form's order."""
        return tuple(self.factors[factor].shape[axis] for factor, axis in self._rank_axes)

    @property
    def kernel_shape(self) -> Shape:
        """The dense weight's dimensions as (T, S, d1, d2), with 1 where it has none; one of more
        than four has all but the first in S."""
        if len(self.shape) > 4:
            return self.shape[0], math.prod(self.shape[1:]), 1, 1
        return (*self.shape, 1, 1)[:4]

    @property
    def parameter_count(self) -> int:
        """Elements of all factors; the caller counts those that layers share once."""
        return sum(factor.size for factor in self.factors)

    def to_dense(self) -> npt.NDArray[np.float32]:
        """Return the weight, float32, of `shape`.

        It is computed in float64, the factors multiplied and the terms of each sum added in the
        order of spec/model_map.md, and rounded once: the same on every processor. No intermediate
        array is much larger than the weight in float64. What is too large for float32 becomes
        infinite; every NaN is the same one.
        """
        with np.errstate(all="ignore"):
            product = self._product([np.asarray(f, np.float64) for f in self.factors])
            dense = product.reshape(self.shape).astype(np.float32)
        dense[np.isnan(dense)] = np.nan  # of which processors have their own
        return dense

    @classmethod
    def ranks_of(cls, shape: Sequence[int], factor_shapes: Sequence[Sequence[int]]) -> Ranks:
        """Return the ranks that factors of these shapes have.

        Raises:
            ValueError: they do not fit together, or not the shape; or the form has no such shape.
        """
        shapes = tuple(tuple(factor) for factor in factor_shapes)
        if len(shapes) <= max(factor for factor, _ in cls._rank_axes):
            raise ValueError(f"{cls.form}: only {len(shapes)} factors")
        if any(len(shapes[factor]) <= axis for factor, axis in cls._rank_axes):
            raise ValueError(f"{cls.form}: a factor has too few dimensions: {list(shapes)}")
        ranks = tuple(shapes[factor][axis] for factor, axis in cls._rank_axes)
        expected = cls.factor_shapes(shape, ranks)
        if shapes != expected:
            raise ValueError(f"{cls.form}: factors of shapes {list(shapes)}, not {list(expected)}")
        return ranks

    @classmethod
    def factor_shapes(cls, shape: Sequence[int], ranks: Sequence[int]) -> tuple[Shape, ...]:
        """Return the shapes of the factors of a weight of `shape` at these ranks.

        Raises:
            ValueError: the form has no such shape or not so many ranks, or a rank is below 1 or
                beyond what `max_ranks` says.
        """
        largest = cls.max_ranks(shape)
        if len(ranks) != len(largest):
            raise ValueError(f"{cls.form}: {len(ranks)} ranks, not {len(largest)}")
        if any(not 1 <= rank <= most for rank, most in zip(ranks, largest, strict=True)):
            raise ValueError(f"{cls.form}: ranks {list(ranks)} not from 1 to {list(largest)}")
        return cls._shapes(tuple(shape), tuple(ranks))

    @classmethod
    def max_ranks(cls, shape: Sequence[int]) -> Ranks:
        """Return the ranks beyond which no weight of `shape` needs any.

        Raises:
            ValueError: the form has no such shape.
        """
        if len(shape) not in cls._dimensions or min(shape) < 1:
            raise ValueError(f"{cls.form}: no form of shape {list(shape)}")
        return cls._max_ranks(tuple(shape))

    @classmethod
    def rank_places(cls, factors: int) -> list[list[tuple[int, int]]]:
        """Return where each rank is an axis, of so many factors: pairs (factor, axis)."""
        words = ["".join(axes) for axes in cls.axes[:factors]]
        return [
            [(index, word.index(rank)) for index, word in enumerate(words) if rank in word]
            for rank in "abc"[: len(cls._rank_axes)]
        ]

    @classmethod
    def parameters(cls, shape: Sequence[int], ranks: Sequence[int]) -> int:
        """Return `parameter_count` of a weight of `shape` at these ranks.

        Raises:
            ValueError: as `factor_shapes` does.
        """
        return sum(math.prod(factor) for factor in cls.factor_shapes(shape, ranks))

    @classmethod
    @abstractmethod
    def product_operations(cls, shape: Sequence[int], ranks: Sequence[int]) -> int:
        """Return the multiplications that `to_dense` makes of such factors."""

    def macs(self, input_size: Sequence[int] = (), output_size: Sequence[int] = ()) -> int:
        """Return the multiply-accumulates of one sample, executed as the form's chain of layers.

        Args:
            input_size: the layer's input without batch and channels: (height, width), (length,),
                the number of tokens of a linear layer, or nothing.
            output_size: likewise of its output.

        What the steps cost: 1x1 convolutions before the taps count at each input position; the
        vertical step of a separated kernel (with the vertical stride and padding) at each of output
        height x input width; all others at each output position. Biases are not counted.

        Raises:
            ValueError: the sizes do not have as many dimensions as the kernel.
        """
        spatial = len(self.shape) - 2
        if spatial and not len(input_size) == len(output_size) == spatial:
            raise ValueError(f"{self.form}: sizes have {spatial} dimensions")
        before, after = math.prod(input_size), math.prod(output_size)
        between = math.prod([*output_size[:1], *input_size[1:]])
        return self._macs(before, between, after)

    @abstractmethod
    def _macs(self, before: int, between: int, after: int) -> int:
        """Return `macs` from the positions before, between and after the steps of the taps."""

    @abstractmethod
    def _product(self, factors: list[Float64]) -> Float64:
        """Return the weight of the factors in float64, its elements in the order of `shape`."""

    @classmethod
    @abstractmethod
    def _shapes(cls, shape: Shape, ranks: Ranks) -> tuple[Shape, ...]: ...

    @classmethod
    @abstractmethod
    def _max_ranks(cls, shape: Shape) -> Ranks: ...

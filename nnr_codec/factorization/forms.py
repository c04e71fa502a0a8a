"""The factored forms of one layer's weight, and all forms by their words in the model map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ..model import Float64
from .factored_weight import FactoredWeight, Ranks, Shape
from .joint_forms import JointBinary, JointLeft, JointRight
from .ordered_product import summed_by_rank

__all__ = [
    "CP",
    "FORMS",
    "HT2",
    "FactoredWeight",
    "JointBinary",
    "JointLeft",
    "JointRight",
    "LowRank",
    "Tucker2",
]

_CP_BLOCK = 2**16  # elements b ∘ c ∘ e of terms multiplied at a time, at least


class LowRank(FactoredWeight):
    """W, unfolded to shape[0] x the rest, ≈ G·H; factors G (shape[0] x r), H (r x rest).

    Executed as a d1xd2 convolution S→r and a 1x1 convolution r→T, or two linear layers. A
    transposed convolution is executed the other way round, 1x1 S→r and transposed r→T: for its
    `macs`, give the input's size as the output's.
    """

    form = "lr"
    axes = (("t", "a"), ("a", "sij"))
    _dimensions = range(2, 33)
    _rank_axes = ((0, 1),)

    def _product(self, factors: list[Float64]) -> Float64:
        left, right = factors
        return summed_by_rank(left, right)

    @classmethod
    def product_operations(cls, shape: Sequence[int], ranks: Sequence[int]) -> int:
        return ranks[0] * math.prod(shape)

    def _macs(self, before: int, between: int, after: int) -> int:
        return self.parameter_count * after

    @classmethod
    def _shapes(cls, shape: Shape, ranks: Ranks) -> tuple[Shape, ...]:
        return (shape[0], ranks[0]), (ranks[0], math.prod(shape[1:]))

    @classmethod
    def _max_ranks(cls, shape: Shape) -> Ranks:
        return (min(shape[0], math.prod(shape[1:])),)


class CP(FactoredWeight):
    """W ≈ Σ_r a_r ∘ b_r ∘ c_r (∘ e_r); factors A (TxR), B (SxR), C (d1xR), and E (d2xR) in 2-d.

    Executed as a 1x1 convolution S→R, depthwise d1x1, depthwise 1xd2, and 1x1 R→T.
    """

    form = "cp"
    axes = (("t", "a"), ("s", "a"), ("i", "a"), ("j", "a"))
    _dimensions = range(3, 5)
    _rank_axes = ((0, 1),)

    def _product(self, factors: list[Float64]) -> Float64:
        # The terms of the other factors are formed one by one, so the largest is the one that a
        # matrix product takes: it has the most of the work then, whatever the shape.
        axis = self.shape.index(max(self.shape))
        largest, rest = factors[axis], factors[:axis] + factors[axis + 1 :]
        others = [size for index, size in enumerate(self.shape) if index != axis]
        columns = math.prod(others)
        dense = np.zeros((self.shape[axis], columns))
        # In blocks of terms, as the columns b ∘ c ∘ e of all could take far more than the weight.
        step = max(self.shape[axis], _CP_BLOCK // columns)
        for start in range(0, largest.shape[1], step):
            terms = np.ones((1, 1))
            for factor in rest:
                part = factor[:, start : start + step].T
                terms = (terms[:, :, None] * part[:, None]).reshape(part.shape[0], -1)
            summed_by_rank(largest[:, start : start + step], terms, dense)
        return np.moveaxis(dense.reshape(-1, *others), 0, axis)

    @classmethod
    def product_operations(cls, shape: Sequence[int], ranks: Sequence[int]) -> int:
        return ranks[0] * (math.prod(shape) + 2 * math.prod(shape[1:]))

    def _macs(self, before: int, between: int, after: int) -> int:
        outputs, inputs, vertical, *horizontal = (factor.size for factor in self.factors)
        return inputs * before + vertical * between + (outputs + sum(horizontal)) * after

    @classmethod
    def _shapes(cls, shape: Shape, ranks: Ranks) -> tuple[Shape, ...]:
        return tuple((size, ranks[0]) for size in shape)

    @classmethod
    def _max_ranks(cls, shape: Shape) -> Ranks:
        return (math.prod(shape) // max(shape),)


class Tucker2(FactoredWeight):
    """W ≈ core x_T U_T x_S U_S; factors core (r_T x r_S x taps), U_T (Txr_T), U_S (Sxr_S).

    Ranks r_T, r_S. Executed as a 1x1 convolution S→r_S, the core r_S→r_T, and 1x1 r_T→T.
    """

    form = "tucker2"
    axes = (("a", "bij"), ("t", "a"), ("s", "b"))
    _dimensions = range(3, 5)
    _rank_axes = ((0, 0), (0, 1))

    def _product(self, factors: list[Float64]) -> Float64:
        core, outputs, inputs = factors
        rank_out, rank_in = self.ranks
        total, channels, *taps = self.shape
        partial = summed_by_rank(outputs, core.reshape(rank_out, -1))
        columns = np.moveaxis(partial.reshape(total, rank_in, -1), 1, 0).reshape(rank_in, -1)
        kernel = summed_by_rank(inputs, columns).reshape(channels, total, *taps)
        return np.moveaxis(kernel, 1, 0)

    @classmethod
    def product_operations(cls, shape: Sequence[int], ranks: Sequence[int]) -> int:
        rank_out, rank_in = ranks
        outputs, inputs, *taps = shape
        return outputs * rank_in * (rank_out + inputs) * math.prod(taps)

    def _macs(self, before: int, between: int, after: int) -> int:
        core, outputs, inputs = (factor.size for factor in self.factors)
        return inputs * before + (core + outputs) * after

    @classmethod
    def _shapes(cls, shape: Shape, ranks: Ranks) -> tuple[Shape, ...]:
        return (*ranks, *shape[2:]), (shape[0], ranks[0]), (shape[1], ranks[1])

    @classmethod
    def _max_ranks(cls, shape: Shape) -> Ranks:
        outputs, inputs, *taps = shape
        return (
            min(outputs, inputs * math.prod(taps)),
            min(inputs, outputs * math.prod(taps)),
        )


class HT2(FactoredWeight):
    """Hierarchical Tucker-2: W[t, s, i, j] ≈ Σ U1[s, a] L[a, i, b] N[b, c, j] U3[t, c].

    Factors U1 (SxR1), left core L (R1xd1xR13), right core N (R13xR3xd2), U3 (TxR3); ranks R1, R13,
    R3. Executed as convolutions 1x1 S→R1, d1x1 R1→R13, 1xd2 R13→R3 and 1x1 R3→T.
    Source: Gabor and Zdunek, Applied Soft Computing 132, 109856, 2023.
    """

    form = "ht2"
    axes = (("s", "a"), ("a", "ib"), ("b", "cj"), ("t", "c"))
    _dimensions = range(4, 5)
    _rank_axes = ((0, 1), (1, 2), (3, 1))

    def _product(self, factors: list[Float64]) -> Float64:
        inputs, left, right, outputs = factors
        total, _, rows, columns = self.shape
        middle = self.ranks[1]
        first = summed_by_rank(inputs, left.reshape(left.shape[0], -1))
        first = first.reshape(-1, middle)  # (S·d1) x R13
        last = summed_by_rank(outputs, right.transpose(1, 0, 2).reshape(right.shape[1], -1))
        last = last.reshape(total, middle, columns).transpose(1, 0, 2)
        last = last.reshape(middle, -1)  # R13 x (T·d2)
        kernel = summed_by_rank(first, last).reshape(-1, rows, total, columns)
        return kernel.transpose(2, 0, 1, 3)

    @classmethod
    def product_operations(cls, shape: Sequence[int], ranks: Sequence[int]) -> int:
        outputs, inputs, rows, columns = shape
        rank_in, middle, rank_out = ranks
        left, right = inputs * rank_in * rows, outputs * rank_out * columns
        return middle * (left + right + math.prod(shape))

    def _macs(self, before: int, between: int, after: int) -> int:
        inputs, left, right, outputs = (factor.size for factor in self.factors)
        return inputs * before + left * between + (right + outputs) * after

    @classmethod
    def _shapes(cls, shape: Shape, ranks: Ranks) -> tuple[Shape, ...]:
        outputs, inputs, rows, columns = shape
        rank_in, middle, rank_out = ranks
        left, right = (rank_in, rows, middle), (middle, rank_out, columns)
        return (inputs, rank_in), left, right, (outputs, rank_out)

    @classmethod
    def _max_ranks(cls, shape: Shape) -> Ranks:
        outputs, inputs, rows, columns = shape
        middle = min(inputs * rows, outputs * columns)
        return min(inputs, outputs * rows * columns), middle, min(outputs, inputs * rows * columns)


FORMS: Mapping[str, type[FactoredWeight]] = MappingProxyType(
    {form.form: form for form in (LowRank, Tucker2, CP, HT2, JointRight, JointLeft, JointBinary)}
)
"""Every form by its word in the model map."""

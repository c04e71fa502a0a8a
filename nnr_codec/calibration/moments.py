"""Second moments of the inputs of a weight, which tell the error of the layer's output.

A layer multiplies vectors x, one for each position of its output, by the rows of its weight. If the
weight changes by D, the squared error of the output at a position is, in the mean,
tr(D E[x xᵀ] Dᵀ). :mod:`.calibrate` collects the moments E[x xᵀ]; data-aware
decomposition and quantization minimize that error instead of the one of the weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import ml_dtypes
import numpy as np

from ..errors import InvalidOptions
from ..model import Array, Float64, Parameter
from ..support.block_diagonal import block_diagonal
from .foldable_norms import FoldableNorm

MAX_BYTES = 1 << 30
"""Of all moments that are collected in one pass, unless the caller says otherwise."""

_FLOAT64 = np.dtype(np.float64).itemsize
_Known = TypeVar("_Known")


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

    @property
    def is_whole(self) -> bool:
        """Whether they are known between all values."""
        return bool(self.blocks.shape[1] == 1)

    def mean(self) -> Float64:
        """Return E[x xᵀ], (width, width), in the mean over the groups, with zeros where nothing is
        known."""
        blocks = self.blocks[0] if len(self.blocks) == 1 else self.blocks.mean(axis=0)
        found: Float64 = block_diagonal(blocks)
        return found


@dataclass(frozen=True)
class ResultSides:
    """Which moments of gradients are collected of a weight, as the matrix that is coded.

    Attributes:
        block: columns that are looked at together; None: all.
        rows: whether rows are looked at.
    """

    block: int | None = None
    rows: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.block is None and self.rows

    def nbytes(self, layout: RowLayout) -> int:
        """Return what collecting them takes, in two halves; `layout`: of the matrix."""
        of_rows = self.rows * layout.outputs**2
        block = layout.width if self.block is None else self.block
        of_columns = layout.groups * layout.width * block
        return 2 * _FLOAT64 * (of_rows + of_columns)


@dataclass(frozen=True)
class ResultMoments:
    """How much the network's result feels errors of a weight, as the matrix that is coded.

    An error D of the weight changes the result's KL divergence, or half its squared error, by about
    tr(R D C Dᵀ) / (2 tr C) with the moments C and R of the gradients S of the weight: the nearest
    product of two factors to the natural-gradient (Fisher) metric, after one step of the power
    iteration (YAQA, arXiv 2505.22988).

    Attributes:
        columns: sum of Sᵀ S over samples, float64, or the blocks along its diagonal as those of
            `InputMoments`: (groups, count, size, size); None: not known.
        rows: sum of S Sᵀ, (rows, rows), likewise.
        count: gradients in them.
        is_checked: whether how large they are in each direction was seen on other samples than the
            direction itself (:mod:`.shrinkage`); what is not can be trusted little.
    """

    columns: Float64 | None
    rows: Float64 | None
    count: int
    is_checked: bool = True

    def fits(self, rows: int, columns: int) -> bool:
        """Whether they are moments of a matrix of this shape."""
        of_columns, of_rows = self.columns, self.rows
        if of_columns is not None:
            groups, count, size, _ = of_columns.shape
            if count * size != columns or rows % groups:
                return False
        if of_rows is not None and len(of_rows) != rows:
            return False
        return of_columns is not None or of_rows is not None


@dataclass(frozen=True)
class TensorKnowledge:
    """What is known of one tensor of a network.

    Attributes:
        inputs: E[x xᵀ] of the inputs of its layer; None: not known, or no layer's weight.
        result: how much the network's result feels its errors, likewise.
        sensitivity: the squared gradients of its elements, in the mean over them and over samples;
            None: not known.
    """

    inputs: InputMoments | None = None
    result: ResultMoments | None = None
    sensitivity: float | None = None

    @property
    def values(self) -> int:
        """How many values all moments have."""
        inputs, result = self.inputs, self.result
        sides = (result.columns, result.rows) if result is not None else ()
        known = (None if inputs is None else inputs.blocks, *sides)
        return sum(each.size for each in known if each is not None)


@dataclass(frozen=True)
class Calibration:
    """What is known of the tensors of a network, from samples.

    Attributes:
        moments: E[x xᵀ] of the layers' inputs, by the weight's name in the state dict. Of tied
            weights it is the first name, and the moments are of all their layers' inputs together.
        samples: in all batches.
        unused: names of weights whose layers never ran, in the state dict's order.
        result: how much the network's result feels errors, by the weight's name likewise.
        sensitivities: squared gradients, in the mean over a parameter's elements and samples, by
            its name.
        outputs: what the network's outputs were taken for: "classes", "values" or "loss"; empty
            without gradients.
        digests: of the values of the weights, by name; see :func:`values_digest`.
        norms: the batch norms that can be folded.
        notes: what could not be known, and why.
    """

    moments: Mapping[str, InputMoments]
    samples: int
    unused: tuple[str, ...] = ()
    result: Mapping[str, ResultMoments] = field(default_factory=dict)
    sensitivities: Mapping[str, float] = field(default_factory=dict)
    outputs: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    norms: tuple[FoldableNorm, ...] = ()
    notes: tuple[str, ...] = ()

    def tensor(self, name: str) -> TensorKnowledge | None:
        """Return what is known of tensor `name`; None: nothing."""
        known = TensorKnowledge(
            self.moments.get(name), self.result.get(name), self.sensitivities.get(name)
        )
        return None if known == TensorKnowledge() else known

    def part(self, name: str) -> Calibration:
        """Return what is known of tensor `name`, without all others."""

        def alone(known: Mapping[str, _Known]) -> dict[str, _Known]:
            return {name: known[name]} if name in known else {}

        return replace(
            self,
            moments=alone(self.moments),
            unused=(),
            result=alone(self.result),
            sensitivities=alone(self.sensitivities),
            digests={},
            norms=(),
        )

    def with_folded(self, norms: Iterable[FoldableNorm]) -> Calibration:
        """Return what is known of the network when these batch norms are folded."""
        sensitivities = dict(self.sensitivities)
        for norm in norms:
            sensitivities[norm.scale] = norm.scale_sensitivity
            for name in norm.emptied:
                sensitivities.pop(name, None)
        return replace(self, sensitivities=sensitivities)

    def check(self, model: Mapping[str, Parameter]) -> None:
        """Raise InvalidOptions if a weight of the model has other values than were calibrated."""
        if self.digests and not self.digests.keys() & model.keys():
            reason = f"is of another model, which has {next(iter(self.digests))!r}: calibrate again"
            raise InvalidOptions("calibration", reason)
        for name, digest in self.digests.items():
            parameter = model.get(name)
            if parameter is not None and digest not in _digests(parameter.read()):
                reason = f"is of another model: {name!r} has other values there; calibrate again"
                raise InvalidOptions("calibration", reason)

    @property
    def summary(self) -> str:
        """What it was made with, for people."""
        samples = f"{self.samples} sample{'s' if self.samples != 1 else ''}"
        return f"{samples}, outputs: {self.outputs}" if self.outputs else samples

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
    choices = {name: _block_choices(layout) for name, layout in layouts.items()}

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


def _block_choices(layout: RowLayout) -> list[int]:
    """Return the sizes that blocks can have, largest first."""
    by_channels = [channels * layout.taps for channels in _divisors(layout.channels)]
    return by_channels + _divisors(layout.taps)[1:]


def values_digest(values: Array) -> str:
    """Return 32 hexadecimal digits that stand for values, taken as binary32."""
    with np.errstate(over="ignore"):
        plain = np.ascontiguousarray(values, dtype="<f4")
    return hashlib.sha256(plain.reshape(-1).view(np.uint8).data).hexdigest()[:32]


def _digests(values: Array) -> Iterator[str]:
    """Yield the digests that values have in modules of their own type and of two bytes."""
    yield values_digest(values)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            yield values_digest(values.astype(dtype))


def result_sides(
    layouts: Mapping[str, RowLayout], max_bytes: int | None, of_one: int | None = None
) -> dict[str, ResultSides]:
    """Return which moments of gradients are collected of each weight, so that they fit.

    What takes most gets less, again and again: columns are looked at in smaller blocks, as those of
    :func:`block_sizes`; rows not at all, which counts as if all were alike.

    Args:
        layouts: of the matrices that are coded, by the weights' names.
        max_bytes: for all of them together; diagonals of columns may take more. None: any number.
        of_one: the same, for each of them.
    """
    weights = [_Reducible(layout) for layout in layouts.values()]
    for weight in weights:
        while of_one is not None and weight.nbytes > of_one and weight.larger_side:
            weight.reduce()
    total = sum(weight.nbytes for weight in weights)
    while max_bytes is not None and total > max_bytes:
        weight = max(weights, key=lambda weight: weight.larger_side)
        if not weight.larger_side:
            break
        total -= weight.nbytes
        weight.reduce()
        total += weight.nbytes
    return {name: weight.sides for name, weight in zip(layouts, weights, strict=True)}


class _Reducible:
    """Moments of the gradients of a weight, of which less and less are collected.

    Attributes:
        sides: which.
        nbytes: that these take.
        larger_side: bytes of the side that takes most and can take less; 0: there is none.
    """

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        self._smaller_blocks = _block_choices(layout)[1:]
        self.sides = ResultSides()
        self._measure()

    def reduce(self) -> None:
        """Collect less of the larger side."""
        if self._of_rows >= self._of_columns:
            self.sides = replace(self.sides, rows=False)
        else:
            self.sides = replace(self.sides, block=self._smaller_blocks.pop(0))
        self._measure()

    def _measure(self) -> None:
        self.nbytes = self.sides.nbytes(self._layout)
        of_columns = replace(self.sides, rows=False).nbytes(self._layout)
        self._of_rows = self.nbytes - of_columns
        self._of_columns = of_columns if self._smaller_blocks else 0
        self.larger_side = max(self._of_rows, self._of_columns)


def _divisors(number: int) -> list[int]:
    """Return the divisors of `number`, largest first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)}, reverse=True)

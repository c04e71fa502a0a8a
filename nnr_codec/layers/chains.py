"""Which layers a form is executed as, for each kind of layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .layout import Layout, depthwise, rows_first, unchanged
from .parts import is_convolution, is_transposed, pointwise, tiled, tiled_transposed, with_taps

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One of the layers that a factorized layer consists of.

    Attributes:
        name: what it is called there.
        factor: index of its factor in the form.
        layer: the layer, whose weight has no values yet.
        layout: how its weight is made of the factor.
    """

    name: str
    factor: int
    layer: nn.Module
    layout: Layout


def chain(form: str, layer: nn.Module, shape: Shape, ranks: Sequence[int]) -> list[Step]:
    """Return the layers that stand for `layer`, in the order of execution.

    Args:
        form: word of the model map.
        layer: a linear layer, an embedding, or a convolution.
        shape: of its weight.
        ranks: of the form.

    Raises:
        ValueError: layers of this kind cannot be executed in this form.
    """
    if form == "lr":
        return _low_rank(layer, shape, ranks[0])
    has_taps = is_convolution(layer) and len(shape) <= 4
    if not has_taps and not (is_linear(layer) and form.startswith("joint")):
        raise ValueError(f"a {type(layer).__name__} is not executed in the form {form!r}")
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"convolutions with groups are not executed in the form {form!r}")
    return _CHAINS[form](layer, shape, ranks)


def _low_rank(layer: Any, shape: Shape, rank: int) -> list[Step]:
    first, rest = shape[0], (rank, *shape[1:])
    dimensions = len(shape) - 2
    left, flat = (first, rank), (rank, math.prod(shape[1:]))
    if type(layer) is nn.Embedding:
        if layer.max_norm is not None:
            raise ValueError("an Embedding with max_norm is not executed on factors")
        table = nn.Embedding(first, rank, padding_idx=layer.padding_idx, device="meta")
        table.scale_grad_by_freq, table.sparse = layer.scale_grad_by_freq, layer.sparse
        return [
            Step("reduce", 0, table, unchanged(left, left)),
            Step("expand", 1, pointwise(0, rank, shape[1]), rows_first(*flat, swapped=True)),
        ]
    if is_linear(layer):
        return [
            Step("reduce", 1, pointwise(0, shape[1], rank), unchanged(flat, flat)),
            Step("expand", 0, pointwise(0, rank, first), unchanged(left, left)),
        ]
    if not is_convolution(layer) and not is_transposed(layer):
        raise ValueError(f"a {type(layer).__name__} is not executed on factors")
    groups = layer.groups
    if is_transposed(layer):
        ones = (1,) * dimensions
        split = (groups, first // groups, rank)
        weight = (groups * rank, first // groups, *ones)
        reduce = pointwise(dimensions, first, groups * rank, groups)
        return [
            Step("reduce", 0, reduce, Layout(left, split, (0, 2, 1), weight)),
            Step("expand", 1, tiled_transposed(layer, rank), unchanged(flat, rest)),
        ]
    expand = pointwise(dimensions, groups * rank, first, groups)
    return [
        Step("reduce", 1, tiled(layer, rank), unchanged(flat, rest)),
        Step("expand", 0, expand, rows_first(*left, dimensions)),
    ]


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a linear one, torch's for its attention included, which is the same."""
    return type(layer) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _cp(layer: Any, shape: Shape, ranks: Sequence[int]) -> list[Step]:
    (rank,) = ranks
    outputs, inputs, *taps = shape
    dimensions = len(taps)
    names = ("taps",) if dimensions == 1 else ("vertical", "horizontal")
    middle = []
    for axis, (name, size) in enumerate(zip(names, taps, strict=True)):
        kernel = tuple(size if other == axis else 1 for other in range(dimensions))
        part = with_taps(layer, rank, rank, (axis,), groups=rank)
        middle.append(Step(name, 2 + axis, part, depthwise(size, rank, kernel)))
    return [
        Step(
            "reduce",
            1,
            pointwise(dimensions, inputs, rank),
            rows_first(inputs, rank, dimensions, swapped=True),
        ),
        *middle,
        Step(
            "expand", 0, pointwise(dimensions, rank, outputs), rows_first(outputs, rank, dimensions)
        ),
    ]


def _tucker2(layer: Any, shape: Shape, ranks: Sequence[int]) -> list[Step]:
    rank_out, rank_in = ranks
    outputs, inputs, *taps = shape
    dimensions = len(taps)
    core = (rank_out, rank_in, *taps)
    return [
        Step(
            "reduce",
            2,
            pointwise(dimensions, inputs, rank_in),
            rows_first(inputs, rank_in, dimensions, swapped=True),
        ),
        Step("core", 0, with_taps(layer, rank_in, rank_out), unchanged(core, core)),
        Step(
            "expand",
            1,
            pointwise(dimensions, rank_out, outputs),
            rows_first(outputs, rank_out, dimensions),
        ),
    ]


def _ht2(layer: Any, shape: Shape, ranks: Sequence[int]) -> list[Step]:
    rank_in, middle, rank_out = ranks
    outputs, inputs, rows, columns = shape
    left, right = (rank_in, rows, middle), (middle, rank_out, columns)
    return [
        Step(
            "reduce", 0, pointwise(2, inputs, rank_in), rows_first(inputs, rank_in, 2, swapped=True)
        ),
        Step(
            "vertical",
            1,
            with_taps(layer, rank_in, middle, (0,)),
            Layout(left, left, (2, 0, 1), (middle, rank_in, rows, 1)),
        ),
        Step(
            "horizontal",
            2,
            with_taps(layer, middle, rank_out, (1,)),
            Layout(right, right, (1, 0, 2), (rank_out, middle, 1, columns)),
        ),
        Step("expand", 3, pointwise(2, rank_out, outputs), rows_first(outputs, rank_out, 2)),
    ]


def _joint(layer: Any, shape: Shape, ranks: Sequence[int]) -> list[Step]:
    names = [("vertical", "horizontal")]
    if len(ranks) == 2:
        names = [("own_vertical", "shared_horizontal"), ("shared_vertical", "own_horizontal")]
    return [
        step
        for index, (rank, pair) in enumerate(zip(ranks, names, strict=True))
        for step in _branch(layer, shape, rank, 2 * index, pair)
    ]


def _branch(layer: Any, shape: Shape, rank: int, factor: int, names: tuple[str, str]) -> list[Step]:
    """Return the two steps of a product U·V, by the unfolding of ``factorization.joint_forms``."""
    outputs, inputs, rows, columns = (*shape, 1, 1)[:4]
    dimensions = len(shape) - 2
    above = with_taps(layer, inputs, rank, (0,)) if dimensions else pointwise(0, inputs, rank)
    beside = pointwise(dimensions, rank, outputs)
    if dimensions == 2:
        beside = with_taps(layer, rank, outputs, (1,))
    vertical = ((), (rows,), (rows, 1))[dimensions]
    horizontal = ((), (1,), (1, columns))[dimensions]
    return [
        Step(
            names[0],
            factor,
            above,
            Layout(
                (rows * inputs, rank),
                (rows, inputs, rank),
                (2, 1, 0),
                (rank, inputs, *vertical),
            ),
        ),
        Step(
            names[1],
            factor + 1,
            beside,
            Layout(
                (rank, columns * outputs),
                (rank, columns, outputs),
                (2, 0, 1),
                (outputs, rank, *horizontal),
            ),
        ),
    ]


_CHAINS: Mapping[str, Callable[[Any, Shape, Sequence[int]], list[Step]]] = {
    "cp": _cp,
    "tucker2": _tucker2,
    "ht2": _ht2,
    "joint_right": _joint,
    "joint_left": _joint,
    "joint_binary": _joint,
}

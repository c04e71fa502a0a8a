"""How layers run on the factors of each form: as which chain of layers, for each kind of layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..factorization.factored_weight import Shape
from .layout import Layout, rows_first, unchanged
from .parts import is_convolution, is_transposed, pointwise, tiled, tiled_transposed, with_taps


@dataclass(frozen=True, slots=True)
class ChainLayer:
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


Chain = list[ChainLayer]


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a linear one, torch's for its attention included, which is the same."""
    return type(layer) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _has_taps(layer: nn.Module, shape: Shape) -> bool:
    return is_convolution(layer) and len(shape) <= 4


@dataclass(frozen=True)
class Execution:
    """How layers run on the factors of a form.

    Attributes:
        chain: returns the layers in the order of execution, from the layer that they stand for,
            the shape of its weight, and the ranks.
        product: returns the dense weight, of a shape, from the factors, as `to_dense` does.
        suits: whether a layer with a weight of a shape can run so; `chain` may know more obstacles.
        has_groups: whether convolutions with groups can.
        branches: of equal length that the chain consists of; their outputs are summed.
    """

    chain: Callable[[Any, Shape, Sequence[int]], Chain]
    product: Callable[[Shape, Sequence[torch.Tensor]], torch.Tensor]
    suits: Callable[[nn.Module, Shape], bool] = _has_taps
    has_groups: bool = False
    branches: int = 1


def chain(form: str, layer: nn.Module, shape: Shape, ranks: Sequence[int]) -> Chain:
    """Return the layers that stand for `layer`, in the order of execution.

    Args:
        form: word of the model map.
        layer: a linear layer, an embedding, or a convolution.
        shape: of its weight.
        ranks: of the form.

    Raises:
        ValueError: layers of this kind cannot be executed in this form.
    """
    execution = EXECUTIONS[form]
    if not execution.suits(layer, shape):
        raise ValueError(f"a {type(layer).__name__} is not executed in the form {form!r}")
    if getattr(layer, "groups", 1) != 1 and not execution.has_groups:
        raise ValueError(f"convolutions with groups are not executed in the form {form!r}")
    return execution.chain(layer, shape, ranks)


def _low_rank(layer: Any, shape: Shape, ranks: Sequence[int]) -> Chain:
    (rank,) = ranks
    first, rest = shape[0], (rank, *shape[1:])
    dimensions = len(shape) - 2
    left, flat = (first, rank), (rank, math.prod(shape[1:]))
    if type(layer) is nn.Embedding:
        if layer.max_norm is not None:
            raise ValueError("an Embedding with max_norm is not executed on factors")
        table = nn.Embedding(first, rank, padding_idx=layer.padding_idx, device="meta")
        table.scale_grad_by_freq, table.sparse = layer.scale_grad_by_freq, layer.sparse
        return [
            ChainLayer("reduce", 0, table, unchanged(left, left)),
            ChainLayer("expand", 1, pointwise(0, rank, shape[1]), rows_first(*flat, swapped=True)),
        ]
    if is_linear(layer):
        return [
            ChainLayer("reduce", 1, pointwise(0, shape[1], rank), unchanged(flat, flat)),
            ChainLayer("expand", 0, pointwise(0, rank, first), unchanged(left, left)),
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
            ChainLayer("reduce", 0, reduce, Layout(left, split, (0, 2, 1), weight)),
            ChainLayer("expand", 1, tiled_transposed(layer, rank), unchanged(flat, rest)),
        ]
    expand = pointwise(dimensions, groups * rank, first, groups)
    return [
        ChainLayer("reduce", 1, tiled(layer, rank), unchanged(flat, rest)),
        ChainLayer("expand", 0, expand, rows_first(*left, dimensions)),
    ]


def _reduce(factor: int, inputs: int, rank: int, dimensions: int) -> ChainLayer:
    """Return the 1x1 convolution that a chain begins with, of a factor (inputs, rank)."""
    layout = rows_first(inputs, rank, dimensions, swapped=True)
    return ChainLayer("reduce", factor, pointwise(dimensions, inputs, rank), layout)


def _expand(factor: int, rank: int, outputs: int, dimensions: int) -> ChainLayer:
    """Return the 1x1 convolution that a chain ends with, of a factor (outputs, rank)."""
    layout = rows_first(outputs, rank, dimensions)
    return ChainLayer("expand", factor, pointwise(dimensions, rank, outputs), layout)


def _einsum(equation: str) -> Callable[[Shape, Sequence[torch.Tensor]], torch.Tensor]:
    """Return a product by `torch.einsum`; "*" in the equation are the letters of the taps."""

    def product(shape: Shape, factors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.einsum(equation.replace("*", "ij"[: len(shape) - 2]), *factors)

    return product


def _cp(layer: Any, shape: Shape, ranks: Sequence[int]) -> Chain:
    (rank,) = ranks
    outputs, inputs, *taps = shape
    dimensions = len(taps)
    names = ("taps",) if dimensions == 1 else ("vertical", "horizontal")
    middle = []
    for axis, (name, size) in enumerate(zip(names, taps, strict=True)):
        kernel = tuple(size if other == axis else 1 for other in range(dimensions))
        part = with_taps(layer, rank, rank, (axis,), groups=rank)
        layout = Layout((size, rank), (size, rank), (1, 0), (rank, 1, *kernel))
        middle.append(ChainLayer(name, 2 + axis, part, layout))
    first, last = _reduce(1, inputs, rank, dimensions), _expand(0, rank, outputs, dimensions)
    return [first, *middle, last]


def _cp_product(shape: Shape, factors: Sequence[torch.Tensor]) -> torch.Tensor:
    taps = "ij"[: len(shape) - 2]
    return torch.einsum(",".join(f"{mode}r" for mode in f"ts{taps}") + f"->ts{taps}", *factors)


def _tucker2(layer: Any, shape: Shape, ranks: Sequence[int]) -> Chain:
    rank_out, rank_in = ranks
    outputs, inputs, *taps = shape
    core = (rank_out, rank_in, *taps)
    return [
        _reduce(2, inputs, rank_in, len(taps)),
        ChainLayer("core", 0, with_taps(layer, rank_in, rank_out), unchanged(core, core)),
        _expand(1, rank_out, outputs, len(taps)),
    ]


def _ht2(layer: Any, shape: Shape, ranks: Sequence[int]) -> Chain:
    rank_in, middle, rank_out = ranks
    outputs, inputs, rows, columns = shape
    left, right = (rank_in, rows, middle), (middle, rank_out, columns)
    vertical = Layout(left, left, (2, 0, 1), (middle, rank_in, rows, 1))
    horizontal = Layout(right, right, (1, 0, 2), (rank_out, middle, 1, columns))
    return [
        _reduce(0, inputs, rank_in, 2),
        ChainLayer("vertical", 1, with_taps(layer, rank_in, middle, (0,)), vertical),
        ChainLayer("horizontal", 2, with_taps(layer, middle, rank_out, (1,)), horizontal),
        _expand(3, rank_out, outputs, 2),
    ]


def _joint(layer: Any, shape: Shape, ranks: Sequence[int]) -> Chain:
    return _branch(layer, shape, ranks[0], 0, ("vertical", "horizontal"))


def _joint_binary(layer: Any, shape: Shape, ranks: Sequence[int]) -> Chain:
    return [
        *_branch(layer, shape, ranks[0], 0, ("own_vertical", "shared_horizontal")),
        *_branch(layer, shape, ranks[1], 2, ("shared_vertical", "own_horizontal")),
    ]


def _branch(layer: Any, shape: Shape, rank: int, factor: int, names: tuple[str, str]) -> Chain:
    """Return the two layers of a product U·V, by the unfolding of ``factorization.joint_forms``."""
    outputs, inputs, rows, columns = (*shape, 1, 1)[:4]
    dimensions = len(shape) - 2
    above = with_taps(layer, inputs, rank, (0,)) if dimensions else pointwise(0, inputs, rank)
    beside = pointwise(dimensions, rank, outputs)
    if dimensions == 2:
        beside = with_taps(layer, rank, outputs, (1,))
    vertical = (rank, inputs, *((), (rows,), (rows, 1))[dimensions])
    horizontal = (outputs, rank, *((), (1,), (1, columns))[dimensions])
    u = Layout((rows * inputs, rank), (rows, inputs, rank), (2, 1, 0), vertical)
    v = Layout((rank, columns * outputs), (rank, columns, outputs), (2, 0, 1), horizontal)
    return [ChainLayer(names[0], factor, above, u), ChainLayer(names[1], factor + 1, beside, v)]


def _joint_product(shape: Shape, factors: Sequence[torch.Tensor]) -> torch.Tensor:
    outputs, inputs, rows, columns = (*shape, 1, 1)[:4]
    products = [
        torch.einsum("isr,rjt->tsij", u.reshape(rows, inputs, -1), v.reshape(-1, columns, outputs))
        for u, v in zip(factors[::2], factors[1::2], strict=True)
    ]
    return sum(products[1:], start=products[0]).reshape(shape)


def _suits_joint(layer: nn.Module, shape: Shape) -> bool:
    return is_linear(layer) or _has_taps(layer, shape)


EXECUTIONS: Mapping[str, Execution] = {
    "lr": Execution(
        _low_rank,
        lambda shape, factors: (factors[0] @ factors[1]).reshape(shape),
        suits=lambda layer, shape: True,
        has_groups=True,
    ),
    "cp": Execution(_cp, _cp_product),
    "tucker2": Execution(_tucker2, _einsum("ab*,ta,sb->ts*")),
    "ht2": Execution(_ht2, _einsum("sa,aib,bcj,tc->tsij")),
    "joint_right": Execution(_joint, _joint_product, _suits_joint),
    "joint_left": Execution(_joint, _joint_product, _suits_joint),
    "joint_binary": Execution(_joint_binary, _joint_product, _suits_joint, branches=2),
}
"""By the word of the form in the model map."""

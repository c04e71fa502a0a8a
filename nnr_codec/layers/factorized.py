"""A layer that runs on the factors of its weight."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..factorization.factored_weight import FactoredWeight
from ..factorization.forms import FORMS
from .chains import EXECUTIONS, chain
from .layout import Layout

SharedParameters = MutableMapping[tuple[str, Layout], nn.Parameter]
"""The parameters of factors, by the factor's name and how a layer arranges it."""


class FactorizedLayer(nn.Sequential):
    """A chain of ordinary layers that stands for one, equal to it up to rounding.

    Its children are called "reduce" and "expand" for the form "lr", with "vertical" and
    "horizontal" between them for "cp" and "ht2" ("taps" if the kernel is 1-d), or "core" for
    "tucker2"; "vertical" and "horizontal" alone for "joint_right" and "joint_left"; and
    "own_vertical", "shared_horizontal", "shared_vertical", "own_horizontal" for "joint_binary",
    whose two products are summed. Their weights are the factors; the bias is the last child's.

    Attributes:
        form: word of the model map.
        shape: of the dense weight.
        layouts: how the weight of each child is made of its factor, by the child's name, in the
            order of the form.
    """

    def __init__(self, layer: nn.Module, form: str, shape: Sequence[int], ranks: Sequence[int]):
        """Make the layers, whose weights have no values until `set_factors`.

        Args:
            layer: the one to replace: linear, an embedding or a convolution. It gives stride,
                padding, dilation and groups; its bias is shared.
            form: word of the model map.
            shape: of its weight.
            ranks: of the form.

        Raises:
            ValueError: such layers are not executed in this form.
        """
        super().__init__()
        self.form, self.shape = form, tuple(shape)
        self._replaced = (_without_values(layer),)  # in a tuple, as it is no child
        self._arrange(ranks, getattr(layer, "bias", None))
        self.train(layer.training)

    def _arrange(self, ranks: Sequence[int], bias: nn.Parameter | None) -> None:
        """Make the layers for these ranks."""
        parts = chain(self.form, self._replaced[0], self.shape, ranks)
        for part in parts:
            self.add_module(part.name, part.layer)
        by_factor = sorted(parts, key=lambda part: part.factor)
        self.layouts = {part.name: part.layout for part in by_factor}
        if bias is not None:
            getattr(self, parts[-1].name).bias = bias

    def set_factors(
        self,
        names: Sequence[str],
        factors: Sequence[torch.Tensor],
        shared: SharedParameters,
        requires_grad: bool = True,
    ) -> None:
        """Make the factors the weights of the layers.

        Args:
            names: of the factors; what has one name becomes one parameter.
            factors: in the order of the form, of the dtype and on the device that is wanted.
            shared: parameters so far; new ones are added.
            requires_grad: of new parameters.
        """
        for name, factor, (child, layout) in zip(names, factors, self.layouts.items(), strict=True):
            key = (name, layout)
            if key not in shared:
                shared[key] = nn.Parameter(layout.to_weight(factor), requires_grad)
            getattr(self, child).weight = shared[key]

    def factor_parameters(self) -> list[tuple[nn.Parameter, Layout]]:
        """Return the parameters of the factors, in the order of the form."""
        return [(getattr(self, name).weight, layout) for name, layout in self.layouts.items()]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks, in the order of the form."""
        shapes = [layout.factor_shape for layout in self.layouts.values()]
        return FORMS[self.form].ranks_of(self.shape, shapes)

    def keep(self, components: Sequence[Sequence[int]]) -> None:
        """Leave only some components of each rank: the layers become smaller, in place.

        The parameters of the factors are new ones, of which an optimizer has to be told; they are
        shared with no other layer.

        Args:
            components: indices of those that stay, at least one of each rank.

        Raises:
            ValueError: they are none of the form's, or the form is joint.
        """
        places = FORMS[self.form].rank_places(len(self.layouts))
        if FORMS[self.form].shared:
            raise ValueError(f"{self.form}: its ranks are those of other layers, too")
        if len(components) != len(places) or not all(len(kept) for kept in components):
            raise ValueError(f"{self.form}: components of {len(places)} ranks, at least one each")
        old = self.factor_parameters()
        factors = [layout.to_factor(parameter.detach()) for parameter, layout in old]
        for kept, where in zip(components, places, strict=True):
            for position, axis in where:
                index = torch.tensor(list(kept), device=factors[position].device)
                factors[position] = factors[position].index_select(axis, index)
        bias = self.bias
        self._arrange([len(kept) for kept in components], bias)
        for (name, layout), factor, (parameter, _) in zip(
            self.layouts.items(), factors, old, strict=True
        ):
            part = getattr(self, name)
            part.weight = nn.Parameter(layout.to_weight(factor), parameter.requires_grad)
        self.train(self.training)

    def dense_layer(self) -> nn.Module:
        """Return an ordinary layer with the dense weight; the bias is shared."""
        layer: Any = _without_values(self._replaced[0])
        trains = any(parameter.requires_grad for parameter, _ in self.factor_parameters())
        layer.weight = nn.Parameter(self.weight.detach().clone(), trains)
        if self.bias is not None:
            layer.bias = self.bias
        result: nn.Module = layer.train(self.training)
        return result

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, formed anew each time; gradients flow to the factors."""
        factors = [layout.to_factor(parameter) for parameter, layout in self.factor_parameters()]
        return EXECUTIONS[self.form].product(self.shape, factors)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, or None."""
        last = list(self.children())[-1]
        bias: nn.Parameter | None = getattr(last, "bias", None)
        return bias

    def forward(self, input: torch.Tensor, output_size: Any = None) -> torch.Tensor:
        """Run the layers one after the other; those of branches, branch by branch.

        Args:
            input: of the layer.
            output_size: of a transposed convolution, as in `nn.ConvTranspose2d.forward`.
        """
        if output_size is not None:
            reduce, expand = self
            sized: torch.Tensor = expand(reduce(input), output_size)
            return sized
        layers, branches = list(self), EXECUTIONS[self.form].branches
        length = len(layers) // branches
        outputs = []
        for start in range(0, len(layers), length):
            value = input
            for layer in layers[start : start + length]:
                value = layer(value)
            outputs.append(value)
        return sum(outputs[1:], start=outputs[0])

    def extra_repr(self) -> str:
        """Return what the children do not tell."""
        return f"form={self.form!r}, shape={self.shape}"


def _without_values(layer: nn.Module) -> nn.Module:
    """Return a layer of the same kind and settings that has no parameters, nor hooks."""
    bare = type(layer).__new__(type(layer))
    nn.Module.__init__(bare)
    fresh = set(vars(bare))
    vars(bare).update({name: value for name, value in vars(layer).items() if name not in fresh})
    for name in layer._parameters:
        bare.register_parameter(name, None)
    return bare


def factored(
    layer: nn.Module,
    weight: FactoredWeight,
    names: Sequence[str] | None = None,
    shared: SharedParameters | None = None,
) -> FactorizedLayer:
    """Return a layer that runs on the factors of `weight` and stands for `layer`.

    Args:
        layer: linear, an embedding or a convolution, which is left as it is; the parameters are of
            its dtype and on its device, and its bias is shared.
        weight: of the shape that the layer's has.
        names: of the factors; what has one name is one parameter. Without names nothing is shared.
        shared: parameters of other layers, which this one may share, and adds to.

    Raises:
        ValueError: the weight has another shape, or such layers are not executed in this form.

    >>> from nnr_codec.factorization.forms import LowRank
    >>> convolution = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    >>> weight = LowRank((16, 8, 3, 3), (np.ones((16, 4)), np.ones((4, 72))))
    >>> small = factored(convolution, weight)
    >>> [tuple(parameter.shape) for parameter in small.parameters()]
    [(4, 8, 3, 3), (16, 4, 1, 1), (16,)]
    >>> tuple(small(torch.zeros(1, 8, 10, 10)).shape)
    (1, 16, 5, 5)
    """
    dense: Any = getattr(layer, "weight", None)
    if dense is None or tuple(dense.shape) != weight.shape:
        shape = None if dense is None else tuple(dense.shape)
        raise ValueError(f"factors of the shape {weight.shape} for a weight of the shape {shape}")
    made = FactorizedLayer(layer, weight.form, weight.shape, weight.ranks)
    with torch.no_grad():
        factors = [
            torch.tensor(np.asarray(factor, np.float32), dtype=dense.dtype, device=dense.device)
            for factor in weight.factors
        ]
        if names is None:
            names, shared = [str(index) for index in range(len(factors))], None
        made.set_factors(names, factors, {} if shared is None else shared, dense.requires_grad)
    return made

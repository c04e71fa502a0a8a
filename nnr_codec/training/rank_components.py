"""The components of a factorized layer's ranks: what the result would change by without each.

Needs the extra `torch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InvalidModel
from ..factorization.forms import FORMS

if TYPE_CHECKING:
    import torch

    from ..layers.factorized import FactorizedLayer
    from ..layers.layout import Layout


class RankComponents:
    """Judges, prunes and cuts the components of one layer.

    Attributes:
        name: of the layer in its module.
        layer: that they are of.
        ranks: what is left of them, in the form's order.
    """

    def __init__(
        self, name: str, layer: FactorizedLayer, factors: list[tuple[torch.nn.Parameter, Layout]]
    ) -> None:
        """Nothing is pruned yet.

        Args:
            name: of the layer.
            layer: of a form that is not joint.
            factors: its parameters, which stay the same until it is cut, and their layouts.
        """
        self.name, self.layer = name, layer
        self.ranks = list(layer.ranks)
        self._form = FORMS[layer.form]
        self._factors = factors
        self._places = self._form.rank_places(len(factors))
        self._left = [set(range(rank)) for rank in self.ranks]
        # Each factor that a component is in tells the same: the smallest is the fastest.
        sizes = [parameter.numel() for parameter, _ in factors]
        self._judges = [min(places, key=lambda place: sizes[place[0]]) for places in self._places]
        self._squares: list[torch.Tensor] = []
        self._order: list[list[tuple[float, int]]] = []
        self._masks: dict[int, torch.Tensor] = {}

    @property
    def parameters(self) -> int:
        """Elements of the factors that are left."""
        return self._form.parameters(self.layer.shape, self.ranks)

    @property
    def fewest_parameters(self) -> int:
        """Elements of the factors at ranks of 1."""
        return self._form.parameters(self.layer.shape, [1] * len(self.ranks))

    @property
    def judging(self) -> list[torch.nn.Parameter]:
        """For each rank the parameter whose gradients tell of its components."""
        return [self._factors[factor][0] for factor, _ in self._judges]

    def add(self, gradients: Sequence[torch.Tensor]) -> None:
        """Add the squared derivatives of a batch, by the scales of the components; from gradients
        of the parameters that are `judging`."""
        import torch

        squares = []
        for (factor, axis), gradient in zip(self._judges, gradients, strict=True):
            parameter, layout = self._factors[factor]
            products = layout.to_factor(parameter.detach() * gradient).cpu().double()
            squares.append(products.movedim(axis, 0).flatten(1).sum(1).square())
        before = self._squares or [torch.zeros_like(added) for added in squares]
        self._squares = [sums + added for sums, added in zip(before, squares, strict=True)]

    def judge(self) -> None:
        """Order the components by what has been added since the last time.

        Raises:
            InvalidModel: that is not finite.
        """
        self._order = []
        for left, sums in zip(self._left, self._squares, strict=True):
            changes = sums.tolist()
            if not all(map(math.isfinite, changes)):
                raise InvalidModel(self.name, "has gradients that are not finite")
            self._order.append(sorted(((changes[i], i) for i in left), reverse=True))
        self._squares = []

    def cheapest(self) -> tuple[float, int]:
        """Return what the least component changes the result by, for each parameter that it saves,
        and its rank; infinite, if none can go."""
        choices = [(math.inf, 0)]
        for rank, order in enumerate(self._order):
            if self.ranks[rank] > 1:
                choices.append((order[-1][0] / self._saved(rank), rank))
        return min(choices)

    def _saved(self, rank: int) -> int:
        fewer = [size - (index == rank) for index, size in enumerate(self.ranks)]
        return self.parameters - self._form.parameters(self.layer.shape, fewer)

    def prune(self, rank: int) -> None:
        """Take the least component of a rank; it is zero after :meth:`clear`."""
        import torch

        _, index = self._order[rank].pop()
        self._left[rank].remove(index)
        self.ranks[rank] -= 1
        for factor, axis in self._places[rank]:
            parameter, layout = self._factors[factor]
            if factor not in self._masks:
                self._masks[factor] = torch.ones_like(parameter, requires_grad=False)
            mask = layout.to_factor(self._masks[factor]).clone()
            mask.select(axis, index).zero_()
            self._masks[factor] = layout.to_weight(mask)

    def clear(self) -> None:
        """Make what is pruned zero, in all its factors: gradients are zero then, too, and only what
        an optimizer remembers would move it."""
        import torch

        with torch.no_grad():
            for factor, mask in self._masks.items():
                self._factors[factor][0].mul_(mask)

    def cut(self) -> None:
        """Take what is pruned out of the layer."""
        if self._masks:
            self.layer.keep([sorted(left) for left in self._left])
        self._masks = {}

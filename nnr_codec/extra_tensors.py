"""Tensors that have no data unit: what the model map tells of them, put in their places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from .factorization.model_map import Extra, ModelMap
from .factorization.tensor_order import TensorOrder
from .unit_decoder import DecodedTensor


class ExtraTensors:
    """Gives the extras of one stream while its tensors go by.

    Attributes:
        order: how the stream's map orders the coded tensors.
    """

    def __init__(self) -> None:
        self.order = TensorOrder()
        self._known = False
        self._by_place: dict[str | None, list[Extra]] = {}
        self._aliases: dict[str, list[str]] = {}
        self._to_come: Counter[str] = Counter()  # ties to a tensor
        self._tied: dict[str, npt.NDArray[Any]] = {}

    def use(self, model_map: ModelMap | None) -> None:
        """Take the stream's map, as soon as it is known."""
        if model_map is None or self._known:
            return
        self._known = True
        self.order = model_map.order
        for extra in model_map.extras:
            self._by_place.setdefault(extra.after, []).append(extra)
            if extra.tied_to is not None:
                self._aliases.setdefault(extra.tied_to, []).append(extra.name)
                self._to_come[extra.tied_to] += 1

    @property
    def has_ties(self) -> bool:
        """Whether any extra is tied to a tensor."""
        return bool(self._aliases)

    def aliases(self, name: str) -> list[str]:
        """Return the names of the extras that are tied to tensor `name`."""
        return self._aliases.get(name, [])

    def after(self, tensor: DecodedTensor | None) -> Iterator[DecodedTensor]:
        """Yield the extras that follow a tensor; None: those that come first."""
        if tensor is not None and tensor.name in self._aliases:
            self._tied[tensor.name] = tensor.values
        yield from self._restored(self.placed_after(tensor.name if tensor else None))

    def placed_after(self, name: str | None) -> list[Extra]:
        """Return what the map has to say of the extras behind tensor `name`, once."""
        return self._by_place.pop(name, [])

    def rest(self) -> Iterator[DecodedTensor]:
        """Yield, at the stream's end, the extras whose places were passed over."""
        for extras in self._by_place.values():
            yield from self._restored(extras)
        self._by_place = {}

    def _restored(self, extras: list[Extra]) -> Iterator[DecodedTensor]:
        for extra in extras:
            if extra.tied_to is None:
                yield DecodedTensor(extra.name, "empty", extra.empty())
            elif extra.tied_to in self._tied:  # else it was not asked for
                values = self._tied[extra.tied_to]
                self._to_come[extra.tied_to] -= 1
                if not self._to_come[extra.tied_to]:
                    del self._tied[extra.tied_to]  # so that its memory can go
                yield DecodedTensor(extra.name, "tied", values, tied_to=extra.tied_to)

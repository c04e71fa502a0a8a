"""The order in which tensors come back, where the units of a stream have another.

A BLOCK unit gives the tensors of a layer in a fixed order. What order the checkpoint had, the model
map says in one word or one list for the whole stream (spec/model_map.md, "order").
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

BY_NAME = "name"
BLOCK_ROLES = ("weight", "local_scaling", "beta", "gamma", "mean", "var", "bias")
"""The roles of a block's tensors, in the order of the names in its header."""


class Named(Protocol):
    """What can be put in order: the name of a tensor, and its role in its data unit."""

    @property
    def name(self) -> str: ...

    @property
    def role(self) -> str: ...


class NameRole(NamedTuple):
    """A tensor of a data unit: its name and its role there."""

    name: str
    role: str


T = TypeVar("T", bound=Named)


@dataclass(frozen=True, slots=True)
class TensorOrder:
    """How the coded tensors of a stream are ordered; without an argument: as in the stream.

    Attributes:
        by_name: by their names' code points. The least names of the units then ascend, so that a
            decoder has to hold back few tensors.
        roles: units as in the stream, and the tensors of each unit by their roles, in this order;
            roles that are not in it come last, in the order of the header.
    """

    by_name: bool = False
    roles: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether it differs from that of the stream."""
        return self.by_name or bool(self.roles)

    def within_unit(self, tensors: Iterable[T]) -> list[T]:
        """Return the tensors of one unit in order."""
        if self.by_name:
            return sorted(tensors, key=lambda tensor: tensor.name)
        ranks = {role: rank for rank, role in enumerate(self.roles)}
        return sorted(tensors, key=lambda tensor: ranks.get(tensor.role, len(ranks)))

    def positions(self, names: Mapping[str, int]) -> Mapping[str, int]:
        """Return the positions of a stream's tensors, of which `names` gives those by unit."""
        return {n: index for index, n in enumerate(sorted(names))} if self.by_name else names


def in_order(units: Iterable[list[T]], order: Callable[[], TensorOrder]) -> Iterator[list[T]]:
    """Yield the tensors of all units in order, each as soon as none can come before it.

    Args:
        units: the tensors of each unit, in stream order; by name, with ascending least names.
        order: tells their order; called when the first unit has come.
    """
    waiting: list[tuple[str, T]] = []
    for tensors in units:
        arranged = order().within_unit(tensors) if order() else tensors
        del tensors  # so that nothing is held that was handed out
        if not order().by_name:
            yield arranged
            continue
        ready = []
        while waiting and arranged and waiting[0][0] < arranged[0].name:
            ready.append(heapq.heappop(waiting)[1])
        for tensor in arranged:
            heapq.heappush(waiting, (tensor.name, tensor))
            del tensor
        del arranged
        yield ready
    yield [heapq.heappop(waiting)[1] for _ in range(len(waiting))]

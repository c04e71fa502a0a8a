"""Ties are restored here, and empty tensors: what has no data unit, each at its position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from ..factorization.model_map import Extra
from ..factorization.tensor_order import Named

T = TypeVar("T", bound=Named)
M = TypeVar("M")


class ExtraMaker(Protocol[M]):
    """Makes tensors without a data unit."""

    def extra(self, extra: Extra, first: M | None) -> M:
        """Return a tensor, of the role "tied" or "empty": tied to `first`; or empty, for None."""


class TiesAndEmpties(Generic[T]):
    """Gives the tensors without a data unit of one stream, behind those that the map names.

    A tensor is kept until the last one that is tied to it has been given.
    """

    def __init__(
        self, extras: Iterable[Extra], matches: Callable[[str], bool], maker: ExtraMaker[T]
    ) -> None:
        """Give those of `extras` whose names match."""
        self._maker = maker
        self._waiting: dict[str | None, list[Extra]] = {}
        self._tie_counts: Counter[str] = Counter()  # by the tensor that they are tied to
        self._firsts: dict[str, T] = {}  # tensors that others are tied to
        for extra in filter(lambda extra: matches(extra.name), extras):
            self._waiting.setdefault(extra.after, []).append(extra)
            if extra.tied_to is not None:
                self._tie_counts[extra.tied_to] += 1

    def keep(self, tensor: T) -> None:
        """Keep a tensor as long as others are to be tied to it."""
        if tensor.name in self._tie_counts:
            self._firsts[tensor.name] = tensor

    def behind(self, name: str | None) -> Iterator[T]:
        """Yield what follows tensor `name`, once; None: what comes first."""
        for extra in self._waiting.pop(name, []):
            if extra.tied_to is None:
                yield self._maker.extra(extra, None)
            elif extra.tied_to in self._firsts:
                yield self._maker.extra(extra, self._first(extra.tied_to))

    def _first(self, name: str) -> T:
        """Return the tensor that another one is tied to; with the last of these it can go."""
        self._tie_counts[name] -= 1
        return self._firsts[name] if self._tie_counts[name] else self._firsts.pop(name)

    def rest(self) -> Iterator[T]:
        """Yield, at the stream's end, what follows tensors that did not come."""
        for name in list(self._waiting):
            yield from self.behind(name)

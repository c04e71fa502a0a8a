"""The walk from coded to finished tensors: order, parts, products of factors, ties, empty tensors.

Decoding, the outline of a stream, the index of an open one and its description walk alike; they
differ in what comes with a tensor: values, a shape, how to read it, a row of a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from ..factorization.extras import Extra
from ..factorization.factor_tracker import FactorTracker
from ..factorization.factorizations import Factorization, factors_of
from ..factorization.tensor_order import Named, NameRole, in_order
from ..factorization.tensor_rules import TensorRule
from .stream_map import Selection, StreamMap

T = TypeVar("T", bound=Named)
M = TypeVar("M")


class TensorMaker(Protocol[M]):
    """Makes the tensors that no data unit holds as they are."""

    def join(self, tensor: M, rule: TensorRule, part: M | None) -> M:
        """Return a tensor made complete by its part; None if that did not come before it."""

    def product(self, weight: str, entry: Factorization, factors: list[M]) -> M:
        """Return a weight, of the role "dense", made of factors."""

    def extra(self, extra: Extra, first: M | None) -> M:
        """Return a tensor, of the role "tied" or "empty": tied to `first`; or empty, for None."""


class Walk(Generic[T]):
    """Finishes the tensors of one stream, once, while its units go by."""

    def __init__(self, stream: StreamMap, selection: Selection, maker: TensorMaker[T]) -> None:
        """Finish what is selected; `stream`: knows the map when the first data unit comes."""
        self._stream = stream
        self._selection = selection
        self._maker = maker
        self._parts: dict[str, T] = {}

    @cached_property
    def _factors(self) -> FactorTracker[T]:
        factors = factors_of(self._stream.model_map.factorizations)
        return FactorTracker(factors, self._forms)

    @cached_property
    def _extras(self) -> _TiesAndEmpties[T]:
        extras = self._stream.model_map.extras
        return _TiesAndEmpties(extras, self._selection.matches, self._maker)

    def tensors(self, units: Iterable[list[T]]) -> Iterator[T]:
        """Yield the tensors that are selected, in the model's order.

        Args:
            units: the coded tensors of each data unit, in the order of the stream.

        Raises: what `units` and the maker raise, in the order of the stream.
        """
        for tensors in in_order(self._with_skipped(units), lambda: self._stream.model_map.order):
            yield from self._behind(None)
            tensors.reverse()  # they may be all of the stream: each is removed in no time
            while tensors:  # none is held while the next unit is decoded
                yield from self._with_products(tensors.pop())

    def _with_skipped(self, units: Iterable[list[T]]) -> Iterator[list[T | NameRole]]:
        """Yield the tensors of all units: of those that are not decoded the names alone."""
        passed = self._stream.passed
        for tensors in units:
            while passed and (skipped := passed.popleft()):
                yield [*skipped]
            given: list[list[T | NameRole]] = [[*tensors]]
            del tensors  # so that nothing is held that was handed out
            yield given.pop()
        for skipped in passed:
            yield [*skipped]

    def _with_products(self, tensor: T | NameRole) -> Iterator[T]:
        """Yield a coded tensor, the weights whose last factor it is, and what follows each."""
        name = tensor.name
        if isinstance(tensor, NameRole):  # others may follow it, but it is not decoded
            complete = self._factors.add(name)
        elif name in self._stream.model_map.owners:
            self._parts[name] = tensor
            return
        else:
            tensor = self._joined(tensor)
            complete = self._factors.add(name, tensor)
            yield from self._hand_out(tensor)
        del tensor  # so that its memory can go as soon as no weight needs it
        yield from self._behind(name)
        for weight in complete:
            if self._forms(weight):
                yield from self._hand_out(self._product(weight))
            yield from self._behind(weight)

    def _joined(self, tensor: T) -> T:
        rule = self._stream.model_map.tensors.get(tensor.name)
        if rule is None or rule.part is None:
            return tensor
        return self._maker.join(tensor, rule, self._parts.pop(rule.part, None))

    def _forms(self, weight: str) -> bool:
        return self._selection.forms(weight, self._stream)

    def _product(self, weight: str) -> T:
        entry = self._stream.model_map.factorizations[weight]
        return self._maker.product(weight, entry, self._factors.release(weight))

    def _behind(self, name: str | None) -> Iterator[T]:
        for extra in self._extras.behind(name):
            yield from self._hand_out(extra)

    def _hand_out(self, tensor: T) -> Iterator[T]:
        """Yield a finished tensor, if it is selected: each one leaves through here.

        What is to be done to each of them is done here; ties are made of what was handed out.
        """
        self._extras.keep(tensor)
        if self._selection.selects(tensor.name, tensor.role, self._stream):
            yield tensor


class _TiesAndEmpties(Generic[T]):
    """Gives the tensors without a data unit of one stream, behind those that the map names.

    A tensor is kept until the last one that is tied to it has been given.
    """

    def __init__(
        self, extras: Iterable[Extra], matches: Callable[[str], bool], maker: TensorMaker[T]
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

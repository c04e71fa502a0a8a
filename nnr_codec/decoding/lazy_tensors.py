"""Tensors of an open stream that are decoded each time that they are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

from ..bitstream import ParsedUnit
from ..bitstream.parsed_unit import PassedUnit, header_of, tensors_of
from ..factorization.extras import Extra
from ..factorization.factorizations import Factorization
from ..factorization.tensor_rules import TensorRule
from ..model import Array
from .finishing import joined, recomposed
from .series import Series
from .unit_decoder import DecodedTensor, decode_data_unit


class LazyTensor(NamedTuple):
    """A tensor of a stream, its role as in ``DecodedTensor``, and what decodes its values."""

    name: str
    role: str
    read: Callable[[], Array]


class LazyMaker:
    """Makes tensors that are read out of others that are read."""

    def __init__(self, series: Series, executor: Executor | None) -> None:
        """`series`: the earlier streams; `executor`: its threads decode block rows."""
        self._series = series
        self._executor = executor
        self._shared = SharedFactors()

    def coded(self, units: Iterable[ParsedUnit | PassedUnit]) -> Iterator[list[LazyTensor]]:
        """Yield the coded tensors of each data unit."""
        for unit in units:
            if tensors := tensors_of(unit):
                yield [
                    LazyTensor(name, role, partial(self._decode, unit, name))
                    for name, role in tensors
                ]

    def _decode(self, unit: ParsedUnit | PassedUnit, name: str) -> Array:
        if isinstance(unit, PassedUnit):
            unit.expect()
        return next(t.values for t in self.decoded(header_of(unit)) if t.name == name)

    def decoded(self, unit: ParsedUnit) -> list[DecodedTensor]:
        """Return the tensors of a unit."""
        return decode_data_unit(unit, self._series, self._executor)

    def join(self, tensor: LazyTensor, rule: TensorRule, part: LazyTensor | None) -> LazyTensor:
        """Return a tensor that is joined with its part."""

        def read() -> Array:
            values = tensor.read()
            return joined(tensor.name, rule, values, None if part is None else part.read())

        return tensor._replace(read=read)

    def product(self, weight: str, entry: Factorization, factors: list[LazyTensor]) -> LazyTensor:
        """Return a weight that is formed of its factors."""
        self._shared.add_weight(weight, factors)
        return LazyTensor(weight, "dense", partial(self._shared.form, weight, entry, factors))

    def extra(self, extra: Extra, first: LazyTensor | None) -> LazyTensor:
        """Return an empty tensor, or one whose values are those of `first`."""
        if first is None:
            return LazyTensor(extra.name, "empty", extra.empty)
        return LazyTensor(extra.name, "tied", first.read)


class SharedFactors:
    """Keeps what several weights are made of until each of them was formed once, in any order.

    So a factor is not decoded for each weight again when they are read one by one. When all were
    formed it is dropped, to be decoded again with the next one.
    """

    def __init__(self) -> None:
        self._users: dict[str, set[str]] = {}
        self._to_come: dict[str, set[str]] = {}
        self._kept: dict[str, Array] = {}
        self._lock = threading.Lock()

    def add_weight(self, weight: str, factors: Iterable[LazyTensor]) -> None:
        """Expect a weight to be read."""
        for factor in factors:
            self._users.setdefault(factor.name, set()).add(weight)

    def form(self, weight: str, entry: Factorization, factors: Iterable[LazyTensor]) -> Array:
        """Form a weight of its factors, which are read unless they are here.

        Raises: what `recomposed` and reading raise.
        """
        values = {}
        for factor in factors:
            kept = self._kept.get(factor.name)
            values[factor.name] = factor.read() if kept is None else kept
        product = recomposed(weight, entry, list(values.values()))
        with self._lock:
            for name in filter(lambda name: len(self._users[name]) > 1, values):
                self._kept[name] = values[name]
                to_come = self._to_come.setdefault(name, set(self._users[name]))
                to_come.discard(weight)
                if not to_come:
                    del self._kept[name], self._to_come[name]
        return product

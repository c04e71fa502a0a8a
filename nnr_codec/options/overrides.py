"""Options of single tensors: the overrides that match a name, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from ..errors import InvalidOptions
from .decomposition import AMOUNTS
from .globs import GlobIndex
from .kinds import Kind

T = TypeVar("T")

Overrides = tuple[tuple[str, Mapping[str, Any]], ...]


def _pairs(value: Any) -> Overrides:
    pairs: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
    overrides = tuple((glob, dict(values)) for glob, values in pairs)
    if not all(isinstance(glob, str) for glob, _ in overrides):
        raise TypeError
    return overrides


OVERRIDES = Kind("a sequence of pairs (glob, {option: value}), whose globs are texts", _pairs)


def values_key(values: Mapping[str, Any]) -> frozenset[Any]:
    """Return what tells values apart: 1, a rank, from 1.0, the fraction of all parameters, too."""
    return frozenset((name, type(value), value) for name, value in values.items())


class OverrideTable(Generic[T]):
    """The options of every tensor that an override matches, each set of values made once."""

    def __init__(self, overrides: Overrides, make: Callable[[Mapping[str, Any]], T]) -> None:
        self._values = [values for _, values in overrides]
        self._index = GlobIndex([glob for glob, _ in overrides])
        self._make = make
        self._by_name: dict[str, T] = {}
        self._by_values: dict[frozenset[Any], T] = {}

    def options(self, name: str) -> T:
        """Return the options of tensor `name`; tensors with the same values have one object.

        Raises InvalidOptions if its overrides contradict each other.
        """
        if name not in self._by_name:
            values = self.values(name)
            key = values_key(values)
            try:
                if key not in self._by_values:
                    self._by_values[key] = self._make(values)
            except InvalidOptions as error:
                raise InvalidOptions(f"{name}: {error.option}", error.reason) from None
            self._by_name[name] = self._by_values[key]
        return self._by_name[name]

    def values(self, name: str) -> dict[str, Any]:
        """Return the values of all overrides that match, of which the last ones win."""
        merged: dict[str, Any] = {}
        for index in self._index.matching(name):
            values = self._values[index]
            if any(amount in values for amount in AMOUNTS):
                merged = {key: value for key, value in merged.items() if key not in AMOUNTS}
            merged.update(values)
        if "qp" in merged:  # that of the tensor, whatever its role
            merged.setdefault("nonweight_qp", merged["qp"])
        return merged
